"""The life of a production release, in order: install, run, upgrade in its middle, back, end.

`make test-production`; a part of `make test-long`.
"""

import json
from collections.abc import Iterator

import pytest

from mlctl.base.names import INFERENCE, NAMESPACE, RELEASE, TRAINING
from mlctl.base.paths import VALUES
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow, Task
from mlctl.clients.kube import Kube
from mlctl.clients.pods import is_ready
from mlctl.publishing import publish
from mlctl.release.release import Release
from mlctl.stack import Stack
from tests.helpers.releases import helm
from tests.production.conftest import SERVICES, Aloud, install

RUN_SECONDS = 1800

pytestmark = pytest.mark.timeout(3600)

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("open")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def airflow(stack: Stack, release: Release, aloud: Aloud) -> Iterator[Airflow]:
    with aloud("publish the DAGs") as phase:
        publish(stack, phase)
    with stack.airflow() as client:
        yield client


def test_two_of_each_are_ready_in_a_namespace_that_enforces_restricted(
    stack: Stack, release: Release
) -> None:
    label = "pod-security.kubernetes.io/enforce"
    assert stack.kube.get("namespace", NAMESPACE)["metadata"]["labels"][label] == "restricted"
    for component in ("scheduler", "webserver"):
        pods = stack.kube.items("pods", f"component={component},tier=airflow")
        assert [is_ready(pod) for pod in pods] == [True, True]


def test_the_claims_are_bound_and_came_from_the_class(release: Release) -> None:
    claims = release.kube.items("persistentvolumeclaims")
    assert {(c["metadata"]["name"], c["status"]["phase"]) for c in claims} == {
        ("training-storage", "Bound"),
        ("ml-pipelines-logs", "Bound"),
    }


def connects(kube: Kube, where: str, host: str, port: int) -> str:
    words = ["exec", f"deployment/{RELEASE}-{where}", "--container", where, "--"]
    return kube.run(*words, "python", "-c", CONNECT, host, str(port)).stdout.strip()


def test_network_policies_are_heeded(stack: Stack, release: Release) -> None:
    web = f"{RELEASE}-webserver"
    assert connects(stack.kube, "scheduler", f"pgbouncer.{SERVICES}", 6543) == "open"
    assert connects(stack.kube, "webserver", f"{RELEASE}-triggerer", 8794) == "open"
    assert connects(stack.kube, "scheduler", f"{RELEASE}-triggerer", 8794) != "open"
    assert connects(stack.kube, "scheduler", web, 8080) != "open"


def test_helm_test_passes(release: Release) -> None:
    assert "Succeeded" in helm(release, "test", RELEASE, "--timeout", "300s")


def granted(kube: Kube, account: str, namespace: str) -> dict[str, set[str]]:
    """Resource -> verbs that an account has in a namespace, by the API server's own word."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    user = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    # Without validation, for which one would have to read what the cluster knows.
    words = ["create", "--filename", "-", "--output", "json", "--validate=false", user]
    rules = json.loads(kube.run(*words, stdin=json.dumps(review)).stdout)["status"]
    found: dict[str, set[str]] = {}
    for rule in rules["resourceRules"]:
        # What everybody may: ask about oneself.
        if not all(group.startswith("auth") for group in rule["apiGroups"]):
            for resource in rule["resources"]:
                found.setdefault(resource, set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize(
    ("account", "may"),
    {
        "airflow-scheduler": {"pods": {"create", "delete", "list", "patch", "watch"}},
        "airflow-triggerer": {"pods": {"get"}},
        "airflow-webserver": {"pods": {"list"}, "pods/log": {"get"}},
        "airflow-worker": {
            "pods": {"create", "delete", "get", "list", "patch"},
            "pods/log": {"get"},
            "pods/exec": {"create", "get"},
            "events": {"list"},
        },
        "pod-janitor": {"pods": {"delete", "list"}},
        "task": {},
        "pod": {},
    }.items(),
)
def test_the_api_server_grants_each_account_that_and_no_more(release, account, may) -> None:
    assert granted(release.kube, f"{RELEASE}-{account}", NAMESPACE) == may
    assert granted(release.kube, f"{RELEASE}-{account}", SERVICES) == {}


def test_an_upgrade_in_the_middle_of_a_training_loses_nothing_and_can_be_taken_back(
    airflow: Airflow, release: Release, aloud: Aloud
) -> None:
    airflow.unpause(TRAINING)
    run_id = airflow.trigger(TRAINING)
    title = ("--set", "airflow.config.webserver.instance_name=another title")
    upgraded = []

    def changed(_: str, task: Task) -> None:
        if not upgraded and (task.task_id, task.state) == ("train_model", "running"):
            upgraded.append(True)
            with aloud("upgrade while the model is trained") as phase:
                release.deploy(phase, extra=title)

    ended = airflow.wait_for_run(TRAINING, run_id, timeout=RUN_SECONDS, on_change=changed)
    assert upgraded == [True]
    assert ended["state"] == "success", airflow.tasks(TRAINING, run_id)
    assert "another title" in airflow.page("home").text
    helm(release, "rollback", RELEASE, "1", "--wait", "--timeout", "600s")
    with aloud("roll back") as phase:
        release.wait_ready(phase)
    assert "another title" not in airflow.page("home").text


def test_the_predictions_of_the_new_model(airflow: Airflow) -> None:
    airflow.unpause(INFERENCE)
    run_id = airflow.trigger(INFERENCE)
    ended = airflow.wait_for_run(INFERENCE, run_id, timeout=RUN_SECONDS)
    assert ended["state"] == "success", airflow.tasks(INFERENCE, run_id)


def test_janitors_end_well(release: Release) -> None:
    kube = release.kube
    names = [one["metadata"]["name"] for one in kube.items("cronjobs")]
    assert names == [f"{RELEASE}-{name}" for name in ("database-janitor", "janitor", "pod-janitor")]
    for name in names:
        kube.run("create", "job", "--from", f"cronjob/{name}", f"{name}-now")
    for name in names:
        done = ("wait", f"job/{name}-now", "--for=condition=Complete", "--timeout=300s")
        kube.run(*done, timeout=310)


def test_uninstall_leaves_what_is_kept_and_nothing_else(release: Release) -> None:
    release.uninstall()
    kube = release.kube
    kinds = (
        "deployments,statefulsets,cronjobs,jobs,services,configmaps,networkpolicies,ingresses,"
        "roles,rolebindings,serviceaccounts,poddisruptionbudgets,persistentvolumeclaims"
    )
    left = {f"{one['kind']}/{one['metadata']['name']}" for one in kube.items(kinds)}
    assert left - {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"} == {
        "PersistentVolumeClaim/training-storage",
        "PersistentVolumeClaim/ml-pipelines-logs",
    }
    # Those that the page made: the release had none of its own.
    assert {one["metadata"]["name"] for one in kube.items("secrets")} == {
        *(f"ml-pipelines-{name}" for name in ("metadata", "fernet-key", "webserver-secret-key")),
        *(f"ml-pipelines-{name}" for name in ("admin", "wandb", "git")),
        "registry",
    }


RANGE = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicy",
    "metadata": {"name": "restricted-v2"},
    "spec": {
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": ["pods"],
                }
            ]
        },
        "variables": [
            {
                "name": "containers",
                "expression": "object.spec.containers + object.spec.?initContainers.orValue([])",
            }
        ],
        # What the namespace of a project is annotated with.
        "validations": [
            {
                "expression": f"{of} >= 1000680000 && {of} <= 1000689999",
                "message": f"{of} must be in the ranges: [1000680000, 1000689999]",
            }
            for of in (
                "object.spec.securityContext.runAsUser",
                "object.spec.securityContext.fsGroup",
            )
        ]
        + [
            {
                "expression": "variables.containers.all(one, "
                "one.?securityContext.runAsUser.orValue(1000680000) >= 1000680000)",
                "message": "a container's user must be in the ranges: [1000680000, 1000689999]",
            }
        ],
    },
}
"""What OpenShift's restricted-v2 says of users."""

BINDING = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicyBinding",
    "metadata": {"name": "restricted-v2"},
    "spec": {
        "policyName": "restricted-v2",
        "validationActions": ["Deny"],
        "matchResources": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
        },
    },
}

OTHER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "other"},
    "spec": {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "other",
                "image": "none",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    },
}


def test_users_of_a_range_as_on_openshift(stack: Stack, release: Release, aloud: Aloud) -> None:
    """The same release again with empty volumes, as users that no image knows."""
    kube = release.kube
    # As the chart's README has it.
    kube.run("delete", "pod", "--selector", "app.kubernetes.io/name=ml-pipelines")
    kube.run("delete", "pvc,secret", "--selector", f"app.kubernetes.io/instance={RELEASE}")
    kube.apply(RANGE)
    kube.apply(BINDING)

    def refuses() -> bool:
        """In force a moment later."""
        create = ("create", "--filename", "-", "--dry-run=server")
        tried = kube.run(*create, stdin=json.dumps(OTHER), check=False)
        return "runAsUser must be in the ranges" in tried.stderr

    until(60, refuses, "the policy refuses nothing")
    install(stack, release, aloud, "--values", str(VALUES / "parts" / "openshift.yaml"))
    with stack.airflow() as airflow:
        for dag in (TRAINING, INFERENCE):
            run_id = airflow.trigger(dag)
            ended = airflow.wait_for_run(dag, run_id, timeout=RUN_SECONDS)
            assert ended["state"] == "success", airflow.tasks(dag, run_id)
    release.uninstall()
