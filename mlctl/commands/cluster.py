"""The cluster alone: start and stop it, or one of its parts."""

from mlctl.base.progress import Phases, console
from mlctl.cluster.provider import Provider, breakable


def up(cluster: Provider) -> None:
    """Start the cluster."""
    cluster.up(Phases())
    console.print(f"ready: export KUBECONFIG={cluster.kubeconfig}")


def down(cluster: Provider) -> None:
    """Stop the cluster; its data stays."""
    cluster.down(Phases())


def clean(cluster: Provider) -> None:
    """Delete the cluster and its data."""
    cluster.clean(Phases())


def doctor(cluster: Provider) -> None:
    """Say whether this machine can run the cluster, and what to do if not."""
    cluster.doctor()
    print(f"nothing is in the way of CLUSTER={cluster.kind}")


def kubeconfig(cluster: Provider) -> None:
    """Print the path of the kubeconfig."""
    print(cluster.kubeconfig)


def stop(cluster: Provider, part: str) -> None:
    """Stop one part of the embedded cluster."""
    breakable(cluster).component("stop", part)


def start(cluster: Provider, part: str) -> None:
    """Start one part of the embedded cluster."""
    breakable(cluster).component("start", part)


def restart(cluster: Provider, part: str) -> None:
    """Stop and start one part of the embedded cluster."""
    breakable(cluster).component("restart", part)
