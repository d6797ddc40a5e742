"""Build a Containerfile with Debian's buildah: no daemon, no container runtime, no registry."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlctl.base.paths import CACHE
from mlctl.base.progress import Phase
from mlctl.builder import network, oci
from mlctl.builder.catalog import Recipe
from mlctl.builder.debian import BuildApt
from mlctl.builder.isolation import can_overlay, run_isolated


@cache
def storage_driver() -> str:
    """Return buildah's storage driver: overlay where the cache's file system can carry it."""
    return "overlay" if can_overlay(CACHE) else "vfs"


def command(store: Path, *extra: str) -> list[str]:
    """Return the start of a buildah command line whose images live below ``store``."""
    return [
        "buildah",
        *("--root", str(store / "root")),
        *("--runroot", str(store / "run")),
        *("--storage-driver", storage_driver()),
        *extra,
    ]


def pull_base(layout: Path, store: Path, name: str, log: Path, phase: Phase) -> None:
    """Unpack the base image once, into a store that builds read."""
    store.mkdir()
    # buildah names what it pulls after the path, which is a temporary one: a name is added.
    script = 'layout=$1; name=$2; shift 2; "$@" tag "$("$@" pull --quiet "$layout")" "$name"'
    tag = name.rpartition(":")[2]
    words = ["sh", "-ceux", script, "sh", f"oci:layout:{tag}", name, *command(store)]
    run_isolated(words, log=log, phase=phase, env=_env(store), cwd=layout.parent)
    shutil.rmtree(store / "run")
    shutil.rmtree(store / "tmp")


@dataclass(frozen=True)
class Foundation:
    """A finished image that others are built on: a layout, and a store that builds read."""

    name: str
    directory: Path

    @property
    def layout(self) -> Path:
        """The image as write_layout wrote it."""
        return self.directory / "layout"

    @property
    def store(self) -> Path:
        """The image unpacked, as buildah keeps images."""
        return self.directory / "store"


def build(
    recipe: Recipe,
    name: str,
    directory: Path,
    foundations: Sequence[Foundation],
    log: Path,
    phase: Phase,
) -> oci.Image:
    """Build a staged recipe, working below ``directory``; the blobs of the result are files there.

    ``foundations`` is the image to build on, and those that it was built on, down to the base.
    One layer comes on top of it; its own layers are linked, not written again.

    Raises UserError with the end of the log when a step of the Containerfile fails.
    """
    store, out = directory / "store", directory / "out"
    store.mkdir()
    network.make_toolbox(directory / "toolbox")
    apt = BuildApt(
        directory / "apt",
        recipe.suite(),
        foundations[-1].directory / "sources.list",
    )
    mounts = {
        **apt.mounts(),
        directory / "toolbox": f"{network.TOOLBOX}:ro",
        network.uv_cache(): network.UV_CACHE,
    }
    build = [
        *command(store),
        *(word for option in _stores(foundations) for word in ("--storage-opt", option)),
        "build",
        *("--isolation", "chroot"),
        *("--network", "host"),
        *("--format", "oci"),
        # One layer on top of the foundation: nothing is written twice.
        "--layers=false",
        "--pull-never",
        *("--build-arg", f"BASE_IMAGE={foundations[0].name}"),
        *(word for path, place in mounts.items() for word in ("--volume", f"{path}:{place}")),
        *("--file", str(recipe.containerfile.path)),
        *("--tag", name),
        str(recipe.root),
    ]
    run_isolated(build, log=log, phase=phase, env=_env(store))
    apt.keep()
    oci.link_layers(oci.read_layout(foundations[0].layout), out)
    _export(store, foundations, name, out, log, phase)
    return oci.from_builder(out)


def _export(
    store: Path, foundations: Sequence[Foundation], name: str, out: Path, log: Path, phase: Phase
) -> None:
    """Write an image of a store to a layout directory, but for the layers that are there."""
    # buildah could write it too, but compresses every layer, or copies every layer.
    options = ",".join(_stores(foundations))
    place = f"[{storage_driver()}@{store / 'root'}+{store / 'run'}:{options}]"
    source, target = f"containers-storage:{place}{name}", f"oci:{out.name}:new"
    copy = [
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        "--dest-oci-accept-uncompressed-layers",
    ]
    run_isolated([*copy, source, target], log=log, phase=phase, env=_env(store), cwd=out.parent)


def _stores(foundations: Sequence[Foundation]) -> list[str]:
    """Return the storage options that name the stores to read from."""
    return [f"{storage_driver()}.imagestore={one.store / 'root'}" for one in foundations]


def _env(store: Path) -> dict[str, str]:
    temporary = store / "tmp"
    temporary.mkdir(exist_ok=True)
    return os.environ | {"TMPDIR": str(temporary), "BUILDAH_ISOLATION": "chroot"}


def discard(directory: Path, *, keep_store: bool) -> None:
    """Delete the working files of a build; the store stays where others will be built on it."""
    names = ("out", "apt", "toolbox", "store/run", "store/tmp")
    for name in names if keep_store else (*names, "store"):
        shutil.rmtree(directory / name, ignore_errors=True)
