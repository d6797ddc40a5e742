"""Build the node's programs from the Go module in ``node/``."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from mlctl.base import processes
from mlctl.base.cache import cached, digest
from mlctl.base.errors import UserError
from mlctl.base.paths import CACHE
from mlctl.base.progress import Phase
from mlctl.builder import go
from mlctl.builder.go import build_environment

SOURCE = Path(__file__).parent / "node"


def node_binary(phase: Phase) -> Path:
    """Return the multi-call binary, built unless the cache has one of the same sources.

    Raises UserError when the modules cannot be fetched or do not compile.
    """
    command, version = find_go()

    def build(directory: Path) -> None:
        log = directory.parent / "build.log"
        log.write_text("")
        env = build_environment(command)
        phase.note("listing packages")
        packages = _go([command, "list", "-deps", "."], env, log, phase).splitlines()
        compiled = 0

        def count(line: str) -> None:
            nonlocal compiled
            # `go build -v` prints the name of each package it compiles.
            if line and " " not in line and "/" in line:
                compiled += 1
                phase.note(f"compiled {compiled} of at most {len(packages)} packages: {line}")
            else:
                phase.note(line)

        output = str(directory / "node")
        _go(
            [command, "build", "-v", f"-ldflags={link_flags()}", "-o", output, "."],
            env,
            log,
            phase,
            count,
        )

    return cached("node", _key(version), build) / "node"


def link_flags() -> str:
    """Return the linker's flags: the version that Kubernetes reports, and no symbol table.

    A module build knows no git tag, see k8s.io/component-base/version/base.go.
    """
    version = _from_go_mod(r"^\tk8s.io/kubernetes (v\S+)$")
    major, minor, _ = version.removeprefix("v").split(".")
    facts = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    package = "k8s.io/component-base/version"
    return " ".join(["-s -w", *(f"-X {package}.{key}={value}" for key, value in facts.items())])


def is_built() -> bool:
    """Say whether the cache has the binary already, without building anything."""
    try:
        _, version = find_go(download=False)
    except UserError:
        return False
    return (CACHE / "node" / _key(version)).is_dir()


def find_go(*, download: bool = True) -> tuple[str, str]:
    """Return a Go command that is new enough for go.mod, and its version.

    Raises UserError when none can be had.
    """
    return go.find_go(_from_go_mod(r"^go (\S+)$"), download=download)


def _key(version: str) -> str:
    return f"{digest(SOURCE, link_flags())}-go{version}"


def _from_go_mod(pattern: str) -> str:
    (found,) = re.findall(pattern, (SOURCE / "go.mod").read_text(), re.MULTILINE)
    return found


def _go(
    command: list[str],
    env: dict[str, str],
    log: Path,
    phase: Phase,
    each: Callable[[str], None] | None = None,
) -> str:
    """Run go in the module; lines of its standard error go to the log and to ``each``."""
    each = each or phase.note
    output = log.with_suffix(".out")
    last: list[str] = []
    with log.open("a") as file, output.open("w") as out:
        with processes.started(
            command,
            cwd=SOURCE,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            for line in process.stderr:
                file.write(line)
                last = [*last[-9:], line.rstrip()]
                each(line.strip())
    if process.returncode != 0:
        shown = "\n".join(f"    {line}" for line in last)
        raise UserError(
            f"go {command[1]} failed; whole log: {log}\n{shown}\n"
            "If a module could not be fetched: is the module proxy reachable (go env GOPROXY)?"
        )
    return output.read_text()
