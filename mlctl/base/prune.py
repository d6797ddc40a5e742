"""What the cache forgets, so that it does not grow with every change.

Of what is made anew under another name with each change, the two that were used last are kept,
and everything that was used within a day: other checkouts share the cache. What a process runs
from, or somebody is building, is never touched.
"""

import re
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlctl.base import paths, processes
from mlctl.base.cache import if_free, lock_file
from mlctl.base.errors import UserError
from mlctl.base.progress import confirmed, console

DAY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Kind:
    """A directory of the cache whose entries are pruned."""

    name: str
    """Path below the cache."""

    changing: str
    """Pattern of what changes in an entry's name; entries that differ only there are a group."""

    keep: int = 2
    """How many of a group stay whatever their age."""


KINDS = (
    Kind("images", r"-[0-9a-f]{12}$"),
    Kind("node", r".*"),
    Kind("go-programs", r"-[0-9a-f]{12}$"),
    Kind("venvs", r"-[0-9a-f]{12}$"),
    Kind("wheels", r"-[\d.]+-[0-9a-f]{12}$"),
    Kind("chart", r".*"),
    Kind("pytest", r".*"),
    # Layers unpacked for tests: made again in seconds.
    Kind("image-layers", r".*", keep=0),
    # A test that was killed could not remove its directory.
    Kind("test", r".*", keep=0),
    # Packages that Debian has replaced since: name_version_architecture.deb.
    Kind("apt/archives/archives", r"_[^_]*(?=_)"),
)
"""Not here: go/build, which Go itself trims (unused for five days), and go/modules and uv, which
grow with changed pins only."""

PARTS = frozenset(
    {"apt", "go", "locks", "logs", "uv", *(kind.name.partition("/")[0] for kind in KINDS)}
)
"""What the cache holds: nothing else below it is ever deleted."""


def prune() -> None:
    """Delete what is stale, and say in one line what that was."""
    with if_free(lock_file("prune")) as alone:
        if not alone:
            return
        gone: Counter[str] = Counter()
        largest = 0
        running = named_by_processes()
        for kind in KINDS:
            for entry in stale(kind, time.time()):
                if f"{entry}/" in running or not _moved(entry, kind):
                    continue
                largest += sizes([_aside(entry)])[-1]
                _delete(_aside(entry))
                gone[kind.name] += 1
    if gone:
        what = ", ".join(f"{count} of {name}" for name, count in gone.items())
        # Less where others link to the same files.
        much = f"up to {largest / 1e6:.0f} MB"
        console.print(f"    freed {much} of {paths.CACHE}: {what}", markup=False)


def stale(kind: Kind, now: float) -> Iterator[Path]:
    """Yield the entries of a kind that have had their time; ``now`` is in seconds since 1970."""
    groups: dict[str, list[tuple[float, Path]]] = defaultdict(list)
    for entry in list((paths.CACHE / kind.name).glob("*")):
        try:
            used = entry.lstat().st_mtime
        except FileNotFoundError:
            continue
        if unfinished_key(entry.name) and now - used > DAY_SECONDS:
            yield entry
        elif entry.name[0] != "." and (entry.is_dir() or entry.suffix == ".deb"):
            groups[re.sub(kind.changing, "", entry.name, count=1)].append((used, entry))
    for group in groups.values():
        for used, entry in sorted(group, reverse=True)[kind.keep :]:
            if now - used > DAY_SECONDS:
                yield entry


def unfinished_key(name: str) -> str:
    """Return the key of a build that was killed, from the name of its directory; '' for others.

    (See cache.cached, which makes them, and _aside.)
    """
    found = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", name)
    return found[1] if found else ""


def _aside(entry: Path) -> Path:
    return entry if entry.name[0] == "." else entry.with_name(f".{entry.name}.outdated")


def _moved(entry: Path, kind: Kind) -> bool:
    """Take an entry out of sight unless somebody builds it; nobody finds it half deleted then."""
    key = unfinished_key(entry.name) or entry.name
    with if_free(
        lock_file("apt-cache" if kind.name.startswith("apt/") else f"{kind.name}-{key}")
    ) as free:
        if free:
            try:
                entry.rename(_aside(entry))
            except OSError:
                return False
        return free


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def sizes(entries: Sequence[Path]) -> list[int]:
    """Return how many bytes of disk each entry takes, and all together, a file with links once."""
    command = ["du", "--summarize", "--total", "--block-size=1", *entries]
    # Its status tells of files that go meanwhile.
    lines = processes.run(command).stdout.splitlines()
    return [int(line.split()[0]) for line in lines]


def named_by_processes(leave_out: frozenset[int] = frozenset()) -> str:
    """Return the programs, command lines and working directories of all processes, as one text."""
    found = []
    for process in psutil.process_iter(["cmdline", "exe", "cwd"]):
        if process.pid not in leave_out:
            # A fact is None where the process has ended or is the kernel's.
            facts = process.info
            found += [*(facts["cmdline"] or []), f"{facts['exe']}/", f"{facts['cwd']}/"]
    return "\0".join(found)


def clean() -> None:
    """Delete the whole cache, after saying what it holds.

    Raises UserError while something runs from it, or when the answer on a terminal is no.
    """
    if f"{paths.CACHE}/" in named_by_processes(_own_family()):
        raise UserError(
            f"something runs from {paths.CACHE}: stop the clusters (`make down`, for another one "
            "`CLUSTER_NAME=name make down`) and other commands of this project first"
        )
    parts = sorted(part for part in paths.CACHE.glob("*") if part.name in PARTS)
    *each, total = sizes(parts)
    for part, size in zip(parts, each, strict=True):
        console.print(f"{size / 1e6:9.0f} MB  {part}", markup=False)
    console.print(f"{total / 1e6:9.0f} MB  together: the next `make run` makes it all again")
    if not confirmed("delete it?"):
        raise UserError("nothing was deleted")
    for part in parts:
        # Go makes its modules read-only.
        subprocess.run(["chmod", "-R", "u+w", part], check=False)
        _delete(part)


def _own_family() -> frozenset[int]:
    """Return this process and those that wait for it: make, the shell of tools/python."""
    own = psutil.Process()
    return frozenset(process.pid for process in (own, *own.parents()))
