"""The cgroup that holds the pods of a cluster, in every hierarchy of the machine."""

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """Return the mount points: one on a cgroup v2 machine, one for each controller on v1."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [
        path
        for path in sorted(ROOT.iterdir())
        if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists()
    ]


def create(name: str) -> None:
    """Make the cgroup; the kubelet wants it to exist."""
    for hierarchy in hierarchies():
        path = hierarchy / name
        path.mkdir(exist_ok=True)
        # On v1 a new cpuset is empty, and nothing can be put into it.
        for key in ("cpuset.cpus", "cpuset.mems"):
            if (path / key).exists() and not (path / key).read_text().strip():
                (path / key).write_text((hierarchy / key).read_text())


def remove(name: str) -> list[Path]:
    """Remove the cgroup with all below it; return what could not be removed."""
    left = []
    for hierarchy in hierarchies():
        # Some go by themselves meanwhile, with the processes in them.
        for path, *_ in os.walk(hierarchy / name, topdown=False):
            try:
                Path(path).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                left.append(Path(path))
    return left
