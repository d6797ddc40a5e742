"""A cluster that somebody else runs: the current context of the user's kubeconfig."""

import os
import subprocess
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase, Phases
from mlctl.base.wheels import kubectl
from mlctl.cluster.checkout import dag_values, head


class ExistingCluster:
    """Uses KUBECONFIG or ~/.kube/config as it is, and never stops or removes the cluster.

    Its nodes pull images from a registry, and its pods clone the DAGs from a git server, so
    both must be named: VALUES (a values file with the images) and DAGS_REPO.
    """

    kind = "existing"
    made_here = False

    def __init__(self, name: str) -> None:
        self.name = name
        named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        self.kubeconfig = Path(named or "~/.kube/config").expanduser()

    def doctor(self) -> None:
        problems = []
        if not self.kubeconfig.exists():
            problems.append(f"no kubeconfig at {self.kubeconfig}: set KUBECONFIG")
        else:
            ask = self._kubectl("get", "--raw", "/readyz")
            if ask.returncode != 0:
                problems.append(f"the API server does not answer: {ask.stderr.strip()}")
        if not os.environ.get("DAGS_REPO"):
            problems.append("set DAGS_REPO to a git address that pods can clone, holding dags/")
        if problems:
            raise UserError("; ".join(problems))

    def host_packages(self) -> list[str]:
        return []

    def up(self, phases: Phases) -> None:
        with phases.phase("Cluster: the current context answers"):
            self.doctor()

    def down(self, phases: Phases) -> None:
        raise UserError(
            "CLUSTER=existing is not ours to stop; `helm uninstall` removes the release"
        )

    def clean(self, phases: Phases) -> None:
        self.down(phases)

    def status(self) -> list[dict[str, Any]]:
        ready = self._kubectl("get", "--raw", "/readyz").returncode == 0
        return [{"name": "kube-apiserver", "state": "running" if ready else "unreachable"}]

    def remarks(self) -> list[str]:
        return []

    def log_files(self) -> dict[str, Path]:
        return {}

    def load_images(self, entries: dict[str, Any], phase: Phase) -> None:
        raise UserError(
            "images cannot be loaded into an existing cluster: push them to its registry "
            "(images/README.md) and name them in a values file with VALUES=FILE"
        )

    def images(self) -> set[str]:
        return set()  # Its nodes look after their images.

    def remove_images(self, names: set[str]) -> None:
        pass

    def values(self) -> dict[str, Any]:
        return dag_values(os.environ.get("DAGS_REPO", ""), os.environ.get("DAGS_REF", "main"))

    def publish(self, *, worktree: bool) -> str:
        if worktree:
            raise UserError("push to DAGS_REPO instead: only CLUSTER=embedded serves a checkout")
        return head()

    def _kubectl(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(kubectl()), "--kubeconfig", str(self.kubeconfig), "--request-timeout=10s"]
        return subprocess.run([*command, *words], capture_output=True, text=True)
