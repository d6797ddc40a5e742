import io
import json
import tarfile
from pathlib import Path

import pytest

from mlctl.base import processes
from mlctl.base.errors import UserError, output
from mlctl.base.packages import ensure_packages
from mlctl.base.progress import Phase
from mlctl.base.waiting import until
from mlctl.builder import oci
from mlctl.builder.isolation import isolated
from mlctl.builder.load import images_of, load, project_images, remove
from tests.helpers.layouts import layer, layout


def entry(tmp_path: Path, name: str, content: bytes = b"x") -> dict[str, str]:
    made = layout(tmp_path, name, [layer(tmp_path, name, content)])
    repository, tag = made.name.split(":")
    place = str(made.directory)
    return {"repository": repository, "tag": tag, "digest": made.digest, "layout": place}


@pytest.fixture
def ctr(tmp_path: Path):
    """A stand-in for ctr that lists what files say and keeps what it is given."""
    script = tmp_path / "ctr"
    script.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
case "$*" in
    *"images list"*) cat {tmp_path}/listing ;;
    *"content list"*) cat {tmp_path}/content ;;
    *"images remove"*) ;;
    *) if [ -e {tmp_path}/refuse ]; then
           echo "$(cat {tmp_path}/refuse)"
           [ -e {tmp_path}/always ] || rm {tmp_path}/refuse
           exit 1
       fi
       cat > {tmp_path}/imported.tar ;;
esac
"""
    )
    script.chmod(0o755)
    (tmp_path / "listing").write_text("REF TYPE DIGEST SIZE PLATFORMS LABELS\n")
    (tmp_path / "content").touch()
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
    assert all(call.startswith("--address /sock --namespace k8s.io ") for call in calls)


def test_nothing_is_imported_when_all_are_there(tmp_path: Path, ctr: Path):
    lock = {"here": entry(tmp_path, "here")}
    list_as_present(tmp_path, lock["here"])
    load([str(ctr)], lock, Phase("load"))
    assert not (tmp_path / "imported.tar").exists()


def test_refusal_of_containerd_is_shown(tmp_path: Path, ctr: Path):
    # More than a pipe holds: ctr ends while it is being written to.
    lock = {"big": entry(tmp_path, "big", bytes(5_000_000))}
    (tmp_path / "refuse").write_text("no space left on device")
    (tmp_path / "always").touch()
    with pytest.raises(UserError, match="no space left on device"):
        load([str(ctr)], lock, Phase("load"))


def sent(tmp_path: Path) -> set[str]:
    with tarfile.open(tmp_path / "imported.tar") as tar:
        return {"sha256:" + name.rpartition("/")[2] for name in tar.getnames()}


def layer_of(one: dict[str, str]) -> str:
    (layer,) = oci.read_layout(Path(one["layout"])).layers()
    return layer


def test_layers_that_containerd_has_are_not_sent(tmp_path: Path, ctr: Path):
    lock = {name: entry(tmp_path, name, name.encode()) for name in ("old", "new")}
    (tmp_path / "content").write_text(f"sha256:77\n{layer_of(lock['old'])}\n")
    load([str(ctr)], lock, Phase("load"))
    assert layer_of(lock["old"]) not in sent(tmp_path)
    assert {layer_of(lock["new"]), lock["old"]["digest"], lock["new"]["digest"]} <= sent(tmp_path)


def test_layer_that_was_collected_meanwhile_is_sent_after_all(tmp_path: Path, ctr: Path):
    lock = {"old": entry(tmp_path, "old")}
    (tmp_path / "content").write_text(f"{layer_of(lock['old'])}\n")
    (tmp_path / "refuse").write_text("content digest sha256:...: not found")
    load([str(ctr)], lock, Phase("load"))
    assert layer_of(lock["old"]) in sent(tmp_path)


LISTING = """\
REF TYPE DIGEST SIZE PLATFORMS LABELS
localhost/ml-pipelines/a:1 t sha256:one 1 MiB - -
localhost/ml-pipelines/a:2 t sha256:two 1 MiB - -
localhost/ml-pipelines/b:1 t sha256:two 1 MiB - -
localhost/ml-pipelines/pause:1-old t sha256:pause 1 MiB - -
localhost/ml-pipelines-other/a:1 t sha256:other 1 MiB - -
sha256:config1 t sha256:one 1 MiB - io.cri-containerd.image=managed
sha256:config2 t sha256:two 1 MiB - io.cri-containerd.image=managed
"""


def test_images_of_the_project_are_those_of_its_repository(tmp_path: Path, ctr: Path):
    (tmp_path / "listing").write_text(LISTING)
    names = {"a:1", "a:2", "b:1", "pause:1-old"}
    assert project_images([str(ctr)]) == {f"localhost/ml-pipelines/{name}" for name in names}


def test_an_image_goes_with_the_kubelets_name_for_it(tmp_path: Path, ctr: Path):
    (tmp_path / "listing").write_text(LISTING)
    # Another name still has the second digest: its layers stay, and the kubelet's name.
    remove([str(ctr)], {"localhost/ml-pipelines/a:1", "localhost/ml-pipelines/a:2", "absent:1"})
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last == (
        "--namespace k8s.io images remove --sync "
        "localhost/ml-pipelines/a:1 localhost/ml-pipelines/a:2 sha256:config1"
    )


def test_nothing_is_removed_when_none_is_there(tmp_path: Path, ctr: Path):
    (tmp_path / "listing").write_text(LISTING)
    remove([str(ctr)], {"localhost/ml-pipelines/a:9"})
    assert "remove" not in (tmp_path / "calls").read_text()


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
    daemon = isolated(["containerd", "--config", settings])
    with (
        (disk / "log").open("w") as log,
        processes.started(daemon, stdout=log, stderr=log) as process,
    ):
        ctr = ["ctr", "--address", str(socket)]
        asked = [*ctr, "--namespace", "k8s.io"]
        until(
            20,
            lambda: processes.run([*ctr, "version"]).returncode == 0,
            (disk / "log").read_text,
        )
        chosen = {name: entries[name] for name in ("git-sync", "pause")}
        load(ctr, chosen, Phase("load"))
        there = images_of(output([*asked, "images", "list"]))
        assert there == {f"{e['repository']}:{e['tag']}": e["digest"] for e in chosen.values()}
        # Unpacked: the base, git-sync's own layer, and pause's.
        assert len(output([*asked, "snapshots", "list"]).splitlines()) == 1 + 3
        again = Phase("load")
        load(ctr, chosen, again)
        # Nothing was sent.
        assert not again.detail
        load_again_without_its_layers(ctr, chosen["git-sync"], disk)
        remove(ctr, {*project_images(ctr), *there})
        assert project_images(ctr) == set()
        assert output([*asked, "content", "list", "--quiet"]) == ""
        process.kill()


def load_again_without_its_layers(ctr: list[str], one: dict[str, str], disk: Path) -> None:
    """The same layers under another name: as after an edit of what lies above them."""
    known = oci.read_layout(Path(one["layout"]))
    layers = [oci.Blob(d, known.blobs()[d], known.blob(d)) for d in known.layers()]
    built = oci.image({"User": "2:2"}, layers, comment="edited")
    name = f"{one['repository']}:edited"
    oci.write_layout(disk / "edited", name, built)
    edited = one | {"tag": "edited", "digest": built.digest, "layout": str(disk / "edited")}
    phase = Phase("load")
    load(ctr, {"git-sync": edited}, phase)
    # Nothing but manifest, configuration and index went over.
    assert phase.detail == "importing git-sync (0.0 MB)"
    assert name in project_images(ctr)
