"""W&B as the registry, and a new model that starts an inference: see conftest.py."""

import json
from collections.abc import Callable
from datetime import datetime
from urllib.parse import quote

import pytest

from mlctl.clients.airflow import Airflow, container_lines
from mlctl.clients.volume import Volume
from mlctl.stack import Stack
from tests.helpers.wandb_stand_in import NAME, PORT, PROJECT, StandIn


@pytest.fixture
def consumers(airflow: Airflow, stack: Stack) -> Callable[[], list[str]]:
    """Give the ids of the DAGs that a new model starts."""
    uri = f"x-ml-pipelines://models/{stack.settings['model']['name']}"

    def ask() -> list[str]:
        dataset = airflow.get(f"datasets/{quote(uri, safe='')}")
        # The same dataset that gate_model announces, else nothing is proved by its consumers.
        assert [(one["dag_id"], one["task_id"]) for one in dataset["producing_tasks"]] == [
            ("training_dag", "gate_model")
        ]
        return [one["dag_id"] for one in dataset["consuming_dags"]]

    return ask


def test_without_the_switch_a_new_model_starts_nothing(
    training_run, inference_run, airflow: Airflow, consumers, started_by_a_model
) -> None:
    events = airflow.get("datasets/events", limit=100, source_dag_id="training_dag")
    announced = [event["source_run_id"] for event in events["dataset_events"]]
    assert announced.count(training_run.run_id) == 1
    assert consumers() == []
    assert started_by_a_model() == []


def test_a_wrong_key_fails_the_upload_in_plain_words(training, airflow: Airflow) -> None:
    log = airflow.log("training_dag", training.run_id, "upload_model", 1)
    errors = [line for line in container_lines(log) if "ERROR:" in line]
    assert len(errors) == 1, log
    assert f"W&B at http://{NAME}:{PORT} refuses the API key (HTTP 401)" in errors[0]
    assert "put a valid key into the Secret" in errors[0]
    assert "Traceback" not in "\n".join(container_lines(log))


def test_the_right_key_in_the_secret_is_enough_for_the_next_try(training) -> None:
    assert training.state == "success", training.told()
    assert {name: (task.state, task.try_number) for name, task in training.tasks.items()} == {
        "clean_storage_before_start": ("success", 1),
        "load_data": ("success", 1),
        "train_model": ("success", 1),
        "upload_model": ("success", 2),
        "gate_model": ("success", 1),
        "clean_up": ("success", 1),
    }, training.told()


def test_model_metrics_and_plots_arrive(training, inference, server: StandIn) -> None:
    uploaded, trained = training.results["upload_model"], training.results["train_model"]
    assert (uploaded["registry"], uploaded["version"]) == ("wandb", "v0")
    found = server.summary()
    assert found["unknown"] == []
    (artifact,) = found["artifacts"]
    assert uploaded["uri"].endswith(f"/{PROJECT}/{artifact['name']}:v0")
    assert sorted(artifact["aliases"]) == ["champion", "latest"]
    assert artifact["metadata"]["run_id"] == training.run_id
    assert abs(artifact["metadata"]["metrics"]["accuracy"] - trained["accuracy"]) < 1e-5
    assert artifact["files"]["model.safetensors"] == artifact["metadata"]["model_sha256"]
    # One run from the first step of the training to the version.
    (run,) = (one for one in found["runs"] if one["job_type"] != "load-model")
    assert artifact["run"] == run["name"]
    assert run["state"] == "finished"
    assert run["config"]["dag_id"] == "training_dag"
    assert abs(run["summary"]["accuracy"] - trained["accuracy"]) < 1e-5
    assert len([name for name in run["files"] if name.endswith(".png")]) == 2


def test_a_new_key_between_two_runs_needs_no_upgrade(
    training, inference, server: StandIn, airflow: Airflow, stack: Stack, volume: Volume
) -> None:
    assert inference.state == "success", inference.told()
    assert {task.try_number for task in inference.tasks.values()} == {1}, inference.told()
    run = f"dags/inference_dag/dagRuns/{quote(inference.run_id, safe='')}"
    asked = airflow.get(f"{run}/taskInstances/load_model")["start_date"]
    assert server.changed < datetime.fromisoformat(asked)
    assert inference.results["load_model"]["version"] == "v0"
    found = server.summary()
    # The training and the first try of the upload: one question of each, and no more.
    assert found["refused"] == 2
    # The daily run of before, if this is the first use of the DAG, has loaded it as well.
    (load,) = (
        one
        for one in found["runs"]
        if one["job_type"] == "load-model" and one["config"].get("run_id") == inference.run_id
    )
    assert load["used"] == [f"{training.results['upload_model']['name']}:v0"]
    assert load["state"] == "finished"
    path = stack.run_path("inference_dag", inference.run_id)
    made = json.loads(volume.read(f"{path}/pred.json"))
    assert made["model"]["version"] == "v0"
    assert made["rows"] == inference.results["load_data"]["rows"]["test"]


def test_with_the_switch_a_new_model_starts_one_run_that_uses_it(
    training, inference, consumers, started_by_a_model
) -> None:
    assert consumers() == ["inference_dag"]
    assert started_by_a_model() == [inference.run_id]
    used, registered = inference.results["load_model"], training.results["upload_model"]
    assert (used["name"], used["version"]) == (registered["name"], registered["version"])
