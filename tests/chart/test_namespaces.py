"""Namespaces besides the release's in which tasks may run: what is there, and who may do what."""

import pytest

from tests.helpers.helm import render

NAMESPACES = {"pipelines": {"namespaces": ["default", "team-b"]}}


@pytest.fixture(scope="module")
def manifests():
    return render(NAMESPACES)


def there(manifests, namespace):
    """Kinds and names, those of Jobs without their hash."""
    return {
        (o["kind"], name.rsplit("-", 1)[0] if o["kind"] == "Job" else name)
        for o in manifests.objects
        if o["metadata"].get("namespace") == namespace
        for name in [o["metadata"]["name"]]
    }


def rights(manifests, namespace):
    """By account of the release: what it may do in a namespace."""
    found = {}
    roles = {
        o["metadata"]["name"]: o["rules"]
        for o in manifests.of("Role")
        if o["metadata"].get("namespace") == namespace
    }
    for binding in manifests.of("RoleBinding"):
        if binding["metadata"].get("namespace") == namespace:
            assert binding["roleRef"]["kind"] == "Role"
            (subject,) = binding["subjects"]
            assert (subject["kind"], subject["namespace"]) == ("ServiceAccount", "ml-pipelines")
            found[subject["name"]] = {
                resource: set(rule["verbs"])
                for rule in roles.pop(binding["roleRef"]["name"])
                for resource in rule["resources"]
            }
    assert roles == {}, "bound to nobody"
    return found


@pytest.mark.parametrize("namespace", ["default", "team-b"])
def test_each_has_exactly_what_tasks_need(manifests, namespace):
    assert there(manifests, namespace) == {
        ("ConfigMap", "ml-pipelines-janitor"),
        ("CronJob", "ml-pipelines-janitor"),
        ("Job", "ml-pipelines-storage"),
        ("PersistentVolumeClaim", "training-storage"),
        ("Role", "ml-pipelines-pod-ender"),
        ("Role", "ml-pipelines-pod-janitor"),
        ("Role", "ml-pipelines-pod-launcher"),
        ("Role", "ml-pipelines-pod-watcher"),
        ("RoleBinding", "ml-pipelines-pod-ender"),
        ("RoleBinding", "ml-pipelines-pod-janitor"),
        ("RoleBinding", "ml-pipelines-pod-launcher"),
        ("RoleBinding", "ml-pipelines-pod-watcher"),
        ("ServiceAccount", "ml-pipelines-pod"),
        ("ServiceAccount", "ml-pipelines-task"),
    }
    claims = [
        o["spec"]
        for o in manifests.of("PersistentVolumeClaim")
        if o["metadata"]["name"] == "training-storage"
    ]
    assert claims == [claims[0]] * 3


@pytest.mark.parametrize("namespace", ["default", "team-b"])
def test_each_account_may_do_what_it_does_there(manifests, namespace):
    assert rights(manifests, namespace) == {
        "ml-pipelines-airflow-worker": {
            "pods": {"create", "delete", "get", "list", "patch", "watch"},
            "pods/log": {"get"},
            "pods/exec": {"create", "get"},
            "events": {"list"},
        },
        "ml-pipelines-airflow-triggerer": {
            "pods": {"get", "list", "watch"},
            "pods/log": {"get"},
        },
        "ml-pipelines-airflow-scheduler": {"pods": {"delete", "list"}},
        "ml-pipelines-pod-janitor": {"pods": {"delete", "list"}},
    }


def test_a_dag_processor_of_its_own_may_end_pods_of_dead_workers():
    manifests = render(NAMESPACES, {"airflow": {"dagProcessor": {"enabled": True}}})
    processor = manifests.one("Deployment", "ml-pipelines-dag-processor")["spec"]["template"]
    account = processor["spec"]["serviceAccountName"]
    assert manifests.one("ServiceAccount", account)["automountServiceAccountToken"] is True
    for namespace in ("default", "team-b"):
        found = rights(manifests, namespace)
        assert found[account] == {"pods": {"delete", "list"}}
        assert "ml-pipelines-airflow-scheduler" not in found
    # The official chart gives it nothing, and the others theirs.
    (role,) = [
        o
        for o in manifests.of("Role")
        if o["metadata"]["name"] == "ml-pipelines-pod-ender"
        and o["metadata"]["namespace"] == "ml-pipelines"
    ]
    assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [
        (["pods"], ["delete", "list"])
    ]
    own = {
        binding["roleRef"]["name"]
        for binding in manifests.of("RoleBinding")
        if binding["metadata"]["namespace"] == "ml-pipelines"
        and account in {subject["name"] for subject in binding["subjects"]}
    }
    assert own == {"ml-pipelines-pod-ender"}


def test_nobody_has_rights_in_the_whole_cluster(manifests):
    assert manifests.of("ClusterRole", "ClusterRoleBinding") == []


def test_the_triggerer_may_watch_pods_of_the_release_too(manifests):
    binding = manifests.one("RoleBinding", "ml-pipelines-pod-log-reader-rolebinding")
    assert "ml-pipelines-airflow-triggerer" in {s["name"] for s in binding["subjects"]}


def test_task_accounts_have_no_token_anywhere(manifests):
    accounts = [
        o for o in manifests.of("ServiceAccount") if o["metadata"]["name"].endswith("-task")
    ]
    assert len(accounts) == 3
    assert {o["automountServiceAccountToken"] for o in accounts} == {False}


def test_claims_of_a_local_directory_have_a_volume_each():
    manifests = render(NAMESPACES, environment="local")
    volumes = {o["metadata"]["name"]: o["spec"] for o in manifests.of("PersistentVolume")}
    bound = {
        o["metadata"]["namespace"]: o["spec"]["volumeName"]
        for o in manifests.of("PersistentVolumeClaim")
        if o["metadata"]["name"] == "training-storage"
    }
    assert bound == {
        "ml-pipelines": "training-storage",
        "default": "training-storage-default",
        "team-b": "training-storage-team-b",
    }
    assert set(volumes) == set(bound.values())
    assert {spec["local"]["path"] for spec in volumes.values()} == {"/var/lib/training"}


def test_parts_that_are_off_leave_nothing():
    off = {
        "storage": {"create": False},
        "janitor": {"enabled": False},
        "airflow": {"triggerer": {"enabled": False}},
    }
    assert there(render(NAMESPACES, off), "team-b") == {
        ("Job", "ml-pipelines-storage"),
        ("Role", "ml-pipelines-pod-ender"),
        ("RoleBinding", "ml-pipelines-pod-ender"),
        ("Role", "ml-pipelines-pod-launcher"),
        ("RoleBinding", "ml-pipelines-pod-launcher"),
        ("ServiceAccount", "ml-pipelines-pod"),
        ("ServiceAccount", "ml-pipelines-task"),
    }
