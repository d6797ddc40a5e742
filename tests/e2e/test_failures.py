"""Runs that fail: the run says so, cleans up, and the log says why."""

import pytest

from tools.airflow_api import Airflow, container_lines
from tools.run import explain_failure
from tools.stack import Stack

FAILING_SECONDS = 600


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
    path = stack.run_path("training_dag", run.run_id)
    assert [file for file in stack.list_volume() if file.startswith(path)] == []
