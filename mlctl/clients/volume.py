"""Files on the training storage, read through a pod that mounts the claim."""

import secrets
import time

from mlctl.base.errors import UserError
from mlctl.clients.kube import Kube
from mlctl.clients.pods import state

SECONDS = 120


def read_file(kube: Kube, claim: str, path: str, image: str) -> str:
    """Return the text of a file on the claim; ``path`` is relative to the volume's root.

    Raises UserError when the file is not there or the pod does not run.
    """
    return run_pod(kube, claim, image, ["cat", f"/volume/{path}"])


def list_files(kube: Kube, claim: str, image: str) -> list[str]:
    """Return the paths of all files on the claim, relative to the volume's root."""
    script = ["find", "/volume", "-type", "f", "-printf", "%P\\n"]
    return sorted(run_pod(kube, claim, image, script).splitlines())


def run_pod(
    kube: Kube, claim: str, image: str, command: list[str], *, read_only: bool = True
) -> str:
    """Run a command in a pod with the claim at /volume and return its output.

    Raises UserError when the command fails or the pod does not end within SECONDS.
    """
    name = f"volume-reader-{secrets.token_hex(4)}"
    # The identity of the task pods: their files belong to it.
    identity = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "ml-pipelines-volume-reader"},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": SECONDS,
            "automountServiceAccountToken": False,
            "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "reader",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "storage", "mountPath": "/volume", "readOnly": read_only}
                    ],
                }
            ],
            "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
    kube.apply(manifest)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            pod = kube.get("pod", name)
            phase = pod["status"].get("phase") if pod else "gone"
            if phase in {"Succeeded", "Failed"}:
                break
            if time.monotonic() > deadline:
                raise UserError(f"the pod that reads the claim {claim}: {state(pod or {})}")
            time.sleep(0.3)
        output = kube.run("logs", name).stdout
        if phase == "Failed":
            raise UserError(f"{' '.join(command)} on the claim {claim}: {output.strip()}")
        return output
    finally:
        kube.run("delete", "pod", name, "--wait=false", "--ignore-not-found")
