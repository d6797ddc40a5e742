"""The stand-in for Weights & Biases in a cluster: what it is made of, and its keys."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import requests

from mlctl.base.paths import ROOT
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube

NAME, PORT = "wandb-stand-in", 8080
KEY_SECRET = f"{NAME}-key"
"""What the release reads; the stand-in has a Secret of its own."""
PROJECT = "end-to-end"


def new_key() -> str:
    """Return a key as W&B makes them."""
    return secrets.token_hex(20)


@dataclass
class StandIn:
    """The stand-in in the cluster."""

    kube: Kube
    forward: Forward
    keys: list[str] = field(default_factory=list)
    """All keys that there ever were, wrong ones too."""
    changed: datetime | None = None
    """When the last of them was put in the place of one that was right."""

    def summary(self) -> dict[str, Any]:
        """Return what has arrived there."""
        self.forward.ensure()
        answer = requests.get(f"{self.forward.url}/stand-in/summary", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def accept(self, key: str) -> None:
        """Let the server accept this key and no other."""
        self.keys.append(key)
        self.forward.ensure()
        requests.post(f"{self.forward.url}/stand-in/key", data=key, timeout=60).raise_for_status()

    def give(self, key: str) -> None:
        """Put a key into the Secret that the release names."""
        self.keys.append(key)
        self.kube.apply(secret(KEY_SECRET, key))


def secret(name: str, key: str) -> dict[str, Any]:
    """Return a Secret with a key."""
    metadata = {"name": name}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "stringData": {"api-key": key},
    }


def manifests(image: str, key: str) -> list[dict[str, Any]]:
    """Return the objects of the stand-in: it runs in an image that is there anyway."""
    labels = {"app.kubernetes.io/name": NAME}
    metadata = {"name": NAME, "labels": labels}
    script = (ROOT / "tests" / "helpers" / "wandb_server.py").read_text()
    identity = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    address = f"http://{NAME}:{PORT}"
    container = {
        "name": "server",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/script/wandb_server.py", "--address", address],
        "args": ["--port", str(PORT), "--key-file", "/key/api-key"],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/stand-in/health", "port": PORT},
            "periodSeconds": 2,
        },
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "script", "mountPath": "/script"},
            {"name": "key", "mountPath": "/key"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "script", "configMap": {"name": NAME}},
            {"name": "key", "secret": {"secretName": NAME}},
        ],
    }
    service = {"selector": labels, "ports": [{"port": PORT, "targetPort": PORT}]}
    data = {"wandb_server.py": script}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
        secret(NAME, key),
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]
