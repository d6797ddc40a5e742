"""Helm 3 from install to uninstall, in a namespace of its own beside the release of Helm 4."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from mlctl.base.names import RELEASE
from mlctl.base.progress import Phase
from mlctl.base.wheels import program
from mlctl.clients.kube import Kube
from mlctl.clients.pods import is_ready
from mlctl.release.release import Release, Status, merge
from mlctl.stack import Stack
from tests.helpers.releases import helm, secrets

NAMESPACE = "ml-pipelines-helm3"

Aloud = Callable[[str], AbstractContextManager[Phase]]


@pytest.fixture(scope="module")
def third(stack: Stack, release: Release, aloud: Aloud) -> Iterator[Release]:
    """The same chart and images, installed by Helm 3."""
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("HELM", str(program("helm", "helm3")))
        # Volumes have no namespace: this release needs one of its own name.
        own_volume = {"storage": {"local": {"volumeName": NAMESPACE}}}
        values = merge(release.values, own_volume)
        installed = Release(Kube(release.kube.kubeconfig, NAMESPACE), values, NAMESPACE)
        with aloud("install with Helm 3") as phase:
            installed.deploy(phase)
        yield installed
        with aloud("uninstall with Helm 3"):
            installed.uninstall()
            stack.kube.run("delete", "namespace", NAMESPACE, "--timeout=120s", timeout=150)
            stack.kube.run("delete", "persistentvolume", NAMESPACE, "--ignore-not-found")


def status(release: Release) -> Status:
    found = release.status()
    assert found is not None
    return found


def test_helm_3_is_what_installed_it(third: Release) -> None:
    assert helm(third, "version", "--short").startswith("v3.")
    assert (status(third).state, status(third).revision) == ("deployed", 1)
    assert all(is_ready(pod) for pod in third.pods())


def test_helm_test_passes(third: Release) -> None:
    assert "Succeeded" in helm(third, "test", RELEASE, "--timeout", "180s")


def test_upgrade_and_rollback_keep_the_secrets(third: Release, aloud: Aloud) -> None:
    first, kept = status(third), secrets(third)
    with aloud("upgrade with Helm 3") as phase:
        third.deploy(phase, extra=("--set", "airflow.config.webserver.instance_name=three"))
    assert (status(third).state, status(third).revision) == ("deployed", 2)
    assert secrets(third) == kept
    with aloud("roll back with Helm 3") as phase:
        helm(third, "rollback", RELEASE, str(first.revision), "--wait", "--timeout", "300s")
        third.wait_ready(phase)
    assert (status(third).state, status(third).revision) == ("deployed", 3)
    assert secrets(third) == kept
