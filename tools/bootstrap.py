"""Make a virtual environment from a lock file and print the path of its Python.

Standard library only: this is the first thing that runs on a fresh machine.

    python3 tools/bootstrap.py tools            requirements/tools.txt
    python3 tools/bootstrap.py airflow dag-tests   two locks in one environment
"""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlctl.base.cache import lock
from mlctl.base.errors import UserError, run_main
from mlctl.base.packages import ensure_packages
from mlctl.base.paths import CACHE, ROOT

PYTHON_OF_THE_LOCKS = (3, 11)
"""The locks are resolved for this Python: Debian 12's, and the one inside the images."""


COMPLETE = ".complete"
"""Marks an environment whose installation came to its end."""


def environment(names: list[str]) -> Path:
    """Return the Python of the environment that holds the named locks, making it if needed.

    Raises UserError when this machine's Python is another one or a package can't be had.
    """
    files = [ROOT / "requirements" / f"{name}.txt" for name in names]
    for file in files:
        if not file.exists():
            raise UserError(f"there is no lock file {file.relative_to(ROOT)}")
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    key.update(f"{sys.version_info[:2]} {os.path.realpath(sys.executable)}".encode())
    final = CACHE / "venvs" / f"{'-'.join(names)}-{key.hexdigest()[:12]}"
    python = final / "bin" / "python"
    if (final / COMPLETE).exists():
        os.utime(final)  # mlctl/base/prune.py forgets what is not used.
        return python
    if sys.version_info[:2] != PYTHON_OF_THE_LOCKS:
        wanted = ".".join(map(str, PYTHON_OF_THE_LOCKS))
        raise UserError(
            f"this is Python {sys.version.split()[0]}, the lock files are for {wanted}: "
            f"install it and say `make PYTHON3=python{wanted} ...`"
        )
    ensure_packages("the Python environment", _missing_for_venv())
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(f"venvs-{final.name}"):
        if not (final / COMPLETE).exists():
            _make(final, files, uv=names != ["tools"])
    return python


def _missing_for_venv() -> list[str]:
    try:
        import ensurepip  # noqa: F401  (Debian splits it off into python3-venv)
    except ImportError:
        return ["python3-venv"]
    return []


def _make(final: Path, files: list[Path], *, uv: bool) -> None:
    # A virtual environment holds its own path, so it is made in place and marked when whole.
    shutil.rmtree(final, ignore_errors=True)
    log = final.parent / f"{final.name}.log"
    requirements = [word for file in files for word in ("-r", str(file))]
    python = final / "bin" / "python"
    with log.open("w") as out, _heartbeat(f"Python environment {final.name}"):
        if uv:
            tool = environment(["tools"]).parent / "uv"
            _call([sys.executable, "-m", "venv", "--without-pip", str(final)], out, log)
            install = [str(tool), "pip", "install", "--compile-bytecode", "--python", str(python)]
        else:
            _call([sys.executable, "-m", "venv", str(final)], out, log)
            install = [str(python), "-m", "pip", "install"]
        _call([*install, "--quiet", "--require-hashes", *requirements], out, log)
    (final / COMPLETE).touch()


def _call(command: list[str], out: TextIO, log: Path) -> None:
    result = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        raise UserError(f"{' '.join(command[:4])} ... failed; whole log: {log}\n{tail}")


@contextmanager
def _heartbeat(what: str) -> Iterator[None]:
    started, stop = time.monotonic(), threading.Event()

    def beat() -> None:
        while not stop.wait(5):
            age = time.monotonic() - started
            print(f"    {age:4.0f}s {what}: installing", file=sys.stderr, flush=True)

    print(f"==> {what}", file=sys.stderr, flush=True)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Print the path of the environment's Python."""
    if len(sys.argv) < 2:
        raise UserError("name at least one lock file of requirements/, for example: tools")
    print(environment(sys.argv[1:]))


if __name__ == "__main__":
    run_main(main)
