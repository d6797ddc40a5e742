"""Resolve requirements/*.in anew into requirements/*.txt.

Each lock file says in its header how it was made; that command is run again. `make lock` changes
versions only where an *.in file or the index asks for it: look at the difference before a commit.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import ROOT
from mlctl.base.progress import console

REQUIREMENTS = ROOT / "requirements"
UV = Path(sys.executable).parent / "uv"


def command_of(lock: Path) -> list[str]:
    """Return the words of the `uv pip compile` command in a lock file's header.

    Raises UserError when there is none.
    """
    for line in lock.read_text().splitlines()[:5]:
        found = re.match(r"#\s+uv (pip compile .*)", line)
        if found:
            words = shlex.split(found[1])
            if "-o" not in words and "--output-file" not in words:
                words += ["-o", str(lock.relative_to(ROOT))]
            return words
    raise UserError(f"{lock.relative_to(ROOT)}: its header holds no `uv pip compile` command")


def main() -> None:
    """Run the commands, those of locks that others refer to first."""
    locks = sorted(REQUIREMENTS.glob("*.txt"))
    commands = {lock: command_of(lock) for lock in locks}
    constrained = {lock for lock, words in commands.items() if "-c" in words}
    for lock in sorted(locks, key=lambda one: (one in constrained, one)):
        console.print(f"==> {lock.relative_to(ROOT)}")
        result = subprocess.run([str(UV), *commands[lock], "--quiet"], cwd=ROOT)
        if result.returncode != 0:
            raise UserError(f"{lock.relative_to(ROOT)} could not be resolved")


if __name__ == "__main__":
    run_main(main)
