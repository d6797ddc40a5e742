"""Room on the volume that a result goes to: asked for before it is made, named when it runs out."""

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from classic_example.errors import WorkloadError

VARIABLE = "MIN_FREE_BYTES"
# What is to stay free besides the files themselves. The next steps of a run write a model of 90 MB,
# and the other runs of the volume do so at the same time.
MIN_FREE_BYTES = 256 * 1024 * 1024
FULL = (errno.ENOSPC, errno.EDQUOT)
WAY_OUT = "remove what is not needed from the volume or enlarge it (storage.size)"


def min_free_bytes() -> int:
    """Return MIN_FREE_BYTES of the environment, 256 MiB when it is not set.

    Raises:
        WorkloadError: it is no number of bytes.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return MIN_FREE_BYTES
    if not text.isdecimal():
        raise WorkloadError(f"{VARIABLE}={text!r} is not a whole number of bytes; 0 asks for none")
    return int(text)


def place(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    whole = path.absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


def room(path: Path) -> os.statvfs_result | None:
    """Return what the file system of a path says of itself, None when it does not know its size."""
    found = os.statvfs(place(path))
    return found if found.f_blocks else None


def require_space(sizes: Mapping[Path, int]) -> None:
    """Make sure that files of so many bytes fit beside what is there, and MIN_FREE_BYTES more.

    Files that they replace do not count: both are there for a moment.

    Raises:
        WorkloadError: they do not fit; the text says how much is free and how much is needed.
    """
    margin = min_free_bytes()
    by_device: dict[int, dict[Path, int]] = {}
    for path, size in sizes.items():
        by_device.setdefault(place(path).stat().st_dev, {})[path] = size
    for parts in by_device.values():
        first, size = next(iter(parts)), sum(parts.values())
        found = room(first)
        free = found.f_bavail * found.f_frsize if found else None
        if free is not None and free < size + margin:
            raise WorkloadError(
                f"not enough space on the volume of {first}: {free:,} bytes are free, "
                f"{size + margin:,} are needed ({size:,} to write, {margin:,} to stay free); "
                f"{WAY_OUT}, or lower {VARIABLE}"
            )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def full_number(error: BaseException) -> int | None:
    """Return ENOSPC or EDQUOT when an error means one of them, else None.

    By its text where there is no more: safetensors and tokenizers (Rust), shutil.copytree and
    MLflow's threads hand over nothing else.
    """
    for one in chain(error):
        for number in FULL:
            texts = (os.strerror(number), f"os error {number}")
            if getattr(one, "errno", None) == number or any(text in str(one) for text in texts):
                return number
    return None


def full_volume(path: Path, number: int) -> WorkloadError:
    """Return the error to raise when `path` could not be written: the number says why."""
    found = room(path)
    free = ""
    if found:
        free = f"; {found.f_bavail * found.f_frsize:,} bytes are free"
        if found.f_files and not found.f_favail:
            free += ", but no more files (inodes)"
    return WorkloadError(f"cannot write {path}: {os.strerror(number)}{free}; {WAY_OUT}")
