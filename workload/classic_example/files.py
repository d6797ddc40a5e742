"""Outputs that appear whole or not at all: room is asked for, they are written, then renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from classic_example.errors import PostponedError, WorkloadError

# What is to stay free besides the files themselves. The next steps of a run write a model of 90 MB,
# and the other runs of the volume do so at the same time.
MIN_FREE_BYTES = 256 * 1024 * 1024
WAY_OUT = "remove what is not needed from the volume or enlarge it (storage.size)"


def cannot_write(path: Path, error: BaseException) -> BaseException:
    """Return the error to raise for one met while `path` was written.

    Errors that are not about the file are given back as they are. Network clients derive theirs
    from OSError too.
    """
    if full := full_number(error):
        return full_volume(path, full)
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, ConnectionError):
        return error
    return WorkloadError(
        f"cannot write {path}: {error.strerror or error} (running as uid {os.getuid()}); check the "
        "volume's permissions"
    )


def partial_name(target: Path) -> Path:
    """Return the place beside `target` where it is prepared.

    The name is fixed, so what a killed attempt left there is found and removed by the next one.
    """
    return target.with_name(f".{target.name}.partial")


@contextmanager
def new_files(*targets: Path, directories: bool = False) -> Iterator[list[Path]]:
    """Yield a path to write to for each target, in this order; all take their places at the end.

    With `directories` each is an empty directory. A target for which nothing was written goes. A
    full volume, or an error in the block, leaves all targets as they were. Old and new ones are
    never seen side by side: the old ones behind the first go before the first new one comes.
    Raises WorkloadError when a place cannot be written.
    """
    places = {target: partial_name(target) for target in targets}
    at: Path | None = None
    try:
        for at, partial in places.items():
            at.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            if directories:
                partial.mkdir()
        at = None
        yield list(places.values())
        for target, partial in places.items():
            at = target
            for path in (partial, *partial.rglob("*")):
                if path.is_file():
                    flush(path)
        # A file is replaced at once; a directory that has content cannot be.
        for at in targets[0 if directories else 1 :]:
            remove(at)
        for at, partial in places.items():
            if partial.exists():
                partial.replace(at)
            else:
                remove(at)
    except BaseException as error:
        begun = [target for target, partial in places.items() if partial.exists()]
        wrong = cannot_write(at or (begun or targets)[-1], error)
        for partial in places.values():
            with suppress(OSError):  # the error already on its way says more
                remove(partial)
        if wrong is error:
            raise
        raise wrong from None


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target`, as new_files does."""
    with new_files(target, directories=True) as (partial,):
        yield partial


def remove(path: Path) -> None:
    """Remove a file or a directory with its content, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file's content to the disk, so that the rename never comes before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Unfinished:
    """A file `path` that is to become `target`, whose beginning outlives a try that is killed.

    `done` is what the earlier try has kept last, when its `key` is the same; else it is empty, and
    so is the file. An error removes the beginning, as the next try would meet it again, but for a
    PostponedError. Raises WorkloadError when the place cannot be written.
    """

    def __init__(self, target: Path, key: dict[str, Any]) -> None:
        self.target, self.key = target, key
        self.path = target.with_name(f".{target.name}.begun")
        self.note = target.with_name(f".{target.name}.begun.json")

    def __enter__(self) -> "Unfinished":
        known = read_json(self.note)
        with self.naming_target():
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.kept = known.get("key") == self.key and self.path.is_file()
            if not self.kept:
                known = {"done": {}, "bytes": 0}
                self.note.unlink(missing_ok=True)
            self.done: dict[str, int] = known["done"]
            self.file = self.path.open("r+b" if self.kept else "wb", buffering=0)
            # What came after the note may be half a chunk.
            self.file.truncate(known["bytes"])
            self.file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        self.file.close()
        fault = isinstance(error, Exception) and not isinstance(error, PostponedError)
        if error is None or fault or not self.kept:
            with suppress(OSError):
                remove(self.path)
                remove(self.note)

    @contextmanager
    def naming_target(self) -> Iterator[None]:
        """Let errors say what it was that could not be written."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def write(self, data: Any) -> None:
        """Write bytes, or an Arrow buffer, behind what is there."""
        content = memoryview(data)
        with self.naming_target():
            while content:
                content = content[self.file.write(content) :]

    def keep(self, done: dict[str, int]) -> None:
        """Make sure that the next try finds all that was written until now, and `done`."""
        with self.naming_target():
            os.fsync(self.file.fileno())
        write_json(self.note, {"key": self.key, "done": done, "bytes": self.file.tell()})
        self.kept = True


def write_json(target: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with new_files(target) as (partial,):
        fill_json(partial, content)


def fill_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one when there is no such file."""
    return json_object(path.read_bytes(), path) if path.is_file() else {}


def json_object(text: str | bytes, origin: Path | str) -> dict[str, Any]:
    """Return the object that a JSON text is, or raise WorkloadError with its `origin`."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise WorkloadError(f"{origin} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise WorkloadError(f"{origin} must hold a JSON object, not {type(content).__name__}")
    return content


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    whole = path.absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


def require_space(sizes: Mapping[Path, int]) -> None:
    """Make sure that files of so many bytes fit beside what is there, and MIN_FREE_BYTES more.

    Files that they replace do not count: both are there for a moment. Raises WorkloadError when
    they do not fit, or the variable MIN_FREE_BYTES is no number of bytes.
    """
    text = os.environ.get("MIN_FREE_BYTES", "").strip() or str(MIN_FREE_BYTES)
    if not text.isdecimal():
        fault = f"MIN_FREE_BYTES={text!r} is not a whole number of bytes; 0 asks for none"
        raise WorkloadError(fault)
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
                f"{WAY_OUT}, or lower MIN_FREE_BYTES"
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
