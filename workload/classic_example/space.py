"""Room on the volume that a result goes to: asked for before it is made, named when it runs out."""

import errno
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from classic_example.errors import WorkloadError

VARIABLE = "MIN_FREE_BYTES"
# What is to stay free besides the files themselves. The next steps of a run write a model of 90 MB,
# and the other runs of the volume do so at the same time.
MIN_FREE_BYTES = 256 * 1024 * 1024
WAY_OUT = "remove what is not needed from the volume or enlarge it (storage.size)"


def place(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    whole = path.absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


def require_space(sizes: Mapping[Path, int]) -> None:
    """Make sure that files of so many bytes fit beside what is there, and MIN_FREE_BYTES more.

    Files that they replace do not count: both are there for a moment. Raises WorkloadError when
    they do not fit, or the variable MIN_FREE_BYTES is no number of bytes.
    """
    text = os.environ.get(VARIABLE, "").strip() or str(MIN_FREE_BYTES)
    if not text.isdecimal():
        raise WorkloadError(f"{VARIABLE}={text!r} is not a whole number of bytes; 0 asks for none")
    margin, wanted = int(text), Counter[int]()
    for path, size in sizes.items():
        wanted[place(path).stat().st_dev] += size
    for path in sizes:
        volume, size = os.statvfs(place(path)), wanted[place(path).stat().st_dev]
        free = volume.f_bavail * volume.f_frsize
        # Some file systems do not know their size.
        if volume.f_blocks and free < size + margin:
            raise WorkloadError(
                f"not enough space on the volume of {path}: {free:,} bytes are free, "
                f"{size + margin:,} are needed ({size:,} to write, {margin:,} to stay free); "
                f"{WAY_OUT}, or lower {VARIABLE}"
            )


def full_number(error: BaseException | None) -> int | None:
    """Return ENOSPC or EDQUOT when an error, or one that it came from, means it; else None.

    By its text where there is no more: safetensors and tokenizers (Rust), shutil.copytree and
    MLflow's threads hand over nothing else.
    """
    while error is not None:
        for number in (errno.ENOSPC, errno.EDQUOT):
            texts = (os.strerror(number), f"os error {number}")
            if getattr(error, "errno", None) == number or any(one in str(error) for one in texts):
                return number
        error = error.__cause__ or error.__context__
    return None


def full_volume(path: Path, number: int) -> WorkloadError:
    """Return the error to raise when `path` could not be written: the number says why."""
    volume, free = os.statvfs(place(path)), ""
    if volume.f_blocks:
        free = f"; {volume.f_bavail * volume.f_frsize:,} bytes are free"
        if volume.f_files and not volume.f_favail:
            free += ", but no more files (inodes)"
    return WorkloadError(f"cannot write {path}: {os.strerror(number)}{free}; {WAY_OUT}")
