"""The end of the release: it goes, and its data and passwords stay."""

from mlctl.base.names import RELEASE
from mlctl.release.release import Release
from tests.helpers.releases import secrets


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
