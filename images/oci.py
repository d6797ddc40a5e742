"""Image archives in the OCI image layout (opencontainers/image-spec, image-layout.md).

One uncompressed tar per image: ``oci-layout``, ``index.json`` and ``blobs/sha256/*``. containerd,
Docker >= 25, podman, buildah, skopeo and kind read it as it is.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
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


def from_directory(directory: Path) -> Image:
    """Return the image that buildah wrote to a ``dir:`` destination.

    The manifest is written anew without buildah's annotations, which name the base image.
    """
    found = json.loads((directory / "manifest.json").read_bytes())
    wrong = {layer["mediaType"] for layer in found["layers"]} - {LAYER}
    if wrong:
        raise ValueError(f"layers are not uncompressed OCI layers: {wrong}")

    def known(descriptor: dict[str, Any]) -> Blob:
        path = directory / descriptor["digest"].removeprefix("sha256:")
        return Blob(descriptor["digest"], descriptor["size"], path)

    return _image(known(found["config"]), [known(layer) for layer in found["layers"]])


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


def write_archive(path: Path, name: str, written: Image) -> None:
    """Write one image under its full name (``localhost/...:tag``) as a tar."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "oci-layout", LAYOUT)
        _add(archive, "index.json", index([(name, written.digest, written.manifest.size)]))
        for piece in (written.manifest, *written.blobs):
            _add(archive, "blobs/sha256/" + piece.digest.removeprefix("sha256:"), piece.source)


def write_layout(directory: Path, name: str, written: Image) -> None:
    """Write one image as a layout directory; files are linked, not copied."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for piece in (written.manifest, *written.blobs):
        target = blobs / piece.digest.removeprefix("sha256:")
        if isinstance(piece.source, bytes):
            target.write_bytes(piece.source)
        else:
            os.link(piece.source, target)
    (directory / "oci-layout").write_bytes(LAYOUT)
    (directory / "index.json").write_bytes(index([(name, written.digest, written.manifest.size)]))


def _add(archive: tarfile.TarFile, name: str, source: bytes | Path) -> None:
    member = tarfile.TarInfo(name)
    member.mode = 0o644
    if isinstance(source, bytes):
        member.size = len(source)
        archive.addfile(member, io.BytesIO(source))
    else:
        member.size = source.stat().st_size
        with source.open("rb") as file:
            archive.addfile(member, file)


@dataclass(frozen=True)
class Member:
    """Where the bytes of a blob stand in an archive."""

    archive: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes (for the small ones: manifest, config)."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Archive:
    """An archive that was written by write_archive."""

    name: str
    digest: str
    members: dict[str, Member]

    def document(self, digest: str) -> dict[str, Any]:
        """Return a JSON blob."""
        document: dict[str, Any] = json.loads(self.members[digest].read())
        return document

    def config(self) -> dict[str, Any]:
        """Return the OCI image configuration."""
        return self.document(self.document(self.digest)["config"]["digest"])

    def layers(self) -> list[str]:
        """Return the digests of the layers, lowest first."""
        return [layer["digest"] for layer in self.document(self.digest)["layers"]]


def read_archive(path: Path) -> Archive:
    """Open an archive: only its headers and its index are read."""
    members: dict[str, Member] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            members[member.name] = Member(path, member.offset_data, member.size)
    (entry,) = json.loads(members["index.json"].read())["manifests"]
    blobs = {
        "sha256:" + name.rpartition("/")[2]: member
        for name, member in members.items()
        if name.startswith("blobs/sha256/")
    }
    return Archive(entry["annotations"]["io.containerd.image.name"], entry["digest"], blobs)


def stream(archives: list[Archive], out: BinaryIO) -> None:
    """Write several images as one archive to a pipe; a blob that they share goes once."""
    manifests = [(a.name, a.digest, a.members[a.digest].size) for a in archives]
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for name, data in (("oci-layout", LAYOUT), ("index.json", index(manifests))):
            out.write(_header(name, len(data)) + data + _padding(len(data)))
        for digest, member in _unique(archives):
            if member.archive not in files:
                files[member.archive] = stack.enter_context(member.archive.open("rb"))
            out.write(_header("blobs/sha256/" + digest.removeprefix("sha256:"), member.size))
            out.flush()
            send(out, files[member.archive], member)
            out.write(_padding(member.size))
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.flush()


def _unique(archives: list[Archive]) -> Iterator[tuple[str, Member]]:
    seen: set[str] = set()
    for archive in archives:
        for digest, member in archive.members.items():
            if digest not in seen:
                seen.add(digest)
                yield digest, member


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def send(out: BinaryIO, source: BinaryIO, member: Member) -> None:
    """Write a blob to a pipe; ``source`` is its archive, open.

    Raises BrokenPipeError when the reader has gone.
    """
    offset, end = member.offset, member.offset + member.size
    while offset < end:
        # In the kernel: the archives are gigabytes, and Python would copy them twice.
        sent = os.sendfile(out.fileno(), source.fileno(), offset, end - offset)
        if sent == 0:
            raise EOFError(f"{member.archive} is shorter than its index says")
        offset += sent
