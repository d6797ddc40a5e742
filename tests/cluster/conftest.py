"""The embedded cluster for real, one for all tests.

A test finds it running, and closes what it opens: each can run alone (-k).
"""

import os
import re
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlctl.base.progress import Phases
from mlctl.base.wheels import kubectl
from mlctl.cluster.embedded import mountpoints
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from tests.helpers.embedded import ASK, NAME, Greeting, addresses_of, host_facts, pids_of, pod


@pytest.fixture(scope="session")
def host_before() -> dict[str, list[str]]:
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    # A cluster that was cut off (its machine stopped) has left its mount points to the next one
    # that goes down, which here would be the cluster under test.
    mountpoints.remove()
    return host_facts()


@pytest.fixture(scope="session")
def embedded(host_before: dict[str, list[str]]) -> Iterator[None]:
    """One cluster, which begins without data and is gone at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("API_PORT", str(port))
        environ.delenv("OUTBOUND", raising=False)
        first = EmbeddedCluster(NAME)
        first.clean(Phases())
        first.up(Phases())
        environ.delenv("API_PORT")
        yield
        EmbeddedCluster(NAME).clean(Phases())


@pytest.fixture
def cluster(embedded: None) -> EmbeddedCluster:
    """The cluster as a new command sees it, running."""
    found = EmbeddedCluster(NAME)
    found.up(Phases())
    return found


@pytest.fixture(scope="session")
def kube(embedded: None) -> Callable[..., str]:
    kubeconfig = str(EmbeddedCluster(NAME).kubeconfig)

    def call(*words: str, stdin: str | None = None) -> str:
        command = [str(kubectl()), "--kubeconfig", kubeconfig, *words]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


@pytest.fixture(scope="session")
def pause_image(embedded: None) -> str:
    text = (EmbeddedCluster(NAME).config.etc / "containerd.toml").read_text()
    found = re.search(r'sandbox_image = "(.+)"', text)
    assert found is not None
    return found[1]


@pytest.fixture(scope="session")
def in_pod(kube: Callable[..., str], pause_image: str) -> Callable[[str], tuple[str, list[str]]]:
    """Return a pod's address, and the words before a command of this machine that put it into the
    pod's network. The pod is made anew when there is none."""

    def find(name: str) -> tuple[str, list[str]]:
        kube("apply", "-f", "-", stdin=pod(name, pause_image))
        kube("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
        address = kube("get", f"pod/{name}", "-o", "jsonpath={.status.podIP}")
        # Another cluster's pods may have the same addresses, but they are in its cgroup.
        inside = next(
            pid
            for pid in pids_of("pause")
            if f"/{EmbeddedCluster(NAME).config.cgroup}/" in Path(f"/proc/{pid}/cgroup").read_text()
            and f" {address}/" in addresses_of(pid)
        )
        return address, ["nsenter", "--target", str(inside), "--net"]

    return find


@pytest.fixture(scope="session")
def from_pod(in_pod: Callable[[str], tuple[str, list[str]]]) -> Callable[..., str]:
    """Run ASK in the network of a pod."""

    def call(*words: str) -> str:
        _, target = in_pod("caller")
        result = subprocess.run([*target, "python3", "-c", ASK, *words], capture_output=True)
        return result.stdout.decode().strip() or result.stderr.decode()

    return call


@pytest.fixture(scope="session")
def host_address() -> str:
    """An address of this machine that its neighbours know it by."""
    show = ["ip", "-4", "-oneline", "address", "show", "scope", "global"]
    found = re.search(
        r" inet ([\d.]+)/", subprocess.run(show, capture_output=True, text=True).stdout
    )
    assert found is not None, "this machine has no address but the loopback's"
    return found[1]


@pytest.fixture(scope="module")
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
