"""What the node gives its pods: the images that were loaded into it, and logs that stay whole."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlctl.base.names import REPOSITORY
from mlctl.base.waiting import until
from mlctl.base.wheels import kubectl
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from tests.helpers.embedded import pod

PROGRAMS = [path for path in ("/usr", "/lib", "/lib64") if Path(path).exists()]
"""Directories that a pod needs to run programs of this machine."""


def always(name: str, image: str) -> str:
    manifest = json.loads(pod(name, image))
    (container,) = manifest["spec"]["containers"]
    container["imagePullPolicy"] = "Always"
    sidecar = container | {"name": "sidecar", "restartPolicy": "Always"}
    manifest["spec"]["initContainers"] = [sidecar]
    return json.dumps(manifest)


def status(kube: Callable[..., str], name: str) -> dict[str, Any]:
    """Return the status of a pod's container, {} before it has one."""
    found = json.loads(kube("get", "pod", name, "-o", "json"))["status"]
    return found.get("containerStatuses", [{}])[0]


def test_an_image_of_the_node_starts_also_with_always(
    cluster: EmbeddedCluster, kube: Callable[..., str], pause_image: str
) -> None:
    for _ in "once", "again":
        kube("apply", "-f", "-", stdin=always("always", pause_image))
    kube("wait", "pod/always", "--for=condition=Ready", "--timeout=60s")
    # As after an import: had it been pulled, the name of a repository would stand before it.
    assert status(kube, "always")["imageID"].startswith("sha256:")
    kube("delete", "pod/always")


def test_an_image_that_the_node_lacks_is_not_found(
    cluster: EmbeddedCluster, kube: Callable[..., str]
) -> None:
    image = f"{REPOSITORY}/nothing:1"
    kube("apply", "-f", "-", stdin=pod("lacking", image))

    def refusal() -> str:
        return status(kube, "lacking").get("state", {}).get("waiting", {}).get("message", "")

    message = until(60, refusal, "the pod says nothing")
    assert message.endswith(f"{image}: not found"), message
    kube("delete", "pod/lacking")


def test_a_slow_reader_gets_every_line_of_a_log(
    cluster: EmbeddedCluster, kube: Callable[..., str], pause_image: str
) -> None:
    bursts, lines = 2, 10_000
    # The kubelet looks every 10 s for logs to rotate: twice here, with 20 MB each time. Between the
    # reader and the log there are buffers for half of that.
    write = f'seq --format "$burst %.0f {"x" * 2000}" {lines}; sleep 11'
    manifest = json.loads(pod("writer", pause_image))
    spec = manifest["spec"]
    (container,) = spec["containers"]
    container["command"] = ["/usr/bin/sh", "-c", f"for burst in $(seq {bursts}); do {write}; done"]
    container["env"] = [{"name": "PATH", "value": "/usr/bin"}]
    names = {path: path.strip("/") for path in PROGRAMS}
    container["volumeMounts"] = [
        {"name": name, "mountPath": path, "readOnly": True} for path, name in names.items()
    ]
    spec["volumes"] = [{"name": name, "hostPath": {"path": path}} for path, name in names.items()]
    spec["restartPolicy"] = "Never"
    kube("apply", "-f", "-", stdin=json.dumps(manifest))
    kube("wait", "pod/writer", "--for=condition=Ready", "--timeout=60s")
    follow = [str(kubectl()), "--kubeconfig", str(cluster.kubeconfig), "logs", "-f", "writer"]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as reader:
        read = [reader.stdout.readline()]
        kube("wait", "pod/writer", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=180s")
        read += reader.stdout
    assert [line.partition(" x")[0] for line in read] == [
        f"{burst} {line}" for burst in range(1, bursts + 1) for line in range(1, lines + 1)
    ]
    kube("delete", "pod/writer")
