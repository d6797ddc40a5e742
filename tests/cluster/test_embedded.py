"""The embedded cluster for real: it starts, heals, keeps its data and leaves no trace.

The tests follow one cluster through its life, in the order they stand in.
"""

import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.embedded import cgroups, control, mountpoints
from cluster.embedded.cluster import EmbeddedCluster
from tools.errors import UserError
from tools.progress import Phases
from tools.wheels import kubectl

NAME = "ml-pipelines-unit"
NODE_SECONDS = 90

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


def host_facts() -> dict[str, list[str]]:
    """Return what a cluster could leave behind on this machine."""

    def lines(*command: str) -> list[str]:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # Counters and dates differ from call to call.
        return [re.sub(r"\[\d+:\d+\]|^#.*", "", line) for line in output.splitlines()]

    return {
        "mounts": lines("mount"),
        "links": lines("ip", "-brief", "link"),
        "routes": lines("ip", "route", "show", "table", "all"),
        "iptables": lines("iptables-save"),
        "cgroups": [str(p) for h in cgroups.hierarchies() for p in h.glob("ml-pipelines-*")],
        "directories": [p for p in ("/var/lib/kubelet", "/var/lib/cni") if Path(p).exists()],
        "processes": [
            comm.parent.name
            for comm in Path("/proc").glob("[0-9]*/comm")
            if NAME.encode() in (comm.parent / "cmdline").read_bytes()
        ],
    }


def wait_for(condition: Callable[[], bool], what: str, seconds: float = NODE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def host_before() -> dict[str, list[str]]:
    return host_facts()


@pytest.fixture(scope="module")
def cluster(host_before: dict[str, list[str]]) -> Iterator[EmbeddedCluster]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("API_PORT", str(port))
        embedded = EmbeddedCluster(NAME)
        embedded.clean(Phases())
        embedded.up(Phases())
        yield embedded
        embedded.clean(Phases())


@pytest.fixture(scope="module")
def kube(cluster: EmbeddedCluster) -> Callable[..., str]:
    def call(*words: str, stdin: str | None = None) -> str:
        command = [str(kubectl()), "--kubeconfig", str(cluster.kubeconfig), *words]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


def component(cluster: EmbeddedCluster, name: str) -> dict[str, Any]:
    return next(row for row in cluster.status() if row["name"] == name)


def pid_outside(cluster: EmbeddedCluster, name: str) -> int:
    """Return the host's number of a process of the node."""
    inside = component(cluster, name)["pid"]
    for status in Path("/proc").glob("[0-9]*/status"):
        found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.MULTILINE)
        if found and int(found[2]) == inside:
            command = (status.parent / "cmdline").read_bytes().decode()
            if name in command and NAME in command:
                return int(found[1])
    raise AssertionError(f"no process {name}")


def pod(name: str, image: str, claim: str = "") -> str:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}] if claim else []
    mounts = [{"name": "data", "mountPath": "/data"}] if claim else []
    container = {"name": "main", "image": image, "volumeMounts": mounts}
    spec = {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
    }
    metadata = {"name": name, "namespace": "default"}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


@pytest.fixture(scope="module")
def pause_image(cluster: EmbeddedCluster) -> str:
    text = (cluster.config.etc / "containerd.toml").read_text()
    found = re.search(r'sandbox_image = "(.+)"', text)
    assert found is not None
    return found[1]


def test_the_node_is_ready_and_every_program_runs(
    cluster: EmbeddedCluster, kube: Callable[..., str]
) -> None:
    (node,) = json.loads(kube("get", "nodes", "-o", "json"))["items"]
    conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    states = {row["name"]: row["state"] for row in cluster.status()}
    assert set(states.values()) == {"running"}, states


def test_kubernetes_reports_its_version(kube: Callable[..., str]) -> None:
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
    for fact in ("mounts", "links", "routes", "iptables"):
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
    wait_for(lambda: not directory.exists(), f"end of {directory}")


def test_a_program_that_dies_is_restarted(
    cluster: EmbeddedCluster, kube: Callable[..., str]
) -> None:
    os.kill(pid_outside(cluster, "kube-scheduler"), 9)
    wait_for(
        lambda: (
            component(cluster, "kube-scheduler")["restarts"] == 1
            and component(cluster, "kube-scheduler")["state"] == "running"
        ),
        "restarted kube-scheduler",
    )
    assert component(cluster, "kube-scheduler")["exit_codes"] == [-9]


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


CLIENT_SECONDS = 5
"""How long a stop of the API server may take while clients are connected to it."""


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


def test_data_outlive_down_and_up(
    cluster: EmbeddedCluster,
    kube: Callable[..., str],
    host_before: dict[str, list[str]],
    pause_image: str,
) -> None:
    kube("create", "configmap", "kept", "--from-literal=answer=42")
    (cluster.config.training_storage / "model").write_text("weights")
    kube("create", "deployment", "kept", f"--image={pause_image}")
    kube("wait", "deployment/kept", "--for=condition=Available", "--timeout=60s")
    cluster.down(Phases())
    assert host_facts() == host_before
    assert cluster.status() == []
    cluster.up(Phases())
    assert kube("get", "configmap", "kept", "-o", "jsonpath={.data.answer}") == "42"
    assert (cluster.config.training_storage / "model").read_text() == "weights"
    kube("wait", "deployment/kept", "--for=condition=Available", "--timeout=60s")


def test_a_killed_supervisor_leaves_nothing_that_up_cannot_mend(
    cluster: EmbeddedCluster, kube: Callable[..., str]
) -> None:
    outer = int((cluster.config.state / "pid").read_text().split()[0])
    os.kill(outer, 9)
    wait_for(lambda: not control.is_running(cluster.config), "end of the supervisor")
    cluster.up(Phases())
    assert kube("get", "configmap", "kept", "-o", "jsonpath={.data.answer}") == "42"


def test_clean_removes_everything(
    cluster: EmbeddedCluster, host_before: dict[str, list[str]]
) -> None:
    state = cluster.config.state
    cluster.clean(Phases())
    assert host_facts() == host_before
    assert not state.exists()
    with pytest.raises(UserError, match="does not answer"):
        control.ask(cluster.config, "status")
