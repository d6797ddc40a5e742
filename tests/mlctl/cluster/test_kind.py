"""The kind provider, against stand-ins for `kind`, `docker` and `kubectl`: kind is not tried."""

import json
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase, Phases
from mlctl.base.waiting import until
from mlctl.cluster import kind
from mlctl.cluster.kind import KindCluster
from tests.helpers.layouts import layout

NODE = "try-control-plane"

# The node is a file with its state. As kind does, it refuses an option that it does not know.
PROGRAM = f"""#!{sys.executable} -IS
import argparse, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
node = here / "node"
name, words = pathlib.Path(__file__).name, sys.argv[1:]
with (here / "calls").open("a") as calls:
    print(name, *words, file=calls)
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("file", nargs="?")
def asked(*options):
    for option in options:
        parser.add_argument(option, required=True)
    return parser.parse_args(words[2:])
running = node.exists() and node.read_text() == "running"
match name, *words[:2]:
    case "kind", "get", "clusters":
        print("try" if node.exists() else "", end="")
    case "kind", "create", "cluster":
        found = asked("--name", "--wait", "--config", "--kubeconfig")
        if (here / "refuse").exists():
            sys.exit("ERROR: failed to create cluster: no space left")
        shutil.copy(found.config, here / "config")
        pathlib.Path(found.kubeconfig).write_text("created")
        node.write_text("running")
    case "kind", "export", "kubeconfig":
        found = asked("--name", "--kubeconfig")
        if not running:
            sys.exit("ERROR: failed to get cluster internal kubeconfig")
        pathlib.Path(found.kubeconfig).write_text("exported")
    case "kind", "load", "image-archive":
        found = asked("--name")
        if not running:
            sys.exit("ERROR: no nodes found for cluster")
        shutil.copy(found.file, here / f"loaded-{{len(list(here.glob('loaded-*')))}}.tar")
    case "kind", "delete", "cluster":
        asked("--name", "--kubeconfig")
        node.unlink(missing_ok=True)
    case "docker", "info":
        print("Server: 28.0")
    case "docker", "start", "{NODE}":
        node.write_text("running")
    case "docker", "stop", "{NODE}":
        node.write_text("exited")
    case "docker", "inspect", *_:
        sys.exit(print(node.read_text()) if node.exists() else "no such object")
    case "kubectl", *_:
        sys.exit(0 if running else "connection refused")
    case _:
        sys.exit(f"unknown: {{words}}")
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the stand-ins, which is all that the PATH has."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("kind", "docker", "kubectl"):
        (directory / name).write_text(PROGRAM)
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr("mlctl.clients.kube.kubectl", lambda: directory / "kubectl")
    monkeypatch.setattr(kind, "BUILD", tmp_path / "build")
    monkeypatch.setenv("DAGS_REPO", "https://example.org/dags.git")
    monkeypatch.delenv("DAGS_REF", raising=False)
    return directory


@pytest.fixture
def cluster(programs: Path) -> KindCluster:
    return KindCluster("try")


def calls(programs: Path, name: str) -> list[str]:
    """Return what a program was called with to change something."""
    lines = (programs / "calls").read_text().splitlines()
    words = [line.split() for line in lines if line.split()[0] == name]
    return [" ".join(one[1:3]) for one in words if one[1] not in {"get", "info", "inspect"}]


def test_a_cluster_is_made_with_the_storage_of_the_values(
    programs: Path, cluster: KindCluster
) -> None:
    cluster.up(Phases())
    assert calls(programs, "kind") == ["create cluster"]
    assert cluster.kubeconfig.read_text() == "created"
    config = yaml.safe_load((programs / "config").read_text())
    assert (config["kind"], config["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    ((node,), values) = (config["nodes"], cluster.values())
    (mount,) = node["extraMounts"]
    assert node["role"] == "control-plane"
    assert values["storage"]["local"] == {"path": mount["containerPath"], "nodeName": NODE}
    # The pods of tasks write there, under a user of their own.
    assert Path(mount["hostPath"]).stat().st_mode & 0o777 == 0o777
    git = values["airflow"]["dags"]["gitSync"]
    assert git == {"repo": "https://example.org/dags.git", "ref": "main", "branch": "main"}


def test_a_cluster_comes_up_again_after_it_was_stopped(
    programs: Path, cluster: KindCluster
) -> None:
    cluster.up(Phases())
    assert cluster.status() == [{"name": NODE, "state": "running"}]
    cluster.down(Phases())
    assert cluster.status() == []
    cluster.down(Phases())
    assert calls(programs, "docker") == [f"stop {NODE}"]
    cluster.up(Phases())
    assert cluster.status() == [{"name": NODE, "state": "running"}]
    assert cluster.kubeconfig.read_text() == "exported"


def test_a_deleted_cluster_leaves_nothing(programs: Path, cluster: KindCluster) -> None:
    cluster.up(Phases())
    cluster.clean(Phases())
    assert (cluster.status(), cluster.directory.exists()) == ([], False)
    assert calls(programs, "kind") == ["create cluster", "delete cluster"]


def entry(tmp_path: Path, name: str) -> dict[str, str]:
    return {"layout": str(layout(tmp_path, name).directory)}


@pytest.fixture
def load(cluster: KindCluster) -> Iterator[Callable[..., Future[None]]]:
    """Begin to load images, in a thread that now waits for the cluster."""

    def begin(entries: dict[str, dict[str, str]]) -> Future[None]:
        phase = Phase("load")
        loading = pool.submit(cluster.load_images, entries, phase)
        until(60, lambda: phase.detail == "waiting for the cluster", "it does not begin")
        return loading

    with ThreadPoolExecutor() as pool:
        yield begin


def test_images_wait_for_the_cluster_and_arrive(
    programs: Path, cluster: KindCluster, load, tmp_path: Path
) -> None:
    loading = load({name: entry(tmp_path, name) for name in ("one", "two")})
    cluster.up(Phases())
    loading.result()
    assert calls(programs, "kind") == ["create cluster", *2 * ["load image-archive"]]
    names = set()
    for archive in programs.glob("loaded-*.tar"):
        with tarfile.open(archive) as tar:
            index = json.load(tar.extractfile("index.json"))
        names |= {one["annotations"]["io.containerd.image.name"] for one in index["manifests"]}
    assert names == {"localhost/test/one:1", "localhost/test/two:1"}


def test_a_cluster_that_cannot_be_made_holds_up_no_images(
    programs: Path, cluster: KindCluster, load, tmp_path: Path
) -> None:
    (programs / "refuse").touch()
    loading = load({"one": entry(tmp_path, "one")})
    with pytest.raises(UserError, match="no space left"):
        cluster.up(Phases())
    with pytest.raises(UserError, match="no nodes found"):
        loading.result()


@pytest.mark.parametrize("missing", [["docker"], ["kind"], ["docker", "kind", "DAGS_REPO"]])
def test_the_doctor_names_all_that_is_missing(
    programs: Path, cluster: KindCluster, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    cluster.doctor()
    told = {"docker": "no Docker engine", "kind": "no `kind` program", "DAGS_REPO": "set DAGS_REPO"}
    for name in missing:
        (programs / name).unlink(missing_ok=True)
    if "DAGS_REPO" in missing:
        monkeypatch.delenv("DAGS_REPO")
    with pytest.raises(UserError) as caught:
        cluster.up(Phases())
    assert {name for name, words in told.items() if words in str(caught.value)} == set(missing)
    assert cluster.status() == []


def test_a_checkout_is_pushed_and_not_served(cluster: KindCluster) -> None:
    with pytest.raises(UserError, match="push to DAGS_REPO"):
        cluster.publish(worktree=True)
