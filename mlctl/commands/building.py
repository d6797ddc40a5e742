"""What a release is made of, alone: the chart, the images, and the cache that keeps them."""

import json
from pathlib import Path

from mlctl.base.errors import UserError
from mlctl.base.names import RELEASE
from mlctl.base.progress import Phases, console, show_table
from mlctl.base.prune import clean
from mlctl.builder import oci
from mlctl.builder.build import build_all, built
from mlctl.builder.catalog import recipes
from mlctl.release.chart import dependency
from mlctl.release.release import package_chart
from mlctl.stack import Stack


def chart() -> None:
    """Fetch the locked dependency of the chart."""
    print(dependency())


def package() -> None:
    """Package the chart into build/."""
    print(package_chart())


def uninstall(stack: Stack) -> None:
    """Remove the release; claims with data stay."""
    stack.release().uninstall()
    console.print(f"the release {RELEASE} is gone; its claims and their data stay")


def images(names: tuple[str, ...]) -> None:
    """Build the named images, all if none is named (cached by content)."""
    entries = build_all(Phases(), names or None)
    sizes = {
        name: sum(oci.read_layout(Path(entry["layout"])).blobs().values()) / 1e6
        for name, entry in entries.items()
    }
    show_table(
        ("image", "MB", "full name", "digest"),
        (
            (name, f"{sizes[name]:.1f}", f"{one['repository']}:{one['tag']}", one["digest"][:19])
            for name, one in entries.items()
        ),
    )


def list_images() -> None:
    """The images that there are."""
    print("\n".join(recipes()))


def show_images() -> None:
    """Print build/images.json."""
    print(json.dumps(built(), indent=2))


def save_image(name: str, file: Path) -> None:
    """Write a built image as a tar for `docker load` or `ctr images import`."""
    layout = Path(built().get(name, {}).get("layout", "/nowhere"))
    if not layout.is_dir():
        raise UserError(f"no image {name!r} is built: tools/python -m mlctl images build {name}")
    oci.write_archive(file, [oci.read_layout(layout)])


def clean_cache() -> None:
    """Delete the cache, after saying how much it is."""
    clean()
