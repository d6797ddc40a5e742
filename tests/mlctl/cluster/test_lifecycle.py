"""The life of an embedded cluster as files tell it, with a supervisor that is played."""

import json
import signal
import socketserver
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase
from mlctl.cluster.embedded import lifecycle
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedCluster:
    """A cluster whose machine went off while it was up: process and socket are left as files."""
    monkeypatch.setattr("mlctl.cluster.embedded.config.STATE", tmp_path)
    made = EmbeddedCluster("test")
    made.config.run.mkdir(parents=True)
    with socketserver.UnixStreamServer(str(made.config.control_socket), Status):
        pass
    (made.config.state / "pid").write_text("1 12.5")
    return made


class Status(socketserver.StreamRequestHandler):
    """Answers that containerd runs."""

    def handle(self) -> None:
        self.rfile.readline()
        components = [{"name": "containerd", "state": "running"}]
        answer = {"booted": False, "failure": "", "components": components}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def test_images_wait_for_the_start_whatever_an_earlier_life_has_left(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(lifecycle.load, "load", lambda _, entries, __: loaded.append(entries))
    looked = threading.Event()
    ask = lifecycle.control.ask
    monkeypatch.setattr(
        lifecycle.control,
        "ask",
        lambda *words, **options: (looked.set(), ask(*words, **options))[1],
    )
    loading = threading.Thread(target=cluster.load_images, args=[{"one": {}}, Phase("load")])
    loading.start()
    # It has met the socket that nobody listens on; now the machine comes up again.
    assert looked.wait(30)
    cluster.config.control_socket.unlink()
    with socketserver.UnixStreamServer(str(cluster.config.control_socket), Status) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster.config.containerd_socket.touch()
        loading.join(30)
        server.shutdown()
    assert loaded == [{"one": {}}]


def test_another_process_of_the_same_number_is_not_the_node(cluster: EmbeddedCluster) -> None:
    with pytest.raises(UserError, match="does not run"):
        cluster.cut_power()


def test_a_signal_reaches_its_program_past_one_that_has_just_ended(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen(["true"])
    process = psutil.Process(gone.pid)
    gone.wait()
    # The node's program is one for all of Kubernetes: its first argument says which it is.
    pipe = subprocess.PIPE
    with subprocess.Popen(["cat", "-"], stdin=pipe, stdout=pipe, bufsize=0) as there:
        # Before it answers, /proc may have no arguments of it yet.
        there.stdin.write(b"x")
        assert there.stdout.read(1) == b"x"
        children = [process, psutil.Process(there.pid)]
        node = SimpleNamespace(children=lambda *, recursive: children)
        monkeypatch.setattr(cluster, "_running", lambda: node)
        with pytest.raises(UserError, match="etcd does not run"):
            cluster.signal("etcd", signal.SIGTERM)
        cluster.signal("-", signal.SIGTERM)
    assert there.returncode == -signal.SIGTERM


def test_pause_is_none_of_the_images_that_may_leave(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it no pod could start; the node may run another than this checkout's."""
    there = {f"localhost/ml-pipelines/{name}" for name in ("airflow:1", "pause:1-old")}
    monkeypatch.setattr(lifecycle.load, "project_images", lambda _: there)
    assert cluster.images() == {"localhost/ml-pipelines/airflow:1"}
