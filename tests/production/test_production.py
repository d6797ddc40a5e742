"""The life of a production release, in order: install, run, upgrade in its middle, back, end.

`make test-production`; a part of `make test-long`.
"""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from mlctl.base.names import INFERENCE, NAMESPACE, RELEASE, TRAINING
from mlctl.base.paths import BUILD, VALUES
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow, Task
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube
from mlctl.clients.pods import is_ready
from mlctl.commands.models import promote
from mlctl.publishing import publish
from mlctl.release.release import Release
from mlctl.stack import Stack
from tests.helpers.metrics import dashboard, panels
from tests.helpers.prometheus import Prometheus
from tests.helpers.releases import helm
from tests.production.conftest import (
    DUMPS,
    PROMETHEUS,
    PROMETHEUS_PORT,
    SERVICES,
    Aloud,
    install,
)
from tests.production.picture import draw

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
        (DUMPS, "Bound"),
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
            "pods": {"create", "delete", "get", "list", "patch", "watch"},
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
    title = "airflow.config.webserver.instance_name=another title"
    changes = ("--set", title, "--set", "setup.generation=again")
    upgraded = []

    def changed(_: str, task: Task) -> None:
        if not upgraded and (task.task_id, task.stage) == ("train_model", "running"):
            upgraded.append(True)
            with aloud("upgrade while the model is trained") as phase:
                release.deploy(phase, extra=changes)

    ended = airflow.wait_for_run(TRAINING, run_id, timeout=RUN_SECONDS, on_change=changed)
    assert upgraded == [True]
    assert ended["state"] == "success", airflow.tasks(TRAINING, run_id)
    assert "another title" in airflow.page("home").text
    helm(release, "rollback", RELEASE, "1", "--wait", "--timeout", "600s")
    with aloud("roll back") as phase:
        release.wait_ready(phase)
    assert "another title" not in airflow.page("home").text


def test_each_migration_left_a_dump_of_the_database_before_it(stack: Stack, services: Kube) -> None:
    """Of the install, the upgrade and the way back; that of the upgrade has the run of then."""
    dumps = sorted(Path(stack.cluster.config.volumes).glob("**/*.dump"))
    assert len(dumps) == 3
    script = (
        "createdb -U airflow then && pg_restore -U airflow --no-owner --dbname then >&2 &&"
        " psql -U airflow -tA then -c 'select dag_id, state from dag_run'"
    )
    command = services.command("exec", "--stdin", "postgres", "--", "sh", "-c", script)
    with dumps[1].open("rb") as dump:
        done = subprocess.run(command, stdin=dump, capture_output=True, text=True)
    assert done.stdout == f"{TRAINING}|running\n", done.stderr


def test_a_person_promotes_what_the_gate_refuses_and_it_is_what_predicts(
    stack: Stack, airflow: Airflow
) -> None:
    promote(stack, "1", "no twenty steps are good enough for the gate")
    airflow.unpause(INFERENCE)
    run_id = airflow.trigger(INFERENCE)
    ended = airflow.wait_for_run(INFERENCE, run_id, timeout=RUN_SECONDS)
    assert ended["state"] == "success", airflow.tasks(INFERENCE, run_id)


@pytest.fixture
def prometheus(services: Kube) -> Iterator[Prometheus]:
    """The one that scrapes this release since it was installed."""
    with Forward(services, PROMETHEUS, PROMETHEUS_PORT) as forward:
        yield Prometheus(forward.url)


def test_the_dashboard_shows_what_the_runs_came_to(
    airflow: Airflow, release: Release, services: Kube, prometheus: Prometheus
) -> None:
    """Scraped behind network policies, while runs succeeded, waited and failed."""
    failed = airflow.trigger(TRAINING, {"data_source": "file:///nowhere.csv"})
    assert airflow.wait_for_run(TRAINING, failed, timeout=RUN_SECONDS)["state"] == "failed"
    shown = dashboard(release.kube.get("configmap", f"{RELEASE}-dashboard"))
    until(300, lambda: prometheus.without_answer(panels(shown)) == [], "no figures", poll=5)

    def figure(query: str) -> list[float]:
        return [float(one["value"][1]) for one in prometheus.query(query)]

    def counted(dag_id: str, state: str) -> bool:
        ended = [run for run in airflow.all_runs(dag_id) if run["state"] == state]
        # A series for each type of run.
        count = f'sum(airflow_dagrun_duration_count{{dag_id="{dag_id}",state="{state}"}})'
        return figure(count) == [len(ended)]

    for ended in ((TRAINING, "failed"), (TRAINING, "success"), (INFERENCE, "success")):
        until(300, partial(counted, *ended), f"{ended}: not as many as in Airflow", poll=5)
    begin = datetime.fromisoformat(services.get("pod", PROMETHEUS)["status"]["startTime"])
    since = (datetime.now(UTC) - begin).total_seconds()
    draw(prometheus, shown, since, BUILD / "pictures" / "dashboard.png")
    (trained,) = [run for run in airflow.all_runs(TRAINING) if run["state"] == "success"]
    accuracy = airflow.result(TRAINING, trained["dag_run_id"], "train_model")["accuracy"]
    assert figure('ml_pipelines_result{task_id="train_model",figure="accuracy"}') == [accuracy]


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
        f"PersistentVolumeClaim/{DUMPS}",
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

    until(300, refuses, "the policy refuses nothing")
    install(stack, release, aloud, "--values", str(VALUES / "parts" / "openshift.yaml"))
    with stack.airflow() as airflow:
        for dag in (TRAINING, INFERENCE):
            run_id = airflow.trigger(dag)
            ended = airflow.wait_for_run(dag, run_id, timeout=RUN_SECONDS)
            assert ended["state"] == "success", airflow.tasks(dag, run_id)
    release.uninstall()
