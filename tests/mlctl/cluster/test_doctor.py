"""What the doctor says about machines that cannot run the cluster."""

import ipaddress
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlctl.base import processes
from mlctl.base.errors import UserError, output
from mlctl.base.progress import Phases
from mlctl.base.waiting import within
from mlctl.cluster.embedded import doctor, outbound
from mlctl.cluster.embedded.config import Config
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from mlctl.cluster.provider import provider


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config("unit", tmp_path / "unit")


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(UserError, match="Darwin has no Linux containers: use CLUSTER=kind"):
        doctor.check(config)


def test_a_used_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        problem = str(doctor.check_port(Config("unit", tmp_path, api_port=port)))
    assert f"port {port} of the loopback cannot be used" in problem
    assert "API_PORT=" in problem


def test_a_routed_network_is_refused(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    office = ipaddress.IPv4Network("10.0.0.0/8")
    monkeypatch.setattr(doctor, "host_networks", lambda: [office])
    problem = str(doctor.check_networks(config))
    assert "POD_CIDR 10.244.0.0/24 overlaps 10.0.0.0/8" in problem
    assert "choose another with POD_CIDR=" in problem


@pytest.mark.parametrize(
    ("networks", "told"),
    [
        ({"pod_cidr": "10.96.3.0/24"}, "overlap: choose others"),
        (
            {"pod_cidr": "198.51.100.0/24", "outbound": True},
            "198.51.100.0/24, which OUTBOUND=1 uses",
        ),
    ],
)
def test_networks_that_cannot_be_are_refused(tmp_path: Path, networks: dict, told: str) -> None:
    assert told in str(doctor.check_networks(Config("unit", tmp_path, **networks)))


def test_outbound_traffic_needs_a_device_and_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(outbound, "DEVICE", tmp_path / "tun")
    wanted = Config("unit", tmp_path, outbound=True)
    assert "`modprobe tun`" in str(outbound.check(wanted))
    assert set(doctor.host_packages(wanted)) - set(doctor.HOST_PACKAGES) == {"slirp4netns"}
    unwanted = Config("unit", tmp_path)
    assert outbound.check(unwanted) is None
    assert doctor.host_packages(unwanted) == doctor.HOST_PACKAGES


def test_the_routes_of_this_machine_are_read() -> None:
    shown = output(["ip", "-4", "route"])
    expected = {
        line.split()[0] if "/" in line.split()[0] else f"{line.split()[0]}/32"
        for line in shown.splitlines()
        if line and not line.startswith("default")
    }
    assert {str(network) for network in doctor.host_networks()} == expected


def test_another_kubelet_is_refused(tmp_path: Path, config: Config) -> None:
    impostor = tmp_path / "kubelet"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", impostor)
    with processes.started([impostor, "60"]) as process:
        # It has its name when exec has begun; the kernel sets it a moment later.
        comm = Path(f"/proc/{process.pid}/comm")
        within(10, lambda: comm.read_text() == "kubelet\n", poll=0.01)
        problem = doctor.check_kubelet(config)
        process.kill()
    assert problem == (
        f"another kubelet runs here (process {process.pid}): stop it, or use CLUSTER=existing"
    )


def test_too_little_disk_is_refused(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    nearly_full = SimpleNamespace(total=10, used=9, free=1024**3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    problem = str(doctor.check_disk(config))
    assert "1.0 GiB are free at" in problem
    assert "ML_PIPELINES_STATE=" in problem


def test_an_unreachable_registry_is_refused(
    monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    monkeypatch.setattr(doctor.binary, "is_built", lambda: False)
    monkeypatch.setattr(doctor, "missing_packages", lambda _: ["containerd"])
    monkeypatch.setattr(doctor, "go_proxies", lambda: ["http://127.0.0.1:9"])
    monkeypatch.setattr(doctor, "apt_mirrors", lambda: ["http://127.0.0.1:9"])
    problem = str(doctor.check_registries(config))
    assert "cannot reach the Go module proxy 127.0.0.1" in problem
    assert "the Debian mirror 127.0.0.1" in problem


def test_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "MEMORY_BYTES", 1024**5)
    with pytest.raises(UserError) as caught:
        doctor.check(config)
    assert "not root: run the same command with sudo" in str(caught.value)
    assert "of memory are available" in str(caught.value)


def test_up_refuses_before_it_touches_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mlctl.cluster.embedded.config.STATE", tmp_path / "state")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="not root"):
        EmbeddedCluster("unit").up(Phases())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_provider_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "minikube")
    with pytest.raises(UserError, match="CLUSTER='minikube': use one of embedded, kind, existing"):
        provider()


@pytest.mark.parametrize("kind", ["kind", "existing"])
def test_other_providers_say_what_they_miss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setenv("CLUSTER", kind)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("DAGS_REPO", raising=False)
    with pytest.raises(UserError, match="set DAGS_REPO to a git address that pods can clone"):
        provider("unit").doctor()
