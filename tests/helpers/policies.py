"""Who may reach whom under the NetworkPolicies of a render, by the rules of Kubernetes.

A connection needs both ends: the egress of the pod that asks and the ingress of the one that is
asked. A pod that no policy of a direction selects is open in that direction
(https://kubernetes.io/docs/concepts/services-networking/network-policies/).
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.manifests import Manifests

NAMESPACE_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """An end of a connection: a pod, or with ``address`` something outside of the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


class Policies:
    """The NetworkPolicies of one render, all of them added up."""

    def __init__(self, manifests: Manifests, namespace: str = "ml-pipelines") -> None:
        """``namespace`` is that of objects that name none."""
        self._all = [
            (found["metadata"].get("namespace", namespace), found["spec"])
            for found in manifests.of("NetworkPolicy")
        ]

    def let(self, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
        """Say whether ``source`` may open a connection to ``port`` of ``target``."""
        return self._direction("Egress", "to", source, target, port, protocol) and self._direction(
            "Ingress", "from", target, source, port, protocol
        )

    def _direction(
        self, kind: str, peers: str, pod: Peer, other: Peer, port: int, protocol: str
    ) -> bool:
        if pod.address:
            return True
        selecting = [
            (namespace, spec)
            for namespace, spec in self._all
            if namespace == pod.namespace
            and kind in spec["policyTypes"]
            and _selects(spec["podSelector"], pod.labels)
        ]
        return not selecting or any(
            _has_peer(rule.get(peers), other, namespace)
            and _has_port(rule.get("ports"), port, protocol)
            for namespace, spec in selecting
            for rule in spec.get(kind.lower()) or []
        )


def _has_peer(peers: list[dict[str, Any]] | None, other: Peer, namespace: str) -> bool:
    return not peers or any(_is_peer(peer, other, namespace) for peer in peers)


def _is_peer(peer: dict[str, Any], other: Peer, namespace: str) -> bool:
    if block := peer.get("ipBlock"):
        return (
            bool(other.address)
            and _within(other.address, [block["cidr"]])
            and not _within(other.address, block.get("except", []))
        )
    if other.address:
        return False
    if "namespaceSelector" in peer:
        there = _selects(peer["namespaceSelector"], {NAMESPACE_LABEL: other.namespace})
    else:
        there = other.namespace == namespace
    return there and _selects(peer.get("podSelector", {}), other.labels)


def _within(address: str, networks: Iterable[str]) -> bool:
    return any(
        ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in networks
    )


def _has_port(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    """Rules of this chart and the official one give numbers, as text at times, and no ranges."""
    return not ports or any(
        one.get("protocol", "TCP") == protocol and int(one["port"]) == port for one in ports
    )


def _selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    operators = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
        "Exists": lambda value, _: value is not None,
        "DoesNotExist": lambda value, _: value is None,
    }
    exact = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        operators[one["operator"]](labels.get(one["key"]), one.get("values"))
        for one in selector.get("matchExpressions") or []
    )
