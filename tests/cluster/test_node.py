"""A node that runs: what it offers, whom it lets in, and what the machine notices of it."""

import json
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.base.wheels import kubectl
from mlctl.cluster.embedded import mountpoints
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from tests.helpers.embedded import UNCHANGED, host_facts, pid_outside, pod


def test_the_node_is_ready_and_every_program_runs(
    cluster: EmbeddedCluster, kube: Callable[..., str]
) -> None:
    (node,) = json.loads(kube("get", "nodes", "-o", "json"))["items"]
    conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    states = {row["name"]: row["state"] for row in cluster.status()}
    assert set(states.values()) == {"running"}, states


def test_kubernetes_reports_its_version(cluster: EmbeddedCluster, kube: Callable[..., str]) -> None:
    server = json.loads(kube("version", "-o", "json"))["serverVersion"]
    assert re.fullmatch(r"v1\.34\.\d+", server["gitVersion"])


def test_up_again_changes_nothing(cluster: EmbeddedCluster) -> None:
    before = {row["name"]: (row["pid"], row["restarts"]) for row in cluster.status()}
    cluster.up(Phases())
    assert {row["name"]: (row["pid"], row["restarts"]) for row in cluster.status()} == before


def test_the_host_has_no_new_link_route_rule_or_mount(
    cluster: EmbeddedCluster, host_before: dict[str, list[str]]
) -> None:
    now = host_facts()
    for fact in UNCHANGED:
        assert now[fact] == host_before[fact]


def test_nobody_gets_in_without_a_certificate(cluster: EmbeddedCluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.config.pki / "ca.crt"))
    url = f"https://127.0.0.1:{cluster.config.api_port}/api/v1/namespaces"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, context=context, timeout=10)
    assert refused.value.code == 401


def test_the_kubelet_refuses_anonymous_callers(cluster: EmbeddedCluster) -> None:
    script = (
        "import ssl, urllib.request, urllib.error\n"
        f"c = ssl.create_default_context(cafile='{cluster.config.pki}/ca.crt')\n"
        "try:\n"
        f"    urllib.request.urlopen('https://{cluster.config.node_ip}:10250/pods', context=c)\n"
        "except urllib.error.HTTPError as error:\n"
        "    print(error.code)\n"
    )
    target = ["nsenter", "--target", str(pid_outside(cluster, "kubelet")), "--net"]
    result = subprocess.run([*target, "python3", "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "401", result.stderr


def test_a_node_may_only_touch_its_own_pods(
    cluster: EmbeddedCluster, kube: Callable[..., str]
) -> None:
    as_node = ["--as=system:node:other", "--as-group=system:nodes"]
    command = [str(kubectl()), "--kubeconfig", str(cluster.kubeconfig), "auth", "can-i"]
    result = subprocess.run(
        [*command, "get", "secrets", "--all-namespaces", *as_node], capture_output=True, text=True
    )
    assert result.stdout.split()[0] == "no", result.stdout


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteMany"])
def test_a_claim_gets_a_directory_and_loses_it(
    cluster: EmbeddedCluster, kube: Callable[..., str], pause_image: str, mode: str
) -> None:
    name = f"claim-{mode.lower()}"
    resources = {"requests": {"storage": "1Mi"}}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": [mode], "resources": resources},
    }
    kube("apply", "-f", "-", stdin=json.dumps(claim))
    kube("apply", "-f", "-", stdin=pod(name, pause_image, name))
    kube("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
    # The API server asks the kubelet for it; pause prints nothing.
    assert kube("logs", name) == ""
    (directory,) = cluster.config.volumes.glob(f"*_default_{name}")
    assert directory.stat().st_mode & 0o777 == 0o777
    kube("delete", f"pod/{name}", f"pvc/{name}", "--wait=true")
    until(90, lambda: not directory.exists(), f"{directory} is still there")


def test_each_program_has_a_log(cluster: EmbeddedCluster) -> None:
    logs = cluster.log_files()
    assert {row["name"] for row in cluster.status()} <= set(logs)
    assert "all programs are started" in logs["supervisor"].read_text()


def test_mount_points_in_use_stay(cluster: EmbeddedCluster) -> None:
    # Another cluster's `down` calls this while this one runs.
    mountpoints.remove()
    target = ["nsenter", "--target", str(pid_outside(cluster, "kubelet")), "--mount"]
    listing = subprocess.run([*target, "ls", "/var/lib/kubelet"], capture_output=True, text=True)
    assert "device-plugins" in listing.stdout.split()
    assert list(Path("/var/lib/kubelet").iterdir()) == []
