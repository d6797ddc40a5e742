"""A pod that lives as long as a block and does nothing by itself: commands run in it."""

import secrets
from pathlib import Path
from typing import Any, Self

from mlctl.base.errors import UserError
from mlctl.base.waiting import until
from mlctl.clients.kube import Kube
from mlctl.clients.pods import is_ready, is_stuck, state

START_SECONDS = 120
LIFE_SECONDS = 4 * 3600
"""A pod that nobody deletes, since its command was killed, ends after so long."""


class HelperPod:
    """A pod of one container; it passes the "restricted" profile of the Pod Security Standards."""

    def __init__(
        self,
        kube: Kube,
        purpose: str,
        user: int,
        labels: dict[str, str],
        container: dict[str, Any],
        **spec: Any,
    ) -> None:
        """``purpose`` is said when it does not start, ``spec`` is added to the pod's."""
        self.kube = kube
        self.purpose = purpose
        self.pod = f"{labels['app.kubernetes.io/name']}-{secrets.token_hex(4)}"
        safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        waiting = {"imagePullPolicy": "IfNotPresent", "command": ["sleep", "infinity"]}
        identity = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
        self.manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.pod, "labels": labels},
            "spec": {
                "restartPolicy": "Never",
                "activeDeadlineSeconds": LIFE_SECONDS,
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
                "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"securityContext": safe, **waiting, **container}],
                **spec,
            },
        }

    def run(self, *command: str) -> str:
        """Return the output of a command. Raises UserError when it fails."""
        done = self.kube.run("exec", self.pod, "--", *command, check=False)
        if done.returncode != 0:
            raise UserError(f"{' '.join(command)} {self.purpose}: {done.stderr.strip()}")
        return done.stdout

    def fetch(self, target: Path, *command: str) -> None:
        """Write what a command prints into a file. Raises KubectlError when it fails."""
        self.kube.transfer("exec", self.pod, "--", *command, target=target)

    def feed(self, source: Path, *command: str) -> None:
        """Run a command with a file as its input. Raises KubectlError when it fails."""
        self.kube.transfer("exec", "--stdin", self.pod, "--", *command, source=source)

    def __enter__(self) -> Self:
        def ready() -> bool:
            found = self.kube.get("pod", self.pod) or {"metadata": {}}
            if is_stuck(found):
                raise UserError(f"the pod {self.purpose} cannot start: {state(found)}")
            return is_ready(found)

        def seen() -> str:
            return state(self.kube.get("pod", self.pod) or {"metadata": {}})

        self.kube.apply(self.manifest)
        try:
            until(START_SECONDS, ready, lambda: f"the pod {self.purpose}: {seen()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kube.run("delete", "pod", self.pod, "--wait=false", "--ignore-not-found")
