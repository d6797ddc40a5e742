"""Small images in OCI layouts, made without a builder."""

from collections.abc import Sequence
from pathlib import Path

from mlctl.builder import oci


def layer(directory: Path, name: str, content: bytes) -> oci.Blob:
    """Return a layer of one file, written below a directory."""
    rootfs = directory / f"{name}.d"
    rootfs.mkdir(exist_ok=True)
    (rootfs / name).write_bytes(content)
    oci.write_layer(directory / f"{name}.layer", rootfs)
    return oci.blob(directory / f"{name}.layer")


def layout(directory: Path, name: str, layers: Sequence[oci.Blob] = ()) -> oci.Layout:
    """Return the image localhost/test/NAME:1, written below a directory."""
    built = oci.image({"User": "1:1"}, list(layers), comment="test")
    oci.write_layout(directory / f"{name}.image", f"localhost/test/{name}:1", built)
    return oci.read_layout(directory / f"{name}.image")
