"""What the node gives its pods: the images that were loaded into it."""

import json
from collections.abc import Callable
from typing import Any

from mlctl.base.names import REPOSITORY
from mlctl.base.waiting import until
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from tests.helpers.embedded import pod


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
