"""Empty directories of the host that every embedded cluster mounts its own over.

Clusters share them: to remove one while another cluster has it mounted would take the mount
away in that cluster's namespace too (the kernel detaches a mount whose mount point goes), and
that cluster's kubelet would go on writing to the host.
"""

from collections.abc import Iterable
from pathlib import Path

MADE = Path("/run/ml-pipelines-mountpoints")
"""Lists those that were not there before, one a line, until the last user is gone."""


def create(directories: Iterable[Path]) -> None:
    """Make the directories that are missing."""
    missing = [directory for directory in directories if not directory.exists()]
    _remember([*_made(), *missing])
    for directory in missing:
        directory.mkdir(parents=True, exist_ok=True)


def remove() -> None:
    """Remove those that ``create`` made and that no namespace of the machine mounts over."""
    mounted = _mount_points()
    left = []
    for directory in _made():
        if not directory.exists():
            continue
        if str(directory) in mounted or any(directory.iterdir()):
            left.append(directory)
        else:
            directory.rmdir()
    _remember(left)


def _made() -> list[Path]:
    return [Path(line) for line in MADE.read_text().splitlines()] if MADE.exists() else []


def _remember(directories: list[Path]) -> None:
    if directories:
        MADE.write_text("".join(f"{path}\n" for path in dict.fromkeys(directories)))
    else:
        MADE.unlink(missing_ok=True)


def _mount_points() -> set[str]:
    """Return the mount points of all namespaces (the fifth field of mountinfo, see proc(5))."""
    found: set[str] = set()
    for file in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        found |= {line.split()[4] for line in lines}
    return found
