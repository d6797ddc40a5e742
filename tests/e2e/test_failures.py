"""Runs that fail: the run says so, cleans up, and the log says why."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlctl.base.names import SETTINGS_CONFIG_MAP
from mlctl.clients.airflow import Airflow, container_lines
from mlctl.commands.telling import explain_failure, tell_failed_cleaning
from mlctl.release.release import Release, merge
from mlctl.stack import Stack

FAILING_SECONDS = 600


@pytest.fixture
def with_settings(stack: Stack, release: Release) -> Iterator[Callable]:
    """Change what the DAGs are told for one block; workers read it when they start."""

    def write(labels: dict[str, str], settings: dict[str, Any]) -> None:
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": SETTINGS_CONFIG_MAP, "labels": labels},
            "data": {"settings.json": json.dumps(settings)},
        }
        # In Helm's name: a field of anybody else's is a conflict for the next upgrade.
        apply = ["apply", "--server-side", "--field-manager=helm", "--force-conflicts"]
        stack.kube.run(*apply, "--filename", "-", stdin=json.dumps(manifest))

    @contextmanager
    def change(changes: dict[str, Any]) -> Iterator[None]:
        found = stack.kube.get("configmap", SETTINGS_CONFIG_MAP)
        labels = found["metadata"]["labels"]
        before = json.loads(found["data"]["settings.json"])
        write(labels, merge(before, changes))
        try:
            yield
        finally:
            write(labels, before)

    return change


def test_an_unknown_model_fails_the_run_with_one_clear_line(
    with_values, run_dag, airflow: Airflow, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    with with_values("pipelines.modelName=no-such-model", "pipelines.tasks.load_model.retries=0"):
        run = run_dag("inference_dag", FAILING_SECONDS)

    assert run.state == "failed"
    assert {name: task.state for name, task in run.tasks.items()} == {
        "clean_storage_before_start": "success",
        "load_data": "success",
        "load_model": "failed",
        "run_inference": "upstream_failed",
        "clean_up": "success",
    }
    errors = [line for line in container_lines(run.logs["load_model"]) if "ERROR:" in line]
    assert len(errors) == 1
    assert "no-such-model" in errors[0]
    assert "Traceback" not in "\n".join(container_lines(run.logs["load_model"]))
    path = stack.run_path("inference_dag", run.run_id)
    assert [file for file in stack.list_volume() if file.startswith(path)] == []

    explain_failure(airflow, "inference_dag", run.run_id)
    told = capsys.readouterr().out
    assert "load_model failed" in told
    assert "no-such-model" in told
    assert "make logs" in told


def test_a_failed_cleaning_shows_and_leaves_the_result_of_the_run_alone(
    with_values, run_dag, airflow: Airflow, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    task = "pipelines.tasks.clean_up"
    with with_values(
        f"{task}.retries=0", f"{task}.nodeSelector.kind=absent", f"{task}.startupTimeoutSeconds=5"
    ):
        run = run_dag("inference_dag", FAILING_SECONDS)

    assert run.state == "success", run.told()
    assert {name for name, task in run.tasks.items() if task.state != "success"} == {"clean_up"}
    assert run.tasks["clean_up"].state == "failed"
    assert "Unschedulable" in run.logs["clean_up"]
    path = stack.run_path("inference_dag", run.run_id)
    left = {file.removeprefix(f"{path}/") for file in stack.list_volume() if path in file}
    assert {"pred.csv", "pred.json", "data/test.csv", "results/model.safetensors"} <= left

    tell_failed_cleaning(airflow, "inference_dag", run.run_id)
    told = capsys.readouterr().out
    assert "clean_up failed" in told
    assert path in told

    # The way out, when the cause is mended.
    body = {"dry_run": False, "reset_dag_runs": True, "dag_run_id": run.run_id}
    airflow.request("POST", "dags/inference_dag/clearTaskInstances", json=body)
    ended = airflow.wait_for_run("inference_dag", run.run_id, timeout=FAILING_SECONDS)
    assert ended["state"] == "success"
    left = {file.removeprefix(f"{path}/") for file in stack.list_volume() if path in file}
    assert left == {"pred.csv", "pred.json"}


def test_a_step_without_enough_memory_fails_the_training(
    with_values, run_dag, stack: Stack, airflow: Airflow
) -> None:
    task = "pipelines.tasks.train_model"
    with with_values(
        f"{task}.retries=0",
        f"{task}.resources.limits.memory=96Mi",
        f"{task}.resources.requests.memory=64Mi",
    ):
        run = run_dag("training_dag", FAILING_SECONDS)

    assert run.state == "failed"
    assert {name: task.state for name, task in run.tasks.items()} == {
        "clean_storage_before_start": "success",
        "load_data": "success",
        "train_model": "failed",
        "upload_model": "upstream_failed",
        "clean_up": "success",
    }
    assert "OOMKilled" in run.logs["train_model"]
    assert "resources.limits.memory" in run.logs["train_model"]
    # The pod stays for a look at it; nothing takes it for one that runs.
    (pod,) = stack.kube.items("pods", "ml-pipelines/kept-until,task_id=train_model")
    assert pod["status"]["phase"] == "Failed"
    assert pod["metadata"]["name"] in run.logs["train_model"]
    path = stack.run_path("training_dag", run.run_id)
    assert [file for file in stack.list_volume() if file.startswith(path)] == []


def test_an_image_that_nobody_has_fails_in_time_and_says_so(with_settings, run_dag) -> None:
    limits = {"retries": 0, "stuckTimeoutSeconds": 5}
    with with_settings({"image": {"reference": "nowhere.invalid/none:1"}, "defaults": limits}):
        run = run_dag("training_dag", FAILING_SECONDS)

    assert run.state == "failed"
    first = "clean_storage_before_start"
    assert run.tasks[first].state == "failed"
    assert run.tasks[first].seconds < 5 + 60
    log = run.logs[first]
    assert re.search(r"cannot start: (ErrImagePull|ImagePullBackOff) for 5 s", log), log
    assert re.search(r"Pod Event: Failed - Failed to pull image .*nowhere.invalid/none:1", log), log


def test_a_pod_without_a_place_fails_in_time_and_says_so(
    with_settings, run_dag, stack: Stack
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "team"},
        "spec": {"hard": {"requests.memory": "32Gi"}},
    }
    tasks = {
        "clean_storage_before_start": {
            "startupTimeoutSeconds": 5,
            "nodeSelector": {"no-such": "node"},
        },
        "clean_up": {"resources": {"requests": {"memory": "64Gi"}, "limits": {"memory": "64Gi"}}},
    }
    stack.kube.apply(quota)
    try:
        with with_settings({"defaults": {"retries": 0}, "tasks": tasks}):
            run = run_dag("training_dag", FAILING_SECONDS)
    finally:
        stack.kube.run("delete", "resourcequota", "team")

    assert run.state == "failed"
    for name in tasks:
        assert run.tasks[name].state == "failed"
        assert run.tasks[name].seconds < 5 + 60
    unplaced, refused = (run.logs[name] for name in tasks)
    assert "did not start within 5 s (startupTimeoutSeconds)" in unplaced
    assert "Pod Event: FailedScheduling - 0/1 nodes are available" in unplaced
    assert "was refused: " in refused
    assert "exceeded quota: team, requested: requests.memory=64Gi" in refused
