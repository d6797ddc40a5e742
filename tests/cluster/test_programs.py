"""The programs of a node that die, are stopped or have clients that do not let go."""

import os
import subprocess
import time
from collections.abc import Callable

import pytest

from mlctl.base.errors import UserError
from mlctl.base.waiting import until
from mlctl.base.wheels import kubectl
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from tests.helpers.embedded import component, pid_outside, pod

CLIENT_SECONDS = 5
"""How long a stop of the API server may take while clients are connected to it."""


def test_a_program_that_dies_is_restarted(cluster: EmbeddedCluster) -> None:
    before = component(cluster, "kube-scheduler")["restarts"]
    os.kill(pid_outside(cluster, "kube-scheduler"), 9)

    def restarted() -> bool:
        row = component(cluster, "kube-scheduler")
        return row["restarts"] == before + 1 and row["state"] == "running"

    until(90, restarted, "the scheduler is not running again")
    assert component(cluster, "kube-scheduler")["exit_codes"][-1] == -9


def test_a_program_can_be_stopped_and_started(cluster: EmbeddedCluster) -> None:
    cluster.component("stop", "coredns")
    assert component(cluster, "coredns")["state"] == "stopped"
    cluster.component("start", "coredns")
    assert component(cluster, "coredns")["state"] == "running"
    with pytest.raises(UserError, match="no component 'nginx'; there are containerd, etcd"):
        cluster.component("restart", "nginx")


def test_the_api_server_comes_back(cluster: EmbeddedCluster, kube: Callable[..., str]) -> None:
    cluster.component("restart", "kube-apiserver")
    assert kube("get", "--raw", "/readyz") == "ok"


def test_clients_do_not_hold_up_the_end_of_the_api_server(
    cluster: EmbeddedCluster, kube: Callable[..., str], pause_image: str
) -> None:
    kube("apply", "-f", "-", stdin=pod("watched", pause_image))
    kube("wait", "pod/watched", "--for=condition=Ready", "--timeout=60s")
    command = [str(kubectl()), "--kubeconfig", str(cluster.kubeconfig)]
    clients = [
        subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for words in (
            ["get", "pods", "--watch"],
            ["get", "events", "--watch", "--all-namespaces"],
            ["logs", "--follow", "watched"],
            ["port-forward", "pod/watched", ":80"],
        )
    ]
    try:
        # The last one says when it is connected, and the others have had as long.
        assert b"Forwarding" in clients[-1].stdout.readline()
        started = time.monotonic()
        cluster.component("stop", "kube-apiserver")
        seconds = time.monotonic() - started
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    cluster.component("start", "kube-apiserver")
    assert seconds < CLIENT_SECONDS
    # It ended by itself and was not killed.
    assert component(cluster, "kube-apiserver")["exit_codes"][-1] == 0
    kube("delete", "pod/watched")
