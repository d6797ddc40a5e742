"""The release on an empty cluster, by Helm 3; Helm 4 changes it and changes it back."""

import base64
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from pytest_helm_charts.clusters import Cluster
from pytest_helm_charts.k8s.deployment import wait_for_deployments_to_run
from pytest_helm_charts.k8s.stateful_set import wait_for_stateful_sets_to_run

from mlctl.base.names import NAMESPACE, RELEASE
from mlctl.base.progress import Phase
from mlctl.clients.airflow import Airflow
from mlctl.clients.pods import is_ready, restarts, state
from mlctl.release.release import Release
from tests.helpers.releases import helm, helm_of, secrets

Aloud = Callable[[str], AbstractContextManager[Phase]]


def test_deployments_run(release: Release, kube_cluster: Cluster) -> None:
    names = [f"{RELEASE}-{part}" for part in ("scheduler", "triggerer", "webserver", "mlflow")]
    wait_for_deployments_to_run(kube_cluster.kube_client, names, NAMESPACE, 120)
    assert {one["metadata"]["name"] for one in release.kube.items("deployments")} == set(names)


def test_stateful_sets_run(release: Release, kube_cluster: Cluster) -> None:
    names = [f"{RELEASE}-postgres"]
    wait_for_stateful_sets_to_run(kube_cluster.kube_client, names, NAMESPACE, 120)
    assert {one["metadata"]["name"] for one in release.kube.items("statefulsets")} == set(names)


def test_every_pod_is_well_and_was_never_restarted(release: Release) -> None:
    pods = release.pods()
    assert pods
    assert {
        pod["metadata"]["name"]: state(pod) for pod in pods if not is_ready(pod) or restarts(pod)
    } == {}


def test_the_claim_of_the_document_is_bound(release: Release) -> None:
    claim = release.kube.get("persistentvolumeclaim", "training-storage")
    assert claim is not None
    assert claim["status"]["phase"] == "Bound"


@pytest.mark.parametrize("major", [3, 4])
def test_helm_test_passes(release: Release, major: int) -> None:
    with helm_of(major):
        assert helm(release, "version", "--short").startswith(f"v{major}.")
        assert "Succeeded" in helm(release, "test", RELEASE, "--timeout", "180s")


def test_a_second_deploy_changes_nothing(release: Release, aloud: Aloud) -> None:
    before = release.status()
    assert before is not None
    assert (before.state, before.revision) == ("deployed", 1)
    with aloud("deploy again") as phase:
        assert release.deploy(phase) is False
    assert release.status() == before


def test_helm_4_upgrades_what_helm_3_has_installed_and_rolls_back(
    release: Release, client: Airflow, aloud: Aloud
) -> None:
    first = release.status()
    assert first is not None
    kept = secrets(release)
    assert any(name.endswith("-admin") for name in kept)

    # A configuration that every Airflow pod reads: all of them are replaced, the migration job
    # (immutable once made) is wanted again.
    # Applied by the server, as Helm 4 does with what it has installed itself.
    title = ("--set", "airflow.config.webserver.instance_name=another title", "--server-side=true")
    with helm_of(4), aloud("upgrade with another page title") as phase:
        release.deploy(phase, extra=title)
    second = release.status()
    assert second is not None
    assert (second.state, second.revision) == ("deployed", first.revision + 1)
    assert secrets(release) == kept
    assert "another title" in client.page("home").text

    with helm_of(4), aloud("roll back") as phase:
        phase.note("helm rollback --wait")
        helm(release, "rollback", RELEASE, str(first.revision), "--wait", "--timeout", "300s")
        release.wait_ready(phase)
    third = release.status()
    assert third is not None
    assert (third.state, third.revision) == ("deployed", first.revision + 2)
    assert secrets(release) == kept
    assert "another title" not in client.page("home").text


def test_generated_secrets_are_random(release: Release) -> None:
    password = base64.b64decode(secrets(release)[f"{RELEASE}-admin"]["password"]).decode()
    assert len(password) >= 16
    assert password not in {"admin", "password", RELEASE}
