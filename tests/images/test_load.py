import io
import json
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from images import oci
from images.isolation import isolated
from images.load import images_of, load
from tools.errors import UserError
from tools.packages import ensure_packages
from tools.progress import Phase


def entry(tmp_path: Path, name: str, content: bytes = b"x") -> dict[str, str]:
    rootfs = tmp_path / name
    rootfs.mkdir()
    (rootfs / "file").write_bytes(content)
    oci.write_layer(tmp_path / f"{name}.layer", rootfs)
    built = oci.image({}, [oci.blob(tmp_path / f"{name}.layer")], comment="test")
    archive = tmp_path / f"{name}.tar"
    oci.write_archive(archive, f"localhost/test/{name}:1", built)
    return {
        "repository": f"localhost/test/{name}",
        "tag": "1",
        "digest": built.digest,
        "archive": str(archive),
    }


@pytest.fixture
def ctr(tmp_path: Path):
    """A stand-in for ctr that lists what a file says and keeps what it is given."""
    script = tmp_path / "ctr"
    script.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
case "$*" in
    *"images list"*) cat {tmp_path}/listing ;;
    *) [ ! -e {tmp_path}/refuse ] || {{ echo "no space left on device"; exit 1; }}
       cat > {tmp_path}/imported.tar ;;
esac
"""
    )
    script.chmod(0o755)
    (tmp_path / "listing").write_text("REF TYPE DIGEST SIZE PLATFORMS LABELS\n")
    return script


def list_as_present(tmp_path: Path, *entries: dict[str, str]) -> None:
    rows = [f"{e['repository']}:{e['tag']} type {e['digest']} 1.0 MiB -" for e in entries]
    (tmp_path / "listing").write_text("\n".join(["REF TYPE DIGEST", *rows, ""]))


def imported(tmp_path: Path) -> set[str]:
    with tarfile.open(tmp_path / "imported.tar") as tar:
        index = json.load(io.BytesIO(tar.extractfile("index.json").read()))
    return {e["annotations"]["io.containerd.image.name"] for e in index["manifests"]}


def test_only_missing_and_changed_images_are_imported(tmp_path: Path, ctr: Path):
    lock = {name: entry(tmp_path, name) for name in ("here", "missing", "changed")}
    list_as_present(tmp_path, lock["here"], lock["changed"] | {"digest": "sha256:0"})
    load([str(ctr), "--address", "/sock"], lock, Phase("load"))
    assert imported(tmp_path) == {"localhost/test/missing:1", "localhost/test/changed:1"}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(call.startswith("--address /sock --namespace k8s.io images ") for call in calls)


def test_nothing_is_imported_when_all_are_there(tmp_path: Path, ctr: Path):
    lock = {"here": entry(tmp_path, "here")}
    list_as_present(tmp_path, lock["here"])
    load([str(ctr)], lock, Phase("load"))
    assert not (tmp_path / "imported.tar").exists()


def test_refusal_of_containerd_is_shown(tmp_path: Path, ctr: Path):
    # More than a pipe holds: ctr ends while it is being written to.
    lock = {"big": entry(tmp_path, "big", bytes(5_000_000))}
    (tmp_path / "refuse").touch()
    with pytest.raises(UserError, match="no space left on device"):
        load([str(ctr)], lock, Phase("load"))


def test_listing_is_read_by_its_columns():
    listing = "REF TYPE DIGEST SIZE PLATFORMS LABELS\na/b:1 t sha256:1 1 MiB linux/amd64 -\n\n"
    assert images_of(listing) == {"a/b:1": "sha256:1"}


def test_containerd_takes_the_images_under_their_digests(entries, disk: Path):
    """The real containerd: what the node runs is what the lock names."""
    ensure_packages("the test of the image import", ["containerd"])
    socket = disk / "containerd.sock"
    settings = disk / "containerd.toml"
    settings.write_text(
        f'version = 2\nroot = "{disk}/root"\nstate = "{disk}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
    )
    with (disk / "log").open("w") as log:
        daemon = subprocess.Popen(
            isolated(["containerd", "--config", settings]), stdout=log, stderr=log
        )
        try:
            ctr = ["ctr", "--address", str(socket)]
            deadline = time.monotonic() + 20
            while subprocess.run([*ctr, "version"], capture_output=True).returncode != 0:
                assert time.monotonic() < deadline, (disk / "log").read_text()
                time.sleep(0.1)
            chosen = {name: entries[name] for name in ("git-sync", "pause")}
            load(ctr, chosen, Phase("load"))
            listing = subprocess.run(
                [*ctr, "--namespace", "k8s.io", "images", "list"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert images_of(listing.stdout) == {
                f"{e['repository']}:{e['tag']}": e["digest"] for e in chosen.values()
            }
            snapshots = subprocess.run(
                [*ctr, "--namespace", "k8s.io", "snapshots", "list"],
                capture_output=True,
                text=True,
                check=True,
            )
            # Unpacked: the base, git-sync's own layer, and pause's.
            assert len(snapshots.stdout.splitlines()) == 1 + 3
            started = time.monotonic()
            load(ctr, chosen, Phase("load"))
            assert time.monotonic() - started < 2
        finally:
            daemon.kill()
            daemon.wait()
