"""Files on a claim, as the pods of tasks see them: through a pod that mounts it."""

import secrets
from typing import Any, Self

from mlctl.base.errors import UserError
from mlctl.base.waiting import until
from mlctl.clients.kube import Kube
from mlctl.clients.pods import is_ready, state

START_SECONDS = 120
LIFE_SECONDS = 4 * 3600
"""A pod that nobody deletes, since its command was killed, ends after so long."""


class Volume:
    """A pod with a claim at /volume for one block; each look at the files is a command in it."""

    def __init__(self, kube: Kube, claim: str, image: str, *, read_only: bool = True) -> None:
        self.kube = kube
        self.claim = claim
        self.image = image
        self.read_only = read_only
        self.pod = f"volume-reader-{secrets.token_hex(4)}"

    def run(self, *command: str) -> str:
        """Return the output of a command. Raises UserError when it fails."""
        done = self.kube.run("exec", self.pod, "--", *command, check=False)
        if done.returncode != 0:
            words = " ".join(command)
            raise UserError(f"{words} on the claim {self.claim}: {done.stderr.strip()}")
        return done.stdout

    def read(self, path: str) -> str:
        """Return the text of a file; ``path`` is relative to the volume's root.

        Raises UserError when the file is not there.
        """
        return self.run("cat", f"/volume/{path}")

    def files(self, below: str = "") -> list[str]:
        """Return the paths of all files below a directory, relative to the volume's root."""
        found = self.run("find", "/volume", "-type", "f", "-printf", "%P\\n").splitlines()
        return sorted(path for path in found if path.startswith(f"{below}/" if below else ""))

    def __enter__(self) -> Self:
        def found() -> dict[str, Any]:
            return self.kube.get("pod", self.pod) or {"metadata": {}}

        self.kube.apply(self._manifest())
        try:
            until(
                START_SECONDS,
                lambda: is_ready(found()),
                lambda: f"the pod that reads the claim {self.claim}: {state(found())}",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kube.run("delete", "pod", self.pod, "--wait=false", "--ignore-not-found")

    def _manifest(self) -> dict[str, Any]:
        # The identity of the task pods: their files belong to it.
        identity = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
        mount = {"name": "storage", "mountPath": "/volume", "readOnly": self.read_only}
        reader = {
            "name": "reader",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [mount],
        }
        spec = {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFE_SECONDS,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [reader],
            "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": self.claim}}],
        }
        labels = {"app.kubernetes.io/name": "ml-pipelines-volume-reader"}
        metadata = {"name": self.pod, "labels": labels}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
