"""Images in the OCI image layout (opencontainers/image-spec, image-layout.md).

An image is a directory: ``oci-layout``, ``index.json`` and ``blobs/sha256/*``, layers not
compressed. Images that share a layer share its file (hard links). podman, buildah and skopeo read
the directory; ``stream`` makes the tar of it that containerd, Docker >= 25 and kind read.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True)
class Blob:
    """A piece of an image: bytes at hand, or a whole file."""

    digest: str
    size: int
    source: bytes | Path

    def descriptor(self, media_type: str) -> dict[str, Any]:
        """Return the OCI content descriptor."""
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


def blob(source: bytes | Path) -> Blob:
    """Return the blob of some bytes or of a file (hashed here)."""
    if isinstance(source, bytes):
        return Blob("sha256:" + hashlib.sha256(source).hexdigest(), len(source), source)
    with source.open("rb") as file:
        hexdigest = hashlib.file_digest(file, "sha256").hexdigest()
    return Blob("sha256:" + hexdigest, source.stat().st_size, source)


def encode(document: Any) -> bytes:
    """Return canonical JSON: equal documents have equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Image:
    """An image to be written: its manifest, and every blob that the manifest names."""

    manifest: Blob
    blobs: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        """Digest of the manifest: what ``ctr images ls`` and Kubernetes call the image's."""
        return self.manifest.digest


def image(config: dict[str, Any], layers: list[Blob], *, comment: str) -> Image:
    """Return a linux/amd64 image made of uncompressed layer tars.

    ``config`` is the ``config`` object of the OCI image configuration (Env, User, ...).
    """
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        "history": [{"created_by": comment} for _ in layers],
    }
    return _image(blob(encode(document)), layers)


def _image(config: Blob, layers: list[Blob]) -> Image:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER) for layer in layers],
    }
    return Image(blob(encode(manifest)), (config, *layers))


def from_builder(directory: Path) -> Image:
    """Return the image of a layout that buildah wrote.

    The manifest is written anew without buildah's annotations, which name the base image.
    """

    def known(descriptor: dict[str, Any]) -> Blob:
        path = blob_file(directory, descriptor["digest"])
        return Blob(descriptor["digest"], descriptor["size"], path)

    (entry,) = json.loads((directory / "index.json").read_bytes())["manifests"]
    found = json.loads(blob_file(directory, entry["digest"]).read_bytes())
    wrong = {layer["mediaType"] for layer in found["layers"]} - {LAYER}
    if wrong:
        raise ValueError(f"layers are not uncompressed OCI layers: {wrong}")
    return _image(known(found["config"]), [known(layer) for layer in found["layers"]])


def blob_file(directory: Path, digest: str) -> Path:
    """Return where a layout directory keeps a blob."""
    return directory / "blobs" / "sha256" / digest.removeprefix("sha256:")


def index(manifests: Iterable[tuple[str, str, int]]) -> bytes:
    """Return index.json for ``(full image name, manifest digest, manifest size)``."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {
                    "mediaType": MANIFEST,
                    "digest": digest,
                    "size": size,
                    "platform": {"architecture": "amd64", "os": "linux"},
                    "annotations": {
                        # containerd reads the first name, everybody else the second.
                        "io.containerd.image.name": name,
                        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                    },
                }
                for name, digest, size in manifests
            ],
        }
    )


def write_layer(path: Path, rootfs: Path) -> None:
    """Write a directory as a layer: owned by root, times zero, so that equal content is equal."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as layer:
        for file in sorted(rootfs.rglob("*")):
            name = file.relative_to(rootfs).as_posix()
            layer.add(file, name, recursive=False, filter=plain)


def write_layout(directory: Path, name: str, written: Image) -> None:
    """Write one image under its full name (``localhost/...:tag``); files are linked, not copied."""
    (directory / "blobs" / "sha256").mkdir(parents=True)
    for piece in (written.manifest, *written.blobs):
        target = blob_file(directory, piece.digest)
        if isinstance(piece.source, bytes):
            target.write_bytes(piece.source)
        else:
            os.link(piece.source, target)
    (directory / "oci-layout").write_bytes(LAYOUT)
    (directory / "index.json").write_bytes(index([(name, written.digest, written.manifest.size)]))


def link_layers(layout: "Layout", directory: Path) -> None:
    """Put the layers of an image into a directory where a layout of another will be written."""
    (directory / "blobs" / "sha256").mkdir(parents=True)
    for digest in layout.layers():
        os.link(layout.blob(digest), blob_file(directory, digest))


@dataclass(frozen=True)
class Layout:
    """An image that write_layout has written."""

    directory: Path
    name: str
    digest: str

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        return blob_file(self.directory, digest)

    def document(self, digest: str) -> dict[str, Any]:
        """Return a JSON blob."""
        document: dict[str, Any] = json.loads(self.blob(digest).read_bytes())
        return document

    def config(self) -> dict[str, Any]:
        """Return the OCI image configuration."""
        return self.document(self.document(self.digest)["config"]["digest"])

    def layers(self) -> list[str]:
        """Return the digests of the layers, lowest first."""
        return [layer["digest"] for layer in self.document(self.digest)["layers"]]

    def blobs(self) -> dict[str, int]:
        """Return digest -> size in bytes of manifest, configuration and layers, in this order."""
        manifest = self.document(self.digest)
        named = (manifest["config"], *manifest["layers"])
        own = {self.digest: self.blob(self.digest).stat().st_size}
        return own | {one["digest"]: one["size"] for one in named}


def read_layout(directory: Path) -> Layout:
    """Open a layout of write_layout."""
    (entry,) = json.loads((directory / "index.json").read_bytes())["manifests"]
    return Layout(directory, entry["annotations"]["io.containerd.image.name"], entry["digest"])


def to_send(layouts: Sequence[Layout], without: Collection[str] = ()) -> dict[str, Path]:
    """Return digest -> file of what the images are made of, each blob once.

    Layers of ``without`` are left out.
    """
    found: dict[str, Path] = {}
    for layout in layouts:
        spared = {digest for digest in layout.layers() if digest in without}
        found |= {digest: layout.blob(digest) for digest in layout.blobs() if digest not in spared}
    return found


def stream(layouts: Sequence[Layout], out: BinaryIO, without: Collection[str] = ()) -> None:
    """Write images as one tar to a pipe or file: each blob once, no layer of ``without``.

    Raises BrokenPipeError when the reader has gone.
    """
    manifests = [(one.name, one.digest, one.blobs()[one.digest]) for one in layouts]
    for name, data in (("oci-layout", LAYOUT), ("index.json", index(manifests))):
        out.write(_header(name, len(data)) + data + _padding(len(data)))
    for digest, path in to_send(layouts, without).items():
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            out.write(_header("blobs/sha256/" + digest.removeprefix("sha256:"), size))
            out.flush()
            _send(out, file, size)
        out.write(_padding(size))
    out.write(bytes(2 * tarfile.BLOCKSIZE))
    out.flush()


def write_archive(path: Path, layouts: Sequence[Layout]) -> None:
    """Write images as one tar, all their layers in it."""
    with path.open("wb") as out:
        stream(layouts, out)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _send(out: BinaryIO, source: BinaryIO, size: int) -> None:
    offset = 0
    while offset < size:
        # In the kernel: a layer is gigabytes, and Python would copy it twice.
        sent = os.sendfile(out.fileno(), source.fileno(), offset, size - offset)
        if sent == 0:
            raise EOFError(f"{source.name} is shorter than it was")
        offset += sent
