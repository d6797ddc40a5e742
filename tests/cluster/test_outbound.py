"""The way out of pods: closed, opened while the cluster runs, and made again when it ends."""

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.cluster.embedded import doctor, outbound
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from tests.helpers.embedded import NAME, UNCHANGED, component, host_facts, pids_of

Ask = Callable[..., str]
Greeter = Callable[[str], int]


@pytest.fixture(scope="module")
def way_out(embedded: None) -> Iterator[None]:
    """A cluster that was told OUTBOUND=1 while it ran; OUTBOUND=0 follows."""
    with pytest.MonkeyPatch.context() as environ:
        for choice in ("1", "0"):
            environ.setenv("OUTBOUND", choice)
            EmbeddedCluster(NAME).up(Phases())
            # From here on the cluster remembers.
            environ.delenv("OUTBOUND")
            if choice == "1":
                yield


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
    cluster: EmbeddedCluster, from_pod: Ask, host_address: str, greeter: Greeter
) -> None:
    answer = from_pod("tcp", host_address, str(greeter(host_address)), "")
    assert "unreachable" in answer
    assert from_pod("dns", cluster.config.node_ip, "53", "example.com") == "rcode 2"
    assert outbound.PROGRAM not in {row["name"] for row in cluster.status()}
    assert "traffic of pods: off" in cluster.remarks()[0]


def test_pods_get_a_way_out_while_the_cluster_runs(
    way_out: None,
    cluster: EmbeddedCluster,
    from_pod: Ask,
    host_address: str,
    greeter: Greeter,
    host_before: dict[str, list[str]],
) -> None:
    port = str(greeter(host_address))
    assert from_pod("tcp", host_address, port, "") == "hello"
    assert component(cluster, outbound.PROGRAM)["state"] == "running"
    assert "traffic of pods: on" in cluster.remarks()[0]
    now = host_facts()
    for fact in UNCHANGED:
        assert now[fact] == host_before[fact]
    # What listens on the loopback only is not for pods.
    hidden = str(greeter("127.0.0.1"))
    for address in (host_address, "127.0.0.1", "198.51.100.2"):
        assert "hello" not in from_pod("tcp", address, hidden, "")


def test_pods_resolve_what_the_host_resolves(
    way_out: None, cluster: EmbeddedCluster, from_pod: Ask
) -> None:
    name = a_name_that_the_host_resolves()
    assert from_pod("dns", cluster.config.node_ip, "53", name) == "rcode 0"
    own = "kubernetes.default.svc.cluster.local"
    assert from_pod("dns", cluster.config.node_ip, "53", own) == "rcode 0"


def test_the_way_out_is_made_again_when_it_ends(
    way_out: None,
    cluster: EmbeddedCluster,
    from_pod: Ask,
    host_address: str,
    greeter: Greeter,
    host_before: dict[str, list[str]],
) -> None:
    before = component(cluster, outbound.PROGRAM)["restarts"]
    (running,) = set(pids_of(outbound.PROGRAM)) - {int(pid) for pid in host_before["ways out"]}
    os.kill(running, signal.SIGKILL)
    until(
        90, lambda: component(cluster, outbound.PROGRAM)["restarts"] == before + 1, "no new way out"
    )
    port = str(greeter(host_address))
    until(60, lambda: from_pod("tcp", host_address, port, "") == "hello", "the way is not open")
