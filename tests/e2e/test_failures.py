"""Runs that fail: the run says so, cleans up, and the log says why.

Runs that may fail at the same time do, with one change of settings for both DAGs.
"""

import re
from collections.abc import Callable

import pytest

from ml_pipelines.settings import merge
from mlctl.base.names import DAG_IDS
from mlctl.clients.airflow import Airflow, container_lines
from mlctl.clients.volume import Volume
from mlctl.commands.telling import explain_failure, tell_failed_cleaning
from mlctl.stack import Stack
from tests.helpers.releases import task

SECONDS = 900
NOWHERE = "nowhere.invalid/none:1"
QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "team"},
    "spec": {"hard": {"requests.memory": "32Gi"}},
}


@pytest.fixture(scope="module")
def run_both(start, follow_run) -> Callable:
    """Run both DAGs side by side; give the training and the inference."""

    def run():
        run_ids = {dag_id: start(dag_id) for dag_id in DAG_IDS}
        return [follow_run(dag_id, run_id, SECONDS) for dag_id, run_id in run_ids.items()]

    return run


@pytest.fixture(scope="module")
def in_the_work(inference_run, with_settings, run_both):
    """A training without enough memory, an inference of a model that is not there."""
    memory = {"requests": {"memory": "64Mi"}, "limits": {"memory": "96Mi"}}
    changes = merge(
        task("train_model", {"resources": memory}, retries=0), task("load_model", retries=0)
    )
    with with_settings({"model": {"name": "no-such-model"}} | changes):
        return run_both()


@pytest.fixture(scope="module")
def in_the_pods(inference_run, with_settings, run_both, stack: Stack):
    """A training without an image, and clean_up refused, of an inference that is good else."""
    over = {"requests": {"memory": "64Gi"}, "limits": {"memory": "64Gi"}}
    changes = merge(
        task("train_model", {"image": NOWHERE}, retries=0, stuck_timeout_seconds=5),
        task("clean_up", {"resources": over}, retries=0, startup_timeout_seconds=20),
    )
    stack.kube.apply(QUOTA)
    try:
        with with_settings(changes):
            return run_both()
    finally:
        stack.kube.run("delete", "resourcequota", "team")


def states(run) -> dict[str, str]:
    return {name: task.state for name, task in run.tasks.items()}


def test_a_step_without_enough_memory_fails_the_training(
    in_the_work, stack: Stack, volume: Volume
) -> None:
    run, _ = in_the_work
    assert run.state == "failed"
    assert states(run) == {
        "clean_storage_before_start": "success",
        "load_data": "success",
        "train_model": "failed",
        "upload_model": "upstream_failed",
        "gate_model": "upstream_failed",
        "clean_up": "success",
    }
    assert "OOMKilled" in run.logs["train_model"]
    assert "resources.limits.memory" in run.logs["train_model"]
    # The pod stays for a look at it; nothing takes it for one that runs.
    (pod,) = stack.kube.items("pods", "already_checked=True,task_id=train_model")
    assert pod["status"]["phase"] == "Failed"
    assert pod["metadata"]["name"] in run.logs["train_model"]
    assert volume.files(stack.run_path("training_dag", run.run_id)) == []


def test_an_unknown_model_fails_the_run_with_one_clear_line(
    in_the_work,
    airflow: Airflow,
    stack: Stack,
    volume: Volume,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, run = in_the_work
    assert run.state == "failed"
    assert states(run) == {
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
    assert volume.files(stack.run_path("inference_dag", run.run_id)) == []

    explain_failure(airflow, "inference_dag", run.run_id)
    told = capsys.readouterr().out
    assert "load_model failed" in told
    assert "no-such-model" in told
    assert "make logs" in told


def test_an_image_that_nobody_has_fails_in_time_and_says_so(in_the_pods) -> None:
    run, _ = in_the_pods
    assert run.state == "failed"
    assert run.tasks["train_model"].state == "failed"
    log = run.logs["train_model"]
    assert re.search(r"cannot start: (ErrImagePull|ImagePullBackOff) for 5 s", log), log
    assert re.search(rf"Pod Event: Failed - Failed to pull image .*{NOWHERE}", log), log


def test_a_pod_over_quota_is_refused_in_time_and_says_so(in_the_pods) -> None:
    for run in in_the_pods:
        assert run.tasks["clean_up"].state == "failed"
        assert "was refused: " in run.logs["clean_up"]
        quota = "exceeded quota: team, requested: requests.memory=64Gi"
        assert quota in run.logs["clean_up"]


def test_a_failed_cleaning_shows_and_leaves_the_result_of_the_run_alone(
    in_the_pods,
    airflow: Airflow,
    stack: Stack,
    volume: Volume,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, run = in_the_pods
    assert run.state == "success", run.told()
    assert {name for name, state in states(run).items() if state != "success"} == {"clean_up"}
    path = stack.run_path("inference_dag", run.run_id)

    def left() -> set[str]:
        return {file.removeprefix(f"{path}/") for file in volume.files(path)}

    assert {"pred.csv", "pred.json", "data/test.csv", "results/model.safetensors"} <= left()

    tell_failed_cleaning(airflow, "inference_dag", run.run_id)
    told = capsys.readouterr().out
    assert "clean_up failed" in told
    assert path in told

    # The way out, when the cause is mended.
    body = {"dry_run": False, "reset_dag_runs": True, "dag_run_id": run.run_id}
    airflow.request("POST", "dags/inference_dag/clearTaskInstances", json=body)
    ended = airflow.wait_for_run("inference_dag", run.run_id, timeout=SECONDS)
    assert ended["state"] == "success"
    assert left() == {"pred.csv", "pred.json"}


def test_a_pod_without_a_place_fails_in_time_and_says_so(
    airflow: Airflow, with_settings, start, follow_run
) -> None:
    first = "clean_storage_before_start"
    nowhere = task(first, retries=0, startup_timeout_seconds=5)
    nowhere["tasks"][first]["pod"]["spec"]["nodeSelector"] = {"no-such": "node"}
    with with_settings(nowhere):
        run = follow_run("training_dag", start("training_dag"), SECONDS)

    assert run.state == "failed"
    assert run.tasks[first].state == "failed"
    # Airflow 3's provider has a limit of its own for the search of a node, as long as the other.
    limit = "schedule_timeout_seconds" if airflow.is_3 else "startup_timeout_seconds"
    assert f"did not start within 5 s ({limit})" in run.logs[first]
    assert "Pod Event: FailedScheduling - 0/1 nodes are available" in run.logs[first]
    assert "Unschedulable" in run.logs[first]
