"""Images that a test builds on others, kept in the cache as those are."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlctl.base.cache import cached, digest
from mlctl.base.paths import CACHE, ROOT
from mlctl.base.progress import Phase
from mlctl.builder import buildah, oci
from mlctl.builder.build import KIND, Entry, base_image
from mlctl.builder.buildah import Foundation
from mlctl.builder.catalog import Recipe
from mlctl.builder.containerfile import parse
from tools.in_image.container import Image, open_image

SUITE = "bookworm"
BASE = f"ARG BASE_IMAGE=docker.io/library/debian:{SUITE}-slim\nFROM ${{BASE_IMAGE}}\n"


def foundation(entry: Entry) -> Foundation:
    """Return an image of build/images.json as one to build on, unpacked once."""
    name = f"{entry['repository']}:{entry['tag']}"

    def unpack(directory: Path) -> None:
        shutil.copytree(entry["layout"], directory / "layout", copy_function=os.link)
        shutil.copy(base_image(SUITE).directory / "sources.list", directory)
        phase, store = Phase(name), directory / "store"
        buildah.pull_base(directory / "layout", store, name, _log("foundation"), phase)

    key = digest(entry["digest"])
    return Foundation(name, cached(KIND, f"foundation-{key}", unpack))


def derived(name: str, steps: str, below: Foundation, files: Sequence[str] = ()) -> Image:
    """Return the image that the steps of a Containerfile make of another.

    ``files`` are what they copy, named from the checkout's root.

    Raises UserError with the end of the log when a step fails.
    """
    text = BASE + steps
    key = digest(text, below.name, *(ROOT / file for file in files))

    def build(directory: Path) -> None:
        context = directory / "context"
        context.mkdir()
        for file in files:
            (context / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, context / file)
        (context / "Containerfile").write_text(text)
        recipe = Recipe(name, parse(context / "Containerfile"), context)
        made = f"localhost/test/{name}:{key}"
        built = buildah.build(recipe, made, directory, [below], _log(name), Phase(name))
        oci.write_layout(directory / "layout", made, built)
        buildah.discard(directory, keep_store=False)
        shutil.rmtree(context)

    return open_image(cached(KIND, f"{name}-{key}", build) / "layout")


def debian_base() -> Foundation:
    """Return the base of this project's images, which is there once one of them was built."""
    return base_image(SUITE)


def _log(name: str) -> Path:
    log = CACHE / "logs" / f"test-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    return log
