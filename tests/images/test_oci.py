import hashlib
import io
import json
import os
import tarfile
import threading
from pathlib import Path

import pytest

from images import oci


def layer(tmp_path: Path, name: str, content: bytes) -> oci.Blob:
    rootfs = tmp_path / f"{name}.d"
    rootfs.mkdir()
    (rootfs / name).write_bytes(content)
    path = tmp_path / f"{name}.tar"
    oci.write_layer(path, rootfs)
    return oci.blob(path)


def archive(tmp_path: Path, name: str, layers: list[oci.Blob]) -> oci.Archive:
    path = tmp_path / f"{name}.image.tar"
    built = oci.image({"User": "1:1"}, layers, comment="test")
    oci.write_archive(path, f"localhost/test/{name}:1", built)
    return oci.read_archive(path)


def test_archive_holds_what_its_digests_say(tmp_path: Path):
    opened = archive(tmp_path, "one", [layer(tmp_path, "file", b"content")])
    assert opened.name == "localhost/test/one:1"
    for digest, member in opened.members.items():
        assert digest == "sha256:" + hashlib.sha256(member.read()).hexdigest()
    assert opened.config()["config"] == {"User": "1:1"}
    # Layers are not compressed: their digests are the diff ids too.
    assert opened.config()["rootfs"]["diff_ids"] == opened.layers()


def test_layer_of_the_same_files_has_the_same_digest(tmp_path: Path):
    first = layer(tmp_path, "a", b"x")
    (tmp_path / "again").mkdir()
    os.utime(tmp_path / "a.d" / "a", (1, 1))
    second = tmp_path / "again" / "a.tar"
    oci.write_layer(second, tmp_path / "a.d")
    assert oci.blob(second).digest == first.digest


def test_stream_is_one_archive_with_each_shared_blob_once(tmp_path: Path):
    # Larger than a pipe, and no multiple of a tar block.
    base = layer(tmp_path, "base", os.urandom(1_000_001))
    one = archive(tmp_path, "one", [base, layer(tmp_path, "top", b"1")])
    two = archive(tmp_path, "two", [base])
    read_end, write_end = os.pipe()

    def send() -> None:
        with os.fdopen(write_end, "wb") as out:
            oci.stream([one, two], out)

    sender = threading.Thread(target=send)
    sender.start()
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    sender.join()

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        content = {m.name: tar.extractfile(m).read() for m in members}
    assert len(content) == len(members)
    for name, blob in content.items():
        if name.startswith("blobs/sha256/"):
            assert name == "blobs/sha256/" + hashlib.sha256(blob).hexdigest()
    assert {"sha256:" + name.rpartition("/")[2] for name in content if "/" in name} == {
        *one.members,
        *two.members,
    }
    entries = json.loads(content["index.json"])["manifests"]
    assert {e["annotations"]["io.containerd.image.name"]: e["digest"] for e in entries} == {
        one.name: one.digest,
        two.name: two.digest,
    }


def test_compressed_layer_of_a_builder_is_refused(tmp_path: Path):
    manifest = {
        "config": {"digest": "sha256:00", "size": 1},
        "layers": [{"mediaType": oci.LAYER + "+gzip", "digest": "sha256:11", "size": 1}],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="gzip"):
        oci.from_directory(tmp_path)
