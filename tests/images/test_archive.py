"""Images go through one file: from a registry and from their builds into another registry."""

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.base.packages import ensure_packages
from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.builder import archive
from mlctl.commands.building import load_images
from tests.helpers.layouts import layer, layout

CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{address}"}}
"""
ANY_MANIFEST = {"Accept": "application/vnd.oci.image.manifest.v1+json"}


def ask(address: str, path: str) -> tuple[dict[str, str], bytes]:
    """Return headers and text of a registry's answer."""
    url = f"http://{address}/v2/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=ANY_MANIFEST)) as answer:
        return dict(answer.headers), answer.read()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of Debian's registry, on the loopback and without TLS."""
    ensure_packages("a registry for tests", ["docker-registry"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yaml"
    config.write_text(CONFIG.format(root=tmp_path / "registry", address=address))
    plain = tmp_path / ".config" / "containers" / "registries.conf"
    plain.parent.mkdir(parents=True)
    plain.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        until(
            120,
            lambda: process.poll() is None and _listens(address),
            lambda: f"no registry: {(tmp_path / 'registry.log').read_text()}",
            poll=0.1,
        )
        yield address
    finally:
        process.terminate()
        process.wait()


def _listens(address: str) -> bool:
    try:
        return ask(address, "")[1] == b"{}"
    except OSError:
        return False


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
