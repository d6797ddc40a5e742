"""What holds for every task, and that overrides reach the task they name and no other."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.helpers.pipelines import EVERY_TASK


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_task_follows_the_rules(load_dag, settings_file, dag_id: str, task_id: str) -> None:
    settings_file({"image": {"reference": "r.example/i@sha256:abc", "pullPolicy": "IfNotPresent"}})
    task = load_dag(dag_id).get_task(task_id)

    assert task.image == "r.example/i@sha256:abc"
    assert task.retries == 2
    assert task.retry_delay == timedelta(seconds=10)
    assert task.execution_timeout > timedelta(seconds=task.startup_timeout_seconds)
    assert task.stuck_timeout_seconds < task.startup_timeout_seconds
    assert task.failed_pod_ttl_seconds == 900
    # Airflow's limit comes first: it deletes the pod, the deadline only ends it.
    assert task.active_deadline_seconds > task.execution_timeout.total_seconds()
    assert task.container_resources.requests
    assert task.container_resources.limits
    assert task.on_finish_action == "delete_pod"
    assert task.reattach_on_restart is True
    assert task.log_pod_spec_on_failure is False
    assert task.log_events_on_failure is True
    assert task.deferrable is False
    assert task.startup_check_interval_seconds == 0.5
    assert task.random_name_suffix is True
    assert not task.hostnetwork
    assert task.in_cluster is None  # in the cluster its service account, outside a kubeconfig


def test_every_task_is_listed_here(load_dag) -> None:
    tasks = {
        (dag_id, task.task_id)
        for dag_id in ("training_dag", "inference_dag")
        for task in load_dag(dag_id).tasks
    }
    assert tasks == set(EVERY_TASK)


@pytest.mark.parametrize("dag_id", ["training_dag", "inference_dag"])
def test_clean_up_is_a_teardown_without_setups(load_dag, dag_id: str) -> None:
    dag = load_dag(dag_id)
    assert {task.task_id for task in dag.tasks if task.is_teardown} == {"clean_up"}
    assert {task.task_id for task in dag.tasks if task.is_setup} == set()
    assert dag.get_task("clean_up").on_failure_fail_dagrun is False


OVERRIDES = {
    "retries": 7,
    "retryDelaySeconds": 77,
    "startupTimeoutSeconds": 777,
    "stuckTimeoutSeconds": 77,
    "executionTimeoutSeconds": 7777,
    "failedPodTtlSeconds": 7,
    "resources": {"requests": {"cpu": "7"}, "limits": {"nvidia.com/gpu": "1"}},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
                ]
            }
        }
    },
    "env": {
        "BATCH_SIZE": "16",
        "ML_PIPELINES_RUN_ID": "from the settings",
        "TOKEN": {"valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
    },
    "envFrom": [
        {"configMapRef": {"name": "more", "optional": True}},
        {"secretRef": {"name": "hub"}, "prefix": "HUB_"},
    ],
    "labels": {"team": "nlp"},
    "annotations": {"note": "x"},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "serviceAccountName": "trainer",
    "image": "registry.example/gpu@sha256:abc",
}


def changed(task, render_pod) -> dict[str, object]:
    """The part of a task and its pod that OVERRIDES can reach, in the same shape."""
    pod = render_pod(task, "run")
    spec = pod["spec"]
    container = spec["containers"][0]
    return {
        "retries": task.retries,
        "retryDelaySeconds": task.retry_delay.total_seconds(),
        "startupTimeoutSeconds": task.startup_timeout_seconds,
        "stuckTimeoutSeconds": task.stuck_timeout_seconds,
        "executionTimeoutSeconds": task.execution_timeout.total_seconds(),
        "failedPodTtlSeconds": task.failed_pod_ttl_seconds,
        "activeDeadlineSeconds": spec["activeDeadlineSeconds"],
        "resources": container["resources"],
        "nodeSelector": spec.get("nodeSelector") or {},
        "tolerations": spec.get("tolerations") or [],
        "affinity": spec.get("affinity") or {},
        "env": {
            variable["name"]: variable.get("value", variable.get("valueFrom"))
            for variable in container["env"]
        },
        "envFrom": container.get("envFrom") or [],
        "team": pod["metadata"]["labels"].get("team"),
        "annotations": pod["metadata"].get("annotations") or {},
        "priorityClassName": spec.get("priorityClassName"),
        "runtimeClassName": spec.get("runtimeClassName"),
        "serviceAccountName": spec.get("serviceAccountName"),
        "image": container["image"],
    }


def test_override_reaches_its_task_whole(load_dag, settings_file, render_pod) -> None:
    settings_file({"tasks": {"train_model": OVERRIDES}})
    found = changed(load_dag("training_dag").get_task("train_model"), render_pod)
    env = found.pop("env")
    assert found == {key: OVERRIDES[key] for key in OVERRIDES if key not in ("env", "labels")} | {
        "activeDeadlineSeconds": 7837,
        "resources": {
            "requests": {"cpu": "7", "memory": "1Gi"},
            "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"},
        },
        "team": "nlp",
    }
    assert env["BATCH_SIZE"] == "16"
    assert env["ML_PIPELINES_RUN_ID"] == "from the settings"
    assert env["TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    # What a model says of its origin is the image that trains it.
    assert env["ML_PIPELINES_IMAGE"] == "registry.example/gpu@sha256:abc"


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_override_of_one_task_leaves_the_others(
    load_dag, settings_file, render_pod, dag_id: str, task_id: str
) -> None:
    settings_file({})
    before = changed(load_dag(dag_id).get_task(task_id), render_pod)
    settings_file({"tasks": {"train_model": OVERRIDES}})
    after = changed(load_dag(dag_id).get_task(task_id), render_pod)
    assert (before == after) is (task_id != "train_model")


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_defaults_reach_every_task(
    load_dag, settings_file, render_pod, dag_id: str, task_id: str
) -> None:
    settings_file({"defaults": OVERRIDES})
    found = changed(load_dag(dag_id).get_task(task_id), render_pod)
    assert found["retries"] == 7
    assert found["nodeSelector"] == {"pool": "gpu"}
    assert found["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert found["serviceAccountName"] == "trainer"
    assert found["image"] == "registry.example/gpu@sha256:abc"
