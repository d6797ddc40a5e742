"""Many images in one file, for a place that reaches no registry but its own.

The file is a tar: a directory for each image as skopeo's ``dir:`` has it, which changes no digest,
and ``images.json``, name -> directory. Debian's skopeo talks to registries (logins: `skopeo login`,
other settings: containers-registries.conf(5)).
"""

import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlctl.base.errors import UserError, output
from mlctl.base.packages import ensure_packages
from mlctl.base.progress import Phase

_BOTH = re.compile(r":[^/@]+@")
"""A tag that a digest follows: skopeo takes one of them."""


def save(file: Path, names: Sequence[str], layouts: Mapping[str, Path], phase: Phase) -> None:
    """Write images into a tar: those of ``layouts`` from there, others from their registries.

    An image with a digest comes for all its platforms, as the digest may be that of their list.

    Raises UserError when a registry does not give one; then there is no file.
    """
    with _beside(file) as place:
        blobs: dict[str, Path] = {}
        numbers = {name: str(number) for number, name in enumerate(names)}
        for name, number in numbers.items():
            phase.note(f"fetching {name}")
            source = (
                f"oci:{layouts[name]}" if name in layouts else f"docker://{_BOTH.sub('@', name)}"
            )
            _copy(*(["--all"] if "@" in name else []), source, f"dir:{place / number}")
            for path in (place / number).iterdir():
                # Blobs are called as their digests are; tar writes a linked file once.
                if re.fullmatch("[0-9a-f]{64}", path.name):
                    first = blobs.setdefault(path.name, path)
                    if first != path:
                        path.unlink()
                        os.link(first, path)
        (place / "images.json").write_text(json.dumps(numbers))
        phase.note(f"writing {file}")
        with tarfile.open(place / "tar", "w") as tar:
            for name in ["images.json", *numbers.values()]:
                tar.add(place / name, name)
        (place / "tar").rename(file)


@contextmanager
def opened(file: Path) -> Iterator[dict[str, Path]]:
    """Give name -> directory of the images in a tar of ``save``.

    Raises UserError when it is no such file.
    """
    with _beside(file) as place:
        try:
            with tarfile.open(file) as tar:
                tar.extractall(place, filter="data")
            numbers = json.loads((place / "images.json").read_bytes())
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{file} is no archive of `make images-save`: {error}") from None
        yield {name: place / number for name, number in numbers.items()}


def push(directory: Path, target: str) -> None:
    """Copy an image of ``opened`` to its place in a registry, its digest unchanged.

    Raises UserError when the registry refuses.
    """
    # Of both, the tag: it keeps the registry from sweeping the image away.
    name = target.partition("@")[0] if _BOTH.search(target) else target
    _copy("--all", "--preserve-digests", f"dir:{directory}", f"docker://{name}")


def _copy(*words: str) -> None:
    ensure_packages("copying images", ["skopeo"])
    output(["skopeo", "--insecure-policy", "copy", "--quiet", *words], f"copying to {words[-1]}")


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """Give a directory on the file's disk: images are gigabytes."""
    with tempfile.TemporaryDirectory(dir=file.resolve().parent, prefix=".images-") as place:
        yield Path(place)
