"""Images go through one file: from a registry and from their builds into another registry."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.base.progress import Phases
from mlctl.builder import archive
from mlctl.commands.building import load_images
from tests.helpers.layouts import layer, layout
from tests.helpers.registry import ask, registry


@pytest.fixture(name="registry")
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a registry, which skopeo takes without TLS."""
    with registry(tmp_path) as address:
        plain = tmp_path / ".config" / "containers" / "registries.conf"
        plain.parent.mkdir(parents=True)
        plain.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        monkeypatch.setenv("HOME", str(tmp_path))
        yield address


def test_images_move_through_one_file_and_keep_their_digests(registry: str, tmp_path: Path):
    shared = layer(tmp_path, "base", b"base" * 100_000)
    built = layout(tmp_path, "built", [shared, layer(tmp_path, "top", b"top")])
    other = layout(tmp_path, "other", [shared])
    # As somebody has published it: a name and a digest, and a second one with a tag.
    published = f"docker://{registry}/upstream/other:2.9.3"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests"]
    subprocess.run([*copy, f"oci:{other.directory}", published], check=True)
    pinned = f"{registry}/upstream/other:2.9.3@{other.digest}"
    tagged = f"{registry}/upstream/other:2.9.3"

    file = tmp_path / "images.tar"
    names = [built.name, pinned, tagged]
    with Phases().phase("save") as phase:
        archive.save(file, names, {built.name: built.directory}, phase)
    # The layer that all share is there once.
    assert file.stat().st_size < 2 * shared.size
    load_images(file, f"{registry}/mirror")

    for name, digest in {
        "mirror/test/built": built.digest,
        "mirror/upstream/other": other.digest,
    }.items():
        headers, _ = ask(registry, f"{name}/manifests/{digest}")
        assert headers["Docker-Content-Digest"] == digest
    tags = json.loads(ask(registry, "mirror/upstream/other/tags/list")[1])["tags"]
    assert tags == ["2.9.3"]
    assert list(tmp_path.glob(".images-*")) == []


def test_an_image_that_no_registry_has_is_named(registry: str, tmp_path: Path):
    file = tmp_path / "images.tar"
    with pytest.raises(UserError, match="no/such"), Phases().phase("save") as phase:
        archive.save(file, [f"{registry}/no/such:1"], {}, phase)
    assert not file.exists()


def test_another_file_is_refused(tmp_path: Path):
    file = tmp_path / "images.tar"
    with pytest.raises(UserError, match=r"images\.tar is no archive of `make images-save`"):
        load_images(file, "registry.test")
    file.write_text("text")
    with pytest.raises(UserError, match=r"images\.tar is no archive of `make images-save`"):
        load_images(file, "registry.test")
