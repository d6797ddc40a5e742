"""What every kind of cluster offers to the commands, and how one is chosen."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase, Phases
from mlctl.cluster.embedded.config import Config
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster
from mlctl.cluster.existing import ExistingCluster
from mlctl.cluster.kind import KindCluster, docker_answers

DEFAULT_NAME = "ml-pipelines"


class Provider(Protocol):
    """A Kubernetes cluster that commands can bring up, use and take down."""

    name: str
    kind: str
    """What CLUSTER calls it, for messages: no caller decides by it."""
    kubeconfig: Path
    made_here: bool
    """It takes the images that are built here, and is ours to stop; else a registry has them."""

    def host_packages(self) -> list[str]:
        """Return the Debian packages that ``up`` needs on this machine."""

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

    def load_images(self, entries: dict[str, Any], phase: Phase) -> None:
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


@runtime_checkable
class Breakable(Provider, Protocol):
    """A cluster whose parts can be stopped, and which serves any checkout: for trials."""

    config: Config
    """Where its parts are and listen."""

    def component(self, operation: str, name: str) -> None:
        """``stop``, ``start`` or ``restart`` one part."""

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the process of one part."""

    def cut_power(self) -> None:
        """End the node as a power cut does: at once, and nothing is told before."""

    def in_network(self, *command: str) -> list[str]:
        """Return the command line that runs a command of this machine in the node's network."""

    def serve(self, checkout: Path, *, worktree: bool = False) -> str:
        """Publish the DAGs of a checkout, not necessarily this one; return the commit's id."""


def breakable(cluster: Provider) -> Breakable:
    """Return the cluster when its parts can be stopped. Raises UserError when not."""
    if not isinstance(cluster, Breakable):
        raise UserError(f"this is for CLUSTER=embedded, whose parts are ours; not {cluster.kind}")
    return cluster


def provider(name: str | None = None) -> Provider:
    """Return the cluster that CLUSTER and CLUSTER_NAME choose.

    CLUSTER defaults to ``kind`` where a Docker engine and kind are there, else to
    ``embedded``.

    Raises UserError for an unknown choice.
    """
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
