"""Outputs that appear whole or not at all: written beside their place, then renamed."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from classic_example.errors import WorkloadError


def cannot_write(path: Path, error: OSError) -> Exception:
    """Return the error to raise for an OSError met while `path` was written.

    Network clients derive their errors from OSError too: those are given back as they are.
    """
    if error.errno is None or isinstance(error, ConnectionError):
        return error
    reason = error.strerror or str(error)
    return WorkloadError(
        f"cannot write {path}: {reason} (running as uid {os.getuid()}); "
        "check the volume's permissions and free space"
    )


def partial_name(target: Path) -> Path:
    """Return the place beside `target` where it is prepared.

    The name is fixed, so what a killed attempt left there is found and removed by the next one.
    """
    return target.with_name(f".{target.name}.partial")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `target` when the block ends well.

    On any error the directory is removed and `target` stays as it was.

    Raises:
        WorkloadError: the place cannot be written.
    """
    partial = partial_name(target)
    previous = target.with_name(f".{target.name}.previous")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, previous):
            remove(leftover)
        partial.mkdir()
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                flush(path)
        # rename() cannot replace a directory that has content, so the old one steps aside first.
        if target.exists():
            target.rename(previous)
        partial.rename(target)
        remove(previous)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise cannot_write(target, error) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; the file is renamed to `target` when the block ends well.

    Raises:
        WorkloadError: the place cannot be written.
    """
    partial = partial_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        yield partial
        flush(partial)
        partial.replace(target)
    except OSError as error:
        discard(partial)
        raise cannot_write(target, error) from None
    except BaseException:
        discard(partial)
        raise


def remove(path: Path) -> None:
    """Remove a file or a directory with its content, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a file; where even that is refused, the error already on its way says more."""
    with suppress(OSError):
        path.unlink()


def flush(path: Path) -> None:
    """Force a file's content to the disk, so that the rename never comes before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_csv(target: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file as pandas would: comma, minimal quotes, line feed, UTF-8."""
    with new_file(target) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_json(target: Path, content: Any) -> None:
    """Write `content` as indented JSON."""
    with new_file(target) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one when there is no such file.

    Raises:
        WorkloadError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkloadError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise WorkloadError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
