"""The end of the release: it goes, its data and passwords stay, and Helm 4 goes on from them."""

from mlctl.base.names import RELEASE, TRAINING
from mlctl.release.release import Release
from mlctl.stack import Stack
from tests.helpers.releases import helm_of, secrets


def test_uninstall_leaves_data_and_passwords_and_nothing_that_runs(release: Release) -> None:
    before = secrets(release)
    release.uninstall()
    assert release.status() is None
    kinds = "deployments,statefulsets,cronjobs,jobs,services,configmaps"
    left = release.kube.items(kinds, "app.kubernetes.io/managed-by=Helm")
    assert [f"{one['kind']} {one['metadata']['name']}" for one in left] == []
    claims = release.kube.items("persistentvolumeclaims")
    assert {
        one["metadata"]["name"] for one in claims if "deletionTimestamp" not in one["metadata"]
    } == {"training-storage", f"{RELEASE}-mlflow", f"{RELEASE}-postgres"}
    assert all(one["status"]["phase"] == "Bound" for one in claims)
    after = secrets(release)
    assert after[f"{RELEASE}-admin"] == before[f"{RELEASE}-admin"]
    assert after[f"{RELEASE}-fernet-key"] == before[f"{RELEASE}-fernet-key"]


def test_an_install_by_helm_4_goes_on_with_what_stayed(
    stack: Stack, release: Release, training_started: str, aloud
) -> None:
    release.uninstall()
    kept = secrets(release)[f"{RELEASE}-admin"]
    with helm_of(4), aloud("install the release with Helm 4") as phase:
        assert release.deploy(phase)
    installed = release.status()
    assert installed is not None
    assert (installed.state, installed.revision) == ("deployed", 1)
    assert secrets(release)[f"{RELEASE}-admin"] == kept
    with stack.airflow() as airflow:
        assert airflow.run(TRAINING, training_started)["dag_run_id"] == training_started
