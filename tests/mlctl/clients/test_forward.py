"""The forward to a Service: kubectl is a small program of the test here."""

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from mlctl.base.errors import UserError
from mlctl.base.waiting import until
from mlctl.clients import kube
from mlctl.clients.airflow import Airflow
from mlctl.clients.forward import Forward, free_port
from mlctl.clients.kube import Kube

KUBECTL = """#!/bin/sh
echo "$$ $*" >> {calls}
case "$(cat {behaviour})" in
  refuse) echo "error: services \\"x\\" not found" >&2; exit 1 ;;
  *) echo "Forwarding from 127.0.0.1:$(cat {port}) -> 8080"; i=0
     while [ $i -lt 5000 ]; do echo "Handling connection for 41234"; i=$((i + 1)); done
     exec sleep 60 ;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "kubectl"
    files = {name: tmp_path / name for name in ("calls", "behaviour", "port")}
    files["behaviour"].write_text("forward")
    files["port"].write_text("41234")
    program.write_text(KUBECTL.format(**files))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(kube, "kubectl", lambda: program)
    return tmp_path


def forward(local_port: int = 0) -> Forward:
    return Forward(Kube("/k", "ns"), "x", 8080, local_port)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return False


def test_it_knows_its_port_and_ends_with_the_block(fake: Path) -> None:
    with forward() as way:
        assert way.url == "http://127.0.0.1:41234"
        pid = way.process.pid
        assert alive(pid)
    assert not alive(pid)
    (call,) = (fake / "calls").read_text().splitlines()
    assert call.endswith("--kubeconfig /k --namespace ns port-forward service/x :8080")


def test_much_output_does_not_stop_it(fake: Path) -> None:
    """A pipe holds 64 KiB; a forward writes a line for each connection."""
    with forward() as way:
        comm = Path(f"/proc/{way.process.pid}/comm")
        until(20, lambda: comm.read_text() == "sleep\n", "it is stuck writing")


def test_an_ended_forward_is_made_anew_on_the_same_port(fake: Path) -> None:
    with forward() as way:
        os.kill(way.process.pid, 15)
        way.process.wait()
        way.ensure()
        assert alive(way.process.pid)
    assert (fake / "calls").read_text().splitlines()[1].endswith("service/x 41234:8080")


def test_a_refusal_is_told_after_the_deadline(fake: Path) -> None:
    (fake / "behaviour").write_text("refuse")
    with pytest.raises(UserError, match=r'service x: error: services "x" not found'):
        forward().ensure(timeout=0)


def test_the_page_is_waited_for_when_its_pod_goes(
    fake: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TELL_SECONDS", "FORWARD_SECONDS"):
        monkeypatch.setattr(f"mlctl.clients.airflow.{name}", 0)
    (fake / "port").write_text(str(httpserver.port))
    form = '<input name="csrf_token" value="x">'
    httpserver.expect_request("/login/", "GET").respond_with_data(form)
    home = {"Location": "/home"}
    httpserver.expect_request("/login/", "POST").respond_with_data(status=302, headers=home)
    httpserver.expect_request("/api/v1/dags/x").respond_with_json({"dag_id": "x"})
    told = []

    def come_back(text: str) -> None:
        told.append(text)
        (fake / "behaviour").write_text("forward")

    with closing(forward()) as way:
        airflow = Airflow(way, "admin", "right", tell=come_back)
        assert airflow.dag("x") == {"dag_id": "x"}
        (fake / "behaviour").write_text("refuse")
        os.kill(way.process.pid, 15)
        way.process.wait()
        assert airflow.dag("x") == {"dag_id": "x"}
    assert len(told) == 1
    assert told[0].endswith('no way to the service x: error: services "x" not found')


def test_a_port_in_use_is_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) == 0
    assert free_port(port) == port
