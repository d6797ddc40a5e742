"""The embedded cluster for real: it starts, heals, keeps its data and leaves no trace.

The tests follow one cluster through its life, in the order they stand in.
"""

import json
import os
import re
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mlctl.base.errors import UserError
from mlctl.base.progress import Phases
from mlctl.base.wheels import kubectl
from mlctl.cluster.embedded import cgroups, control, doctor, mountpoints, outbound
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster

NAME = "ml-pipelines-unit"
NODE_SECONDS = 90

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


def host_facts() -> dict[str, list[str]]:
    """Return what a cluster could leave behind on this machine."""

    def lines(*command: str) -> list[str]:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # Counters and dates differ from call to call.
        kept = (re.sub(r"\[\d+:\d+\]|^#.*", "", line) for line in output.splitlines())
        return [line for line in kept if line]

    return {
        "mounts": lines("mount"),
        "links": lines("ip", "-brief", "link"),
        "routes": lines("ip", "route", "show", "table", "all"),
        # A machine on which no cluster has been yet does not have the program.
        "iptables": lines("iptables-save") if shutil.which("iptables-save") else [],
        "cgroups": [str(p) for h in cgroups.hierarchies() for p in h.glob("ml-pipelines-*")],
        "directories": [p for p in ("/var/lib/kubelet", "/var/lib/cni") if Path(p).exists()],
        "processes": [
            comm.parent.name
            for comm in Path("/proc").glob("[0-9]*/comm")
            if NAME.encode() in (comm.parent / "cmdline").read_bytes()
        ],
        "ways out": sorted(pids_of(outbound.PROGRAM)),
    }


def pids_of(program: str) -> list[int]:
    """Return the host's numbers of the processes of a program."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text() == f"{program}\n":
                found.append(int(comm.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool], what: str, seconds: float = NODE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def host_before() -> dict[str, list[str]]:
    # A cluster that was cut off (its machine stopped) has left its mount points to the next one
    # that goes down, which here would be the cluster under test.
    mountpoints.remove()
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


ASK = """
import socket, struct, sys
what, address, port, word = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
try:
    if what == "tcp":
        with socket.create_connection((address, port), timeout=5) as connection:
            print(connection.makefile().readline().strip())
    else:
        labels = b"".join(bytes([len(part)]) + part.encode() for part in word.split("."))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
            question.settimeout(10)
            header = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0)
            question.sendto(header + labels + bytes([0, 0, 1, 0, 1]), (address, port))
            print("rcode", question.recv(4096)[3] & 15)
except OSError as error:
    print(type(error).__name__, error)
"""
"""Say what a TCP server greets with, or how a name server answers a question about a name."""


@pytest.fixture(scope="module")
def from_pod(
    cluster: EmbeddedCluster, kube: Callable[..., str], pause_image: str
) -> Callable[..., str]:
    """Run ASK in the network of a pod, which is made anew when there is none."""

    def call(*words: str) -> str:
        kube("apply", "-f", "-", stdin=pod("caller", pause_image))
        kube("wait", "pod/caller", "--for=condition=Ready", "--timeout=60s")
        address = kube("get", "pod/caller", "-o", "jsonpath={.status.podIP}")
        # Another cluster's pods may have the same addresses, but they are in its cgroup.
        inside = next(
            pid
            for pid in pids_of("pause")
            if f"/{cluster.config.cgroup}/" in Path(f"/proc/{pid}/cgroup").read_text()
            and f" {address}/" in addresses_of(pid)
        )
        target = ["nsenter", "--target", str(inside), "--net"]
        result = subprocess.run([*target, "python3", "-c", ASK, *words], capture_output=True)
        return result.stdout.decode().strip() or result.stderr.decode()

    return call


def addresses_of(pid: int) -> str:
    """Return the addresses of the network that a process is in."""
    show = ["nsenter", "--target", str(pid), "--net", "ip", "-4", "-brief", "address"]
    return subprocess.run(show, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def host_address() -> str:
    """An address of this machine that its neighbours know it by."""
    show = ["ip", "-4", "-oneline", "address", "show", "scope", "global"]
    found = re.search(
        r" inet ([\d.]+)/", subprocess.run(show, capture_output=True, text=True).stdout
    )
    assert found is not None, "this machine has no address but the loopback's"
    return found[1]


@pytest.fixture
def greeter(host_address: str) -> Iterator[Callable[[str], int]]:
    """Start a TCP server of this machine on an address, and return its port."""
    servers = []

    def start(address: str) -> int:
        server = socketserver.ThreadingTCPServer((address, 0), Greeting)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Greeting(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"hello\n")


def a_name_that_the_host_resolves() -> str:
    """Return a name that this machine's name server knows: of a place it gets packages from."""
    for url in [*doctor.apt_mirrors(), *doctor.go_proxies()]:
        name = urlsplit(url).hostname or ""
        try:
            socket.gethostbyname(name)
        except OSError:
            continue
        # An address needs no name server, and neither does what a file of this machine knows.
        if not re.fullmatch(r"[\d.]+", name) and name not in Path("/etc/hosts").read_text().split():
            return name
    pytest.skip("this machine resolves no name of its package sources")


def test_pods_have_no_way_out(
    cluster: EmbeddedCluster,
    from_pod: Callable[..., str],
    host_address: str,
    greeter: Callable[[str], int],
) -> None:
    answer = from_pod("tcp", host_address, str(greeter(host_address)), "")
    assert "unreachable" in answer
    assert from_pod("dns", cluster.config.node_ip, "53", "example.com") == "rcode 2"
    assert outbound.PROGRAM not in {row["name"] for row in cluster.status()}
    assert "traffic of pods: off" in cluster.remarks()[0]


def again(monkeypatch: pytest.MonkeyPatch, choice: str) -> EmbeddedCluster:
    """Return the cluster as another command sees it, with a choice for OUTBOUND."""
    monkeypatch.delenv("API_PORT", raising=False)
    monkeypatch.setenv("OUTBOUND", choice)
    return EmbeddedCluster(NAME)


def test_pods_get_a_way_out_while_the_cluster_runs(
    cluster: EmbeddedCluster,
    monkeypatch: pytest.MonkeyPatch,
    from_pod: Callable[..., str],
    host_address: str,
    greeter: Callable[[str], int],
    host_before: dict[str, list[str]],
) -> None:
    again(monkeypatch, "1").up(Phases())
    port = str(greeter(host_address))
    assert from_pod("tcp", host_address, port, "") == "hello"
    assert component(cluster, outbound.PROGRAM)["state"] == "running"
    assert "traffic of pods: on" in cluster.remarks()[0]
    now = host_facts()
    for fact in ("mounts", "links", "routes", "iptables"):
        assert now[fact] == host_before[fact]
    # What listens on the loopback only is not for pods.
    hidden = str(greeter("127.0.0.1"))
    for address in (host_address, "127.0.0.1", "198.51.100.2"):
        assert "hello" not in from_pod("tcp", address, hidden, "")


def test_pods_resolve_what_the_host_resolves(
    cluster: EmbeddedCluster, from_pod: Callable[..., str]
) -> None:
    name = a_name_that_the_host_resolves()
    assert from_pod("dns", cluster.config.node_ip, "53", name) == "rcode 0"
    own = "kubernetes.default.svc.cluster.local"
    assert from_pod("dns", cluster.config.node_ip, "53", own) == "rcode 0"


def test_the_way_out_is_made_again_when_it_ends(
    cluster: EmbeddedCluster,
    from_pod: Callable[..., str],
    host_address: str,
    greeter: Callable[[str], int],
    host_before: dict[str, list[str]],
) -> None:
    (running,) = set(pids_of(outbound.PROGRAM)) - set(host_before["ways out"])
    os.kill(running, signal.SIGKILL)
    wait_for(lambda: component(cluster, outbound.PROGRAM)["restarts"] == 1, "new way out")
    port = str(greeter(host_address))
    wait_for(lambda: from_pod("tcp", host_address, port, "") == "hello", "way out", 20)


def test_the_way_out_outlives_down_and_up(
    cluster: EmbeddedCluster,
    kube: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    from_pod: Callable[..., str],
    host_address: str,
    greeter: Callable[[str], int],
    host_before: dict[str, list[str]],
) -> None:
    port = str(greeter(host_address))
    known = again(monkeypatch, "")
    kube("delete", "pod/caller")
    known.down(Phases())
    assert host_facts() == host_before
    known.up(Phases())
    assert from_pod("tcp", host_address, port, "") == "hello"
    again(monkeypatch, "0").up(Phases())
    assert "unreachable" in from_pod("tcp", host_address, port, "")
    assert host_facts()["ways out"] == host_before["ways out"]


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
