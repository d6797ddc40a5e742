"""The end of the release: it goes, and its data stay."""

from mlctl.release.release import Release


def test_uninstall_leaves_the_claims_and_nothing_that_runs(release: Release) -> None:
    claims = {one["metadata"]["name"] for one in release.kube.items("persistentvolumeclaims")}
    assert claims
    release.uninstall()
    assert release.status() is None
    kinds = "deployments,statefulsets,cronjobs,jobs,services,configmaps"
    left = release.kube.items(kinds, "app.kubernetes.io/managed-by=Helm")
    assert [f"{one['kind']} {one['metadata']['name']}" for one in left] == []
    bound = {
        one["metadata"]["name"]
        for one in release.kube.items("persistentvolumeclaims")
        if one["status"]["phase"] == "Bound"
    }
    assert bound == claims
