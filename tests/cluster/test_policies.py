"""NetworkPolicies on the embedded cluster, once its program for them was started."""

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlctl.base.waiting import until
from mlctl.cluster.embedded.components import NETWORK_POLICIES
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster

Ask = Callable[..., str]
Kube = Callable[..., str]

SERVE = """
import socketserver, sys, threading
class Greeting(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"hello\\n")
socketserver.ThreadingTCPServer.allow_reuse_address = True
servers = [socketserver.ThreadingTCPServer(("", int(port)), Greeting) for port in sys.argv[1:]]
print("ready", flush=True)
for server in servers:
    threading.Thread(target=server.serve_forever).start()
"""
ALLOWED, OTHER = "8000", "8001"


@pytest.fixture
def asked(
    cluster: EmbeddedCluster, kube: Kube, in_pod: Callable[[str], tuple[str, list[str]]]
) -> Iterator[str]:
    """The address of a pod that greets on two ports, while policies are enforced."""
    cluster.component("start", NETWORK_POLICIES)
    address, target = in_pod("asked")
    kube("label", "pod/asked", "app=asked", "--overwrite")
    serve = [*target, "python3", "-c", SERVE, ALLOWED, OTHER]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        yield address
        server.kill()
    kube("delete", "networkpolicies", "--all")
    kube("delete", "pod/asked")
    cluster.component("stop", NETWORK_POLICIES)


def policy(name: str, spec: dict[str, Any]) -> str:
    metadata = {"name": name, "namespace": "default"}
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return json.dumps(kind | {"metadata": metadata, "spec": spec})


def test_a_pod_is_reached_by_those_that_a_policy_names_on_the_port_that_it_names(
    cluster: EmbeddedCluster, kube: Kube, from_pod: Ask, asked: str
) -> None:
    def answers(*ports: str) -> list[str]:
        return [from_pod("tcp", asked, port, "") for port in ports]

    assert answers(ALLOWED, OTHER) == ["hello", "hello"]
    friends = [{"podSelector": {"matchLabels": {"app": "friend"}}}]
    rule = {"from": friends, "ports": [{"port": int(ALLOWED)}]}
    selector = {"matchLabels": {"app": "asked"}}
    ingress = {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": [rule]}
    kube("apply", "-f", "-", stdin=policy("asked", ingress))
    until(60, lambda: "hello" not in answers(ALLOWED, OTHER), "the policy is not enforced")
    kube("label", "pod/caller", "app=friend", "--overwrite")
    until(60, lambda: answers(ALLOWED) == ["hello"], "a friend is not let in")
    assert "refused" in from_pod("tcp", asked, OTHER, "")
    # Names only: nothing else is let out, not even to those who would let it in.
    ports = [{"protocol": "UDP", "port": 53}]
    out = {"matchLabels": {"app": "friend"}}
    egress = {"podSelector": out, "policyTypes": ["Egress"], "egress": [{"ports": ports}]}
    kube("apply", "-f", "-", stdin=policy("caller", egress))
    until(60, lambda: answers(ALLOWED) != ["hello"], "the policy for the way out is not enforced")
    node = cluster.config.node_ip
    assert from_pod("dns", node, "53", "kubernetes.default.svc.cluster.local").startswith("rcode")
    kube("delete", "pod/caller")
