"""Who may do what, in the release's namespace and in those besides it in which tasks may run."""

import itertools

import pytest

from tests.helpers.helm import HelmError, render

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
        "ml-pipelines-airflow-triggerer": {"pods": {"get"}},
        "ml-pipelines-airflow-scheduler": {"pods": {"delete", "list"}},
        "ml-pipelines-pod-janitor": {"pods": {"delete", "list"}},
    }


def test_each_account_may_do_what_it_does_in_the_releases_namespace(manifests):
    elsewhere = rights(manifests, "team-b")
    assert rights(manifests, "ml-pipelines") == elsewhere | {
        "ml-pipelines-airflow-scheduler": {
            "pods": {"create", "delete", "list", "patch", "watch"},
        },
        "ml-pipelines-airflow-webserver": {"pods": {"list"}, "pods/log": {"get"}},
    }


SCHEDULER, TRIGGERER, WEBSERVER, WORKER = (
    f"ml-pipelines-airflow-{name}" for name in ("scheduler", "triggerer", "webserver", "worker")
)
JANITOR, TASK, POD = (f"ml-pipelines-{name}" for name in ("pod-janitor", "task", "pod"))

# What would be worth the most to somebody who has got into a pod.
NOBODY = [
    *itertools.product(
        ("get", "list", "watch", "create", "update", "patch", "delete"),
        ("configmaps", "deployments", "jobs", "rolebindings", "roles", "secrets"),
    ),
    ("update", "pods"),
    ("deletecollection", "pods"),
    ("create", "serviceaccounts/token"),
    ("create", "pods/portforward"),
    ("create", "pods/attach"),
    ("create", "pods/eviction"),
    ("update", "pods/ephemeralcontainers"),
    ("patch", "pods/ephemeralcontainers"),
    ("*", "*"),
]
MAY_NOT = {
    SCHEDULER: [("get", "pods"), ("create", "pods/exec"), ("get", "pods/log"), ("list", "events")],
    TRIGGERER: [
        *itertools.product(("create", "delete", "list", "patch", "watch"), ["pods"]),
        ("get", "pods/exec"),
    ],
    WEBSERVER: [
        *itertools.product(("create", "delete", "get", "patch", "watch"), ["pods"]),
        ("get", "pods/exec"),
    ],
    WORKER: [("create", "events")],
    JANITOR: [
        *itertools.product(("create", "get", "patch", "watch"), ["pods"]),
        ("get", "pods/log"),
    ],
    TASK: [*itertools.product(("create", "delete", "get", "list"), ("pods", "pods/log", "events"))],
    POD: [*itertools.product(("create", "delete", "get", "list"), ("pods", "pods/log", "events"))],
}


@pytest.mark.parametrize("namespace", ["ml-pipelines", "default", "team-b"])
@pytest.mark.parametrize("account", MAY_NOT)
def test_what_an_account_may_not_do(manifests, account, namespace):
    found = rights(manifests, namespace).get(account, {})
    granted = {(verb, resource) for resource, verbs in found.items() for verb in verbs}
    assert [wish for wish in [*NOBODY, *MAY_NOT[account]] if wish in granted] == []


@pytest.mark.parametrize(
    ("launch", "image"),
    [("triggerer", "registry.test/own"), ("auto", "registry.test/ml-pipelines/airflow3")],
)
def test_a_triggerer_that_runs_tasks_may_do_what_it_does(launch, image):
    values = {
        "pipelines": {"launch": launch, "maxPods": 7},
        "airflow": {"defaultAirflowRepository": image},
    }
    manifests = render(NAMESPACES, values, environment="local airflow3")
    settings = manifests.settings()
    assert (settings["launch"], settings["maxPods"]) == ("triggerer", 7)
    for namespace in ("ml-pipelines", "default", "team-b"):
        found = rights(manifests, namespace)[TRIGGERER]
        assert found == {
            "pods": {"create", "delete", "get", "list", "patch", "watch"},
            "pods/log": {"get"},
            "events": {"list"},
        }


def test_the_official_cleanup_may_list_and_delete():
    manifests = render(NAMESPACES, {"airflow": {"cleanup": {"enabled": True}}})
    cleanup = rights(manifests, "ml-pipelines")["ml-pipelines-airflow-cleanup"]
    assert cleanup == {"pods": {"delete", "list"}}


def test_the_roles_of_the_official_chart_are_refused():
    with pytest.raises(HelmError, match=r"airflow\.rbac\.create"):
        render({"airflow": {"rbac": {"create": True}}})


def test_the_key_of_wandb_is_where_tasks_are():
    key = {"wandb": {"enabled": True, "apiKey": "x"}, "mlflow": {"enabled": False}}
    secrets = [
        o["metadata"]["namespace"]
        for o in render(NAMESPACES, key).of("Secret")
        if o["metadata"]["name"] == "ml-pipelines-wandb"
    ]
    assert secrets == ["ml-pipelines", "default", "team-b"]


def test_a_dag_processor_of_its_own_may_end_pods_of_dead_workers():
    manifests = render(NAMESPACES, {"airflow": {"dagProcessor": {"enabled": True}}})
    processor = manifests.one("Deployment", "ml-pipelines-dag-processor")["spec"]["template"]
    account = processor["spec"]["serviceAccountName"]
    assert manifests.one("ServiceAccount", account)["automountServiceAccountToken"] is True
    for namespace in ("default", "team-b"):
        found = rights(manifests, namespace)
        assert found[account] == {"pods": {"delete", "list"}}
        assert "ml-pipelines-airflow-scheduler" not in found
    assert rights(manifests, "ml-pipelines")[account] == {"pods": {"delete", "list"}}


def test_nobody_has_rights_in_the_whole_cluster(manifests):
    assert manifests.of("ClusterRole", "ClusterRoleBinding") == []


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


def test_a_quota_and_limits_are_the_official_charts_and_every_container_fits_them():
    """A quota on something refuses pods whose containers do not say how much they want of it."""
    hard = {"requests.cpu": "8", "requests.memory": "16Gi", "limits.memory": "32Gi", "pods": "60"}
    limits = [{"type": "Container", "max": {"memory": "8Gi"}}]
    manifests = render({"airflow": {"quotas": hard, "limits": limits}})
    assert [one["spec"]["hard"] for one in manifests.of("ResourceQuota")] == [hard]
    assert [one["spec"]["limits"] for one in manifests.of("LimitRange")] == [limits]
    silent = [
        one.where
        for one in manifests.containers()
        if not {"cpu", "memory"} <= one.spec["resources"]["requests"].keys()
        or "memory" not in one.spec["resources"]["limits"]
    ]
    assert silent == []
