"""What outlives `down` and `up`, a supervisor that is killed, and `clean`."""

import os
from collections.abc import Callable

import pytest

from mlctl.base.errors import UserError
from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.cluster.embedded import control
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from tests.helpers.embedded import NAME, host_facts


def test_data_and_the_way_out_outlive_down_and_up(
    cluster: EmbeddedCluster,
    kube: Callable[..., str],
    host_before: dict[str, list[str]],
    pause_image: str,
    monkeypatch: pytest.MonkeyPatch,
    from_pod: Callable[..., str],
    host_address: str,
    greeter: Callable[[str], int],
) -> None:
    kube("create", "configmap", "kept", "--from-literal=answer=42")
    (cluster.config.training_storage / "model").write_text("weights")
    kube("create", "deployment", "kept", f"--image={pause_image}")
    kube("wait", "deployment/kept", "--for=condition=Available", "--timeout=60s")
    monkeypatch.setenv("OUTBOUND", "1")
    EmbeddedCluster(NAME).up(Phases())
    monkeypatch.delenv("OUTBOUND")
    known = EmbeddedCluster(NAME)
    kube("delete", "pod/caller", "--ignore-not-found")

    known.down(Phases())
    assert host_facts() == host_before
    assert known.status() == []
    known.up(Phases())

    assert kube("get", "configmap", "kept", "-o", "jsonpath={.data.answer}") == "42"
    assert (cluster.config.training_storage / "model").read_text() == "weights"
    kube("wait", "deployment/kept", "--for=condition=Available", "--timeout=60s")
    port = str(greeter(host_address))
    assert from_pod("tcp", host_address, port, "") == "hello"
    monkeypatch.setenv("OUTBOUND", "0")
    EmbeddedCluster(NAME).up(Phases())
    assert "unreachable" in from_pod("tcp", host_address, port, "")
    assert host_facts()["ways out"] == host_before["ways out"]


def test_a_killed_supervisor_leaves_nothing_that_up_cannot_mend(
    cluster: EmbeddedCluster, kube: Callable[..., str]
) -> None:
    kube("create", "configmap", "before", "--from-literal=answer=42")
    outer = int((cluster.config.state / "pid").read_text().split()[0])
    os.kill(outer, 9)
    until(90, lambda: not control.is_running(cluster.config), "the supervisor goes on")
    cluster.up(Phases())
    assert kube("get", "configmap", "before", "-o", "jsonpath={.data.answer}") == "42"


def test_clean_removes_everything(
    cluster: EmbeddedCluster, host_before: dict[str, list[str]]
) -> None:
    cluster.clean(Phases())
    assert host_facts() == host_before
    assert not cluster.config.state.exists()
    with pytest.raises(UserError, match="does not answer"):
        control.ask(cluster.config, "status")
