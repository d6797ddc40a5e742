import hashlib
import json
import os
import tarfile
import threading
from pathlib import Path

import pytest

from mlctl.builder import oci
from tests.helpers.layouts import layer, layout


def written(path: Path) -> dict[str, bytes]:
    """What a tar holds; a name that is there twice is an error."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        content = {m.name: tar.extractfile(m).read() for m in members}
    assert len(content) == len(members)
    return content


def test_layout_holds_what_its_digests_say(tmp_path: Path):
    opened = layout(tmp_path, "one", [layer(tmp_path, "file", b"content")])
    assert opened.name == "localhost/test/one:1"
    assert len(opened.blobs()) == 3
    for digest, size in opened.blobs().items():
        content = opened.blob(digest).read_bytes()
        assert digest == "sha256:" + hashlib.sha256(content).hexdigest()
        assert size == len(content)
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


def test_layer_is_one_file_for_all_that_share_it(tmp_path: Path):
    base = layer(tmp_path, "base", b"base")
    one = layout(tmp_path, "one", [base])
    oci.link_layers(one, tmp_path / "out")
    two = layout(tmp_path, "two", [oci.Blob(base.digest, base.size, one.blob(base.digest))])
    linked = oci.blob_file(tmp_path / "out", base.digest)
    assert two.blob(base.digest).samefile(one.blob(base.digest))
    assert two.blob(base.digest).samefile(linked)
    assert [path.name for path in linked.parent.iterdir()] == [base.digest.removeprefix("sha256:")]


def test_stream_is_one_archive_with_each_shared_blob_once(tmp_path: Path):
    # Larger than a pipe, and no multiple of a tar block.
    base = layer(tmp_path, "base", os.urandom(1_000_001))
    one = layout(tmp_path, "one", [base, layer(tmp_path, "top", b"1")])
    two = layout(tmp_path, "two", [base])
    read_end, write_end = os.pipe()

    def send() -> None:
        with os.fdopen(write_end, "wb") as out:
            oci.stream([one, two], out)

    sender = threading.Thread(target=send)
    sender.start()
    with os.fdopen(read_end, "rb") as pipe:
        (tmp_path / "sent.tar").write_bytes(pipe.read())
    sender.join()

    content = written(tmp_path / "sent.tar")
    for name, blob in content.items():
        if name.startswith("blobs/sha256/"):
            assert name == "blobs/sha256/" + hashlib.sha256(blob).hexdigest()
    assert {"sha256:" + name.rpartition("/")[2] for name in content if "/" in name} == {
        *one.blobs(),
        *two.blobs(),
    }
    entries = json.loads(content["index.json"])["manifests"]
    assert {e["annotations"]["io.containerd.image.name"]: e["digest"] for e in entries} == {
        one.name: one.digest,
        two.name: two.digest,
    }


def test_only_layers_are_left_out_of_a_stream(tmp_path: Path):
    base, top = (layer(tmp_path, name, name.encode()) for name in ("base", "top"))
    one = layout(tmp_path, "one", [base, top])
    there = {*one.blobs()} - {top.digest}
    with (tmp_path / "sent.tar").open("wb") as out:
        oci.stream([one], out, there)
    sent = {"sha256:" + name.rpartition("/")[2] for name in written(tmp_path / "sent.tar")}
    assert base.digest not in sent
    # Manifest and configuration go along: the importer reads them.
    assert {*one.blobs()} - {base.digest} <= sent


def test_compressed_layer_of_a_builder_is_refused(tmp_path: Path):
    manifest = {
        "config": {"digest": "sha256:00", "size": 1},
        "layers": [{"mediaType": oci.LAYER + "+gzip", "digest": "sha256:11", "size": 1}],
    }
    blobs = tmp_path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / "22").write_text(json.dumps(manifest))
    index = {"manifests": [{"digest": "sha256:22"}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="gzip"):
        oci.from_builder(tmp_path)
