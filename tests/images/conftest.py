"""The built images, each built and opened when the first test asks for it."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlctl.base.paths import CACHE
from mlctl.base.progress import Phases
from mlctl.builder.build import Entry, build_all
from mlctl.cluster.embedded.pause import pause
from tests.helpers.ports import free_port
from tools.in_image.container import Image, open_image


class Entries(dict[str, Entry]):
    """build/images.json: an image is built when it is asked for."""

    def __missing__(self, name: str) -> Entry:
        self[name] = pause(Phases()) if name == "pause" else build_all(Phases(), [name])[name]
        return self[name]


class Images(dict[str, Image]):
    """The same images, unpacked so that commands can run in them."""

    def __init__(self, entries: Entries) -> None:
        super().__init__()
        self.entries = entries

    def __missing__(self, name: str) -> Image:
        self[name] = open_image(Path(self.entries[name]["layout"]))
        return self[name]


@pytest.fixture(scope="session")
def entries() -> Entries:
    assert os.geteuid() == 0, "images are built and entered as root"
    return Entries()


@pytest.fixture(scope="session")
def images(entries: Entries) -> Images:
    return Images(entries)


@pytest.fixture
def disk() -> Iterator[Path]:
    """An empty directory on the cache's disk: /tmp may be memory, or an overlay itself."""
    path = CACHE / "test" / uuid.uuid4().hex
    path.mkdir(parents=True)
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


@pytest.fixture
def port() -> int:
    """A port of this machine that was free a moment ago."""
    return free_port()
