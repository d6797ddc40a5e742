"""A cluster that somebody else runs: the current context of the user's kubeconfig."""

import os
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.names import NAMESPACE
from mlctl.base.progress import Phase, Phases
from mlctl.clients.kube import Kube
from mlctl.cluster.checkout import FromRepository


class ExistingCluster(FromRepository):
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
        problems = self.repository_problems()
        if not self.kubeconfig.exists():
            problems.append(f"no kubeconfig at {self.kubeconfig}: set KUBECONFIG")
        elif problem := self._problem():
            problems.append(f"the API server does not answer: {problem}")
        if problems:
            raise UserError("; ".join(problems))

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
        state = "unreachable" if self._problem() else "running"
        return [{"name": "kube-apiserver", "state": state}]

    def log_files(self) -> dict[str, Path]:
        return {}

    def load_images(self, entries: dict[str, Any], phase: Phase) -> None:
        raise UserError(
            "images cannot be loaded into an existing cluster: push them to its registry "
            "(images/README.md) and name them in a values file with VALUES=FILE"
        )

    def _problem(self) -> str:
        return Kube(self.kubeconfig, NAMESPACE).problem()
