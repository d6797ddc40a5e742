"""Build a Containerfile with Debian's buildah: no daemon, no container runtime, no registry."""

import os
import shutil
from functools import cache
from pathlib import Path

from images import network, oci
from images.catalog import Recipe
from images.debian import BuildApt
from images.isolation import can_overlay, run_isolated
from tools.paths import CACHE
from tools.progress import Phase


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


def build(
    recipe: Recipe, directory: Path, base: Path, base_name: str, log: Path, phase: Phase
) -> oci.Image:
    """Build a staged recipe, working below ``directory``; the blobs of the result are files there.

    Raises UserError with the end of the log when a step of the Containerfile fails.
    """
    store, out = directory / "store", directory / "out"
    store.mkdir()
    network.make_toolbox(directory / "toolbox")
    apt = BuildApt(directory / "apt", base / "sources.list")
    mounts = {
        **apt.mounts(),
        directory / "toolbox": f"{network.TOOLBOX}:ro",
        network.uv_cache(): network.UV_CACHE,
    }
    read_only = f"{storage_driver()}.imagestore={base / 'store' / 'root'}"
    words = [
        *command(store, "--storage-opt", read_only),
        "build",
        *("--isolation", "chroot"),
        *("--network", "host"),
        *("--format", "oci"),
        # One layer on top of the base: nothing is written twice.
        "--layers=false",
        "--pull-never",
        *("--build-arg", f"BASE_IMAGE={base_name}"),
        *(word for path, place in mounts.items() for word in ("--volume", f"{path}:{place}")),
        *("--file", str(recipe.containerfile.path)),
        *("--tag", f"dir:{out}"),
        str(recipe.root),
    ]
    run_isolated(words, log=log, phase=phase, env=_env(store))
    apt.keep()
    return oci.from_directory(out)


def _env(store: Path) -> dict[str, str]:
    temporary = store / "tmp"
    temporary.mkdir(exist_ok=True)
    return os.environ | {"TMPDIR": str(temporary), "BUILDAH_ISOLATION": "chroot"}


def discard(directory: Path) -> None:
    """Delete the working files of a build."""
    for name in ("store", "out", "apt", "toolbox"):
        shutil.rmtree(directory / name, ignore_errors=True)
