"""The image of every pod's first process, made with the Go that makes the node."""

from pathlib import Path

from mlctl.base.cache import digest
from mlctl.base.progress import Phase, Phases, run
from mlctl.builder import oci
from mlctl.builder.build import Entry, without_recipe
from mlctl.builder.catalog import LAYOUT, repository
from mlctl.builder.go import build_environment
from mlctl.cluster.embedded.binary import SOURCE, find_go

NAME, VERSION = "pause", "1"
REPOSITORY = repository(NAME)


def pause(phases: Phases) -> Entry:
    """Return the entry of the pause image. Needs Go only, and no other image.

    Raises UserError when there is no Go and none can be fetched.
    """
    return without_recipe(NAME, VERSION, digest(LAYOUT, SOURCE / NAME), phases, _make)


def _make(directory: Path, log: Path, phase: Phase) -> oci.Image:
    go, _ = find_go()
    rootfs = directory / "rootfs"
    rootfs.mkdir()
    build = [go, "build", "-ldflags=-s -w", "-o", str(rootfs / NAME), f"./{NAME}"]
    run(build, log=log, phase=phase, env=build_environment(go), cwd=SOURCE)
    layer = directory / "layer.tar"
    oci.write_layer(layer, rootfs)
    config = {"Entrypoint": [f"/{NAME}"], "User": "65535:65535", "WorkingDir": "/"}
    return oci.image(config, [oci.blob(layer)], comment="mlctl/cluster/embedded/node/pause")
