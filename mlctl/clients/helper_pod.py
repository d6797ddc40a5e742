"""A pod of ours for a while, in which commands are run."""

import secrets
from collections.abc import Mapping
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
    """A pod that is there for one ``with`` block; its first container sleeps."""

    def __init__(
        self,
        kube: Kube,
        name: str,
        purpose: str,
        spec: Mapping[str, Any],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """``purpose`` says in errors what it is for, ``spec`` is that of a Pod."""
        self.kube = kube
        self.name = f"{name}-{secrets.token_hex(4)}"
        self.purpose = purpose
        first, *others = spec["containers"]
        first = {key: value for key, value in first.items() if not key.endswith("Probe")}
        first |= {"command": ["sleep", "infinity"], "args": []}
        self.container = first["name"]
        spec = dict(spec) | {
            "containers": [first, *others],
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFE_SECONDS,
            "terminationGracePeriodSeconds": 1,
        }
        metadata = {"name": self.name, "labels": dict(labels or {})}
        self.manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def run(self, *command: str, timeout: float = 60) -> str:
        """Return the output of a command. Raises UserError when it fails."""
        done = self.kube.run(*self._exec(*command), timeout=timeout, check=False)
        if done.returncode != 0:
            raise UserError(f"{' '.join(command)} {self.purpose}: {done.stderr.strip()}")
        return done.stdout

    def fetch_tar(self, target: Path, *command: str) -> None:
        """Write the tar that a command prints into a file. Raises KubectlError as Kube's does."""
        self.kube.fetch_tar(*self._exec(*command), target=target)

    def feed(self, source: Path, *command: str) -> None:
        """Run a command with a file as its input. Raises KubectlError when it fails."""
        self.kube.transfer(*self._exec(*command), source=source)

    def _exec(self, *command: str) -> list[str]:
        where = [self.name, "--container", self.container]
        return ["exec", "--stdin", *where, "--", *command]

    def __enter__(self) -> Self:
        def ready() -> bool:
            found = self.kube.get("pod", self.name) or {"metadata": {}}
            if is_stuck(found):
                raise UserError(f"the pod {self.purpose} cannot start: {state(found)}")
            return is_ready(found)

        def seen() -> str:
            return state(self.kube.get("pod", self.name) or {"metadata": {}})

        self.kube.apply(self.manifest)
        try:
            until(START_SECONDS, ready, lambda: f"the pod {self.purpose}: {seen()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kube.run("delete", "pod", self.name, "--wait=false", "--ignore-not-found")
