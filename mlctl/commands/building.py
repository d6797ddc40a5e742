"""What a release is made of, alone: the chart, the images, and the cache that keeps them."""

import json
from pathlib import Path

from mlctl.base.errors import UserError
from mlctl.base.names import RELEASE
from mlctl.base.progress import Phases, console, show_table
from mlctl.base.prune import clean
from mlctl.builder import archive, oci
from mlctl.builder.build import build_all, built
from mlctl.release import images as release_images
from mlctl.release.chart import dependency
from mlctl.release.release import is_local, package_chart
from mlctl.stack import Stack


def chart() -> None:
    """Fetch the locked dependency of the chart."""
    print(dependency())


def package(key: str | None, keyring: Path | None, passphrase: Path | None) -> None:
    """Package the chart into build/; with KEY and KEYRING it is signed."""
    print(package_chart(key, keyring, passphrase))


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
    """The images that a release with ENV and VALUES runs, by full name."""
    print("\n".join(release_images.of_release(built())))


def show_images() -> None:
    """Print build/images.json."""
    print(json.dumps(built(), indent=2))


def save_image(name: str, file: Path) -> None:
    """Write a built image as a tar for `docker load` or `ctr images import`."""
    layout = Path(built().get(name, {}).get("layout", "/nowhere"))
    if not layout.is_dir():
        raise UserError(f"no image {name!r} is built: tools/python -m mlctl images build {name}")
    oci.write_archive(file, [oci.read_layout(layout)])


def save_all_images(file: Path) -> None:
    """Write all images of `images list` into one tar, for a place without a network."""
    phases = Phases()
    entries = build_all(phases) if is_local() else {}
    names = release_images.of_release(entries)
    layouts = {f"{one['repository']}:{one['tag']}": Path(one["layout"]) for one in entries.values()}
    with phases.phase(f"Images: save into {file}") as phase:
        archive.save(file, names, layouts, phase)
        phase.say(f"{len(names)} images, {file.stat().st_size / 1e6:.0f} MB")


def load_images(file: Path, registry: str) -> None:
    """Push the images of a tar of `images save-all` into a registry, and say what to set."""
    with Phases().phase(f"Images: load into {registry}") as phase:
        with archive.opened(file) as images:
            for name, directory in images.items():
                target = release_images.behind(registry, name)
                phase.say(target)
                archive.push(directory, target)
    console.print(f"in your values: {{global: {{imageRegistry: {registry}}}}}", markup=False)


def clean_cache() -> None:
    """Delete the cache, after saying how much it is."""
    clean()
