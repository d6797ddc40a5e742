"""Build the images, each once for each content of its inputs, and write build/images.json."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mlctl.base import processes
from mlctl.base.cache import cached, digest, lock
from mlctl.base.errors import UserError
from mlctl.base.packages import ensure_packages, missing_packages
from mlctl.base.paths import CACHE, IMAGES_LOCK
from mlctl.base.progress import Phase, Phases
from mlctl.base.prune import prune
from mlctl.base.versions import pins
from mlctl.builder import buildah, debian, go, oci
from mlctl.builder.buildah import Foundation
from mlctl.builder.catalog import BASE, LAYOUT, Recipe, recipes, repository

HOST_PACKAGES = [
    "buildah",
    "debian-archive-keyring",
    "mmdebstrap",
    "mount",
    "skopeo",
    "util-linux",
]
"""Debian packages that a build needs on this machine."""

AT_ONCE = 2
"""Builds that run beside each other: one computes while another waits for the disk or the net."""

LARGE_ONES = ["classic-example", "classic-example-environment", "airflow", "airflow3", "postgres"]
"""They start first; the small ones fill the second place meanwhile."""

EXPORTER = "statsd-exporter"
"""What a release with metrics runs besides."""

KIND = "images"
LOGS = CACHE / "logs"

Entry = dict[str, str]
"""One image of build/images.json: repository, tag, digest, layout (its directory)."""


def build_all(
    phases: Phases,
    wanted: Iterable[str] | None = None,
    ready: Callable[[dict[str, Entry]], None] = lambda _: None,
) -> dict[str, Entry]:
    """Return the entries of the named images (default: all), building those that changed.

    Writes all entries that are known to build/images.json. ``ready`` is called with entries as
    soon as their images are there, from several threads: first with all that were built before.

    Raises UserError for an unknown name, or a build that fails.
    """
    known = recipes()
    names = [*known, *ALONE]
    chosen = list(wanted) if wanted is not None else names
    for name in chosen:
        if name not in names:
            raise UserError(f"no image {name!r}; there are: {', '.join(names)}")
    # The keys of this moment count for the whole call: somebody may be editing.
    keys = {name: recipe.key() for name, recipe in known.items() if name in chosen}
    for name in keys:
        _use(known[name])
    missing = [name for name, key in keys.items() if not _final(name, key).is_dir()]
    entries = {name: _entry(name, key) for name, key in keys.items() if name not in missing}
    ready(dict(entries))
    if missing:
        prepare_machine(phases)
        bases = {suite: _base(suite, phases) for suite in {known[name].suite() for name in missing}}
        foundations = {one.below.name for one in known.values() if one.below}

        def build(name: str) -> None:
            below = [bases[known[name].suite()]]
            for one in known[name].chain():
                key = keys.get(one.name) or one.key()
                below = [_build(one, key, below, phases, one.name in foundations), *below]
                if one.name in missing:
                    entries[one.name] = _entry(one.name, key)
                    ready({one.name: entries[one.name]})

        # A stage is built on the way to the image above it.
        below = {one.name for name in missing for one in known[name].chain()[:-1]}
        with processes.thread_pool(AT_ONCE) as pool:
            builds = [pool.submit(build, name) for name in sorted({*missing} - below, key=_order)]
            for one in builds:
                one.result()
    for name in ALONE.keys() & {*chosen}:
        entries[name] = ALONE[name](phases)
        ready({name: entries[name]})
    _write(entries)
    if missing:
        prune()
    return entries


def prepare_machine(phases: Phases) -> None:
    """Install the Debian packages that a build needs.

    Raises UserError when that is refused or fails.
    """
    if missing_packages(HOST_PACKAGES):
        with phases.phase("Images: packages of this machine"):
            ensure_packages("building the images", HOST_PACKAGES)


def _final(name: str, key: str) -> Path:
    return CACHE / KIND / f"{name}-{key}"


def _entry(name: str, key: str) -> Entry:
    directory = _final(name, key)
    found: Entry = json.loads((directory / "image.json").read_text())
    return found | {"layout": str(directory / "layout")}


def _use(recipe: Recipe) -> None:
    """Note that an image is in use, and what it is built on: the cache forgets what is not."""
    directories = [_final(one.name, one.key()) for one in recipe.chain()]
    for directory in (base_image(recipe.suite()).directory, *directories):
        with suppress(FileNotFoundError):
            os.utime(directory)


def _order(name: str) -> int:
    return LARGE_ONES.index(name) if name in LARGE_ONES else len(LARGE_ONES)


def _write(entries: dict[str, Entry]) -> None:
    with lock("images.json"):
        # An image goes when the cache is emptied.
        kept = {
            name: entry
            for name, entry in built().items()
            if "layout" in entry and Path(entry["layout"]).is_dir()
        }
        text = json.dumps(kept | entries, indent=2, sort_keys=True) + "\n"
        IMAGES_LOCK.parent.mkdir(parents=True, exist_ok=True)
        fresh = IMAGES_LOCK.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(IMAGES_LOCK)


def _log(name: str) -> Path:
    log = LOGS / f"image-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    return log


def base_image(suite: str) -> Foundation:
    """Return the base image of a Debian suite, which may still have to be built."""
    key = debian.base_key(suite)
    return Foundation(f"{repository(BASE)}:{suite}-{key}", _final(BASE, key))


def _base(suite: str, phases: Phases) -> Foundation:
    base = base_image(suite)
    if base.directory.is_dir():
        return base
    with phases.phase(f"Images: base, {suite}") as phase:

        def make(directory: Path) -> None:
            log = _log(f"{BASE}-{suite}")
            debian.build_base(directory, suite, phase, log, base.name)
            buildah.pull_base(directory / "layout", directory / "store", base.name, log, phase)

        cached(KIND, base.directory.name, make)
    return base


def _build(
    recipe: Recipe, key: str, below: list[Foundation], phases: Phases, foundation: bool
) -> Foundation:
    """Build a recipe on ``below``, the image that it stands on first.

    ``foundation``: others will be built on it.
    """
    tag = f"{recipe.version()}-{key}"
    name = f"{repository(recipe.name)}:{tag}"

    def make(directory: Path, phase: Phase) -> None:
        context = directory / "context"
        context.mkdir()
        staged = recipe.stage(context)
        if staged.key() != key:
            raise UserError(f"the files of image {recipe.name} have just changed: try again")
        built = buildah.build(staged, name, directory, below, _log(recipe.name), phase)
        _keep(directory, recipe.name, tag, built)
        buildah.discard(directory, keep_store=foundation)
        shutil.rmtree(context)

    directory = _final(recipe.name, key)
    if not directory.is_dir():
        with phases.phase(f"Images: {recipe.name}") as phase:
            cached(KIND, directory.name, lambda directory: make(directory, phase))
    return Foundation(name, directory)


def _keep(directory: Path, name: str, tag: str, built: oci.Image) -> None:
    oci.write_layout(directory / "layout", f"{repository(name)}:{tag}", built)
    entry = {"repository": repository(name), "tag": tag, "digest": built.digest}
    (directory / "image.json").write_text(json.dumps(entry))


def without_recipe(
    name: str,
    version: str,
    key: str,
    phases: Phases,
    make: Callable[[Path, Path, Phase], oci.Image],
) -> Entry:
    """Return the entry of an image that no Containerfile describes; ``key`` is its content's.

    ``make`` gets an empty directory, a log and a phase; it is called unless the image is built.
    """
    directory = _final(name, key)

    def build(work: Path, phase: Phase) -> None:
        scratch = work / "scratch"
        scratch.mkdir()
        _keep(work, name, f"{version}-{key}", make(scratch, _log(name), phase))
        shutil.rmtree(scratch)

    if not directory.is_dir():
        with phases.phase(f"Images: {name}") as phase:
            cached(KIND, directory.name, lambda work: build(work, phase))
    os.utime(directory)
    return _entry(name, key)


def _exporter(phases: Phases) -> Entry:
    pin = pins()["go"][EXPORTER]

    def make(directory: Path, _log: Path, phase: Phase) -> oci.Image:
        rootfs = directory / "rootfs"
        rootfs.mkdir()
        shutil.copy2(go.program(EXPORTER, phase), rootfs)
        layer = directory / "layer.tar"
        oci.write_layer(layer, rootfs)
        config = {"Entrypoint": [f"/{EXPORTER}"], "User": "65534:65534", "WorkingDir": "/"}
        return oci.image(config, [oci.blob(layer)], comment=f"{pin['module']}@{pin['version']}")

    key = digest(LAYOUT, json.dumps(pin, sort_keys=True))
    return without_recipe(EXPORTER, pin["version"].removeprefix("v"), key, phases, make)


ALONE = {EXPORTER: _exporter}
"""Images without a Containerfile that `make images` builds as well."""


def built() -> dict[str, Entry]:
    """Return the entries of build/images.json, none before the first build."""
    return json.loads(IMAGES_LOCK.read_text()) if IMAGES_LOCK.exists() else {}
