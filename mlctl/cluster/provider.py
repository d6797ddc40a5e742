"""What every kind of cluster offers to the commands, and how one is chosen."""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, Protocol

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase, Phases

DEFAULT_NAME = "ml-pipelines"


class Provider(Protocol):
    """A Kubernetes cluster that commands can bring up, use and take down."""

    name: str
    kind: str
    kubeconfig: Path

    def doctor(self) -> None:
        """Raise UserError, naming everything that is in the way; change nothing."""

    def up(self, phases: Phases) -> None:
        """Have a cluster that is ready; do nothing when it is."""

    def down(self, phases: Phases) -> None:
        """Stop the cluster; its data stay."""

    def clean(self, phases: Phases) -> None:
        """Remove the cluster with all its data."""

    def status(self) -> list[dict[str, Any]]:
        """Return a row ``{"name", "state", ...}`` for each part."""

    def remarks(self) -> list[str]:
        """Return lines for `make status` about what was chosen for a running cluster."""

    def log_files(self) -> dict[str, Path]:
        """Return the log of each part."""

    def load_images(self, lock: dict[str, Any], phase: Phase) -> None:
        """Make the images of build/images.json available to pods.

        May be called from another thread while ``up`` is under way.
        """

    def images(self) -> set[str]:
        """Return the full names of this project's images on the node; none where it has no say."""

    def remove_images(self, names: set[str]) -> None:
        """Remove images from the node, by full names."""

    def values(self) -> dict[str, Any]:
        """Return Helm values that only this cluster can know."""

    def publish(self, *, worktree: bool) -> str:
        """Publish the DAGs of this checkout to pods and return the commit's id."""


def provider(name: str | None = None) -> Provider:
    """Return the cluster that CLUSTER and CLUSTER_NAME choose.

    CLUSTER defaults to ``kind`` where a Docker engine and kind are there, else to
    ``embedded``.

    Raises UserError for an unknown choice.
    """
    from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
    from mlctl.cluster.existing import ExistingCluster
    from mlctl.cluster.kind import KindCluster

    kinds = {"embedded": EmbeddedCluster, "kind": KindCluster, "existing": ExistingCluster}
    kind = os.environ.get("CLUSTER") or default_kind()
    if kind not in kinds:
        raise UserError(f"CLUSTER={kind!r}: use one of {', '.join(kinds)}")
    return kinds[kind](name or os.environ.get("CLUSTER_NAME") or DEFAULT_NAME)


def default_kind() -> str:
    """Return the provider that fits this machine.

    Raises UserError when none does.
    """
    if shutil.which("kind") and docker_answers():
        return "kind"
    if platform.system() == "Linux":
        return "embedded"
    raise UserError(
        f"{platform.system()} cannot run the embedded cluster: start Docker and install kind, "
        "or use the current kubeconfig context with CLUSTER=existing"
    )


def docker_answers() -> bool:
    """Say whether a Docker engine answers."""
    if not shutil.which("docker"):
        return False
    try:
        result = subprocess.run(["docker", "info"], capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0
