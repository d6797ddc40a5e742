"""Build results kept outside the checkout, keyed by the content of what they are made from."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mlctl.base import processes
from mlctl.base.paths import CACHE

LOCK_POLL_SECONDS = 0.2


def digest(*inputs: Path | str | bytes) -> str:
    """Return the first 12 hex digits of a SHA-256 over the inputs, in order.

    A path stands for its content: a file for its bytes and mode, a directory for the
    relative names, modes and bytes of all files below it (caches of Python left out).
    """
    total = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            for file in _files(item):
                name = file.relative_to(item).as_posix() if item.is_dir() else file.name
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                executable = os.access(file, os.X_OK)
                total.update(f"file {name} {executable} {content}\n".encode())
        else:
            data = item.encode() if isinstance(item, str) else item
            total.update(b"text %d " % len(data) + data + b"\n")
    return total.hexdigest()[:12]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc":
            yield file


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory CACHE/kind/key, made by ``build`` unless it is there already.

    ``build`` gets an empty directory beside the final one, which is renamed when it returns:
    a build that fails or is killed leaves nothing that a later call would take for a result.
    Two processes that want the same key build it once.
    """
    final = CACHE / kind / key
    if final.is_dir():
        final.touch()
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(f"{kind}-{key}"):
        if final.is_dir():
            return final
        # Of a build that had no time to clean up; none is under way while the lock is held.
        for stale in final.parent.glob(f".{key}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=final.parent))
        work.chmod(0o755)
        try:
            build(work)
            work.rename(final)
        finally:
            if work.exists():
                shutil.rmtree(work, ignore_errors=True)
    return final


@contextmanager
def lock(name: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock on this machine until the block ends; released by the kernel on a crash.

    ``on_wait`` is called first when another process holds it.
    """
    lock_file(name).parent.mkdir(parents=True, exist_ok=True)
    with lock_file(name).open("w") as file:
        if not _try_lock(file):
            on_wait()
            # Tried again and again: a thread that sleeps in the kernel could not be interrupted.
            while not _try_lock(file):
                processes.check()
                time.sleep(LOCK_POLL_SECONDS)
        yield


@contextmanager
def if_free(file: Path) -> Iterator[bool]:
    """Hold a lock file until the block ends if nobody else does; gives whether that is so."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        yield _try_lock(opened)


def lock_file(name: str) -> Path:
    """Return the file behind ``lock(name)``."""
    return CACHE / "locks" / name


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
