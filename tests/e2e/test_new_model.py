"""The switch `pipelines.inferenceOnNewModel`: what a newly registered model starts."""

from collections.abc import Callable
from urllib.parse import quote

import pytest

from mlctl.clients.airflow import Airflow
from mlctl.stack import Stack
from tests.helpers.releases import SHORT_TRAINING
from tests.helpers.waiting import until

TRAINING_SECONDS = 1800
INFERENCE_SECONDS = 900
START_SECONDS = 60


@pytest.fixture
def consumers(airflow: Airflow, stack: Stack) -> Callable[[], list[str]]:
    """Give the ids of the DAGs that a new model starts."""
    uri = f"ml-pipelines://models/{stack.settings['registry']['modelName']}"

    def ask() -> list[str]:
        dataset = airflow.get(f"datasets/{quote(uri, safe='')}")
        # The same dataset that upload_model announces, else nothing is proved by its consumers.
        assert [(one["dag_id"], one["task_id"]) for one in dataset["producing_tasks"]] == [
            ("training_dag", "upload_model")
        ]
        return [one["dag_id"] for one in dataset["consuming_dags"]]

    return ask


def runs_by_type(airflow: Airflow) -> dict[str, list[str]]:
    """Return the ids of the runs of inference_dag by how they were started."""
    found: dict[str, list[str]] = {"manual": [], "scheduled": [], "dataset_triggered": []}
    for run in airflow.get("dags/inference_dag/dagRuns", limit=100)["dag_runs"]:
        found[run["run_type"]].append(run["dag_run_id"])
    return found


def test_without_the_switch_a_new_model_starts_nothing(
    training_run, inference_run, airflow: Airflow, consumers
) -> None:
    events = airflow.get("datasets/events", limit=100, source_dag_id="training_dag")
    announced = [event["source_run_id"] for event in events["dataset_events"]]
    assert announced.count(training_run.run_id) == 1
    assert consumers() == []
    assert runs_by_type(airflow)["dataset_triggered"] == []


def test_with_the_switch_a_new_model_starts_one_run_that_uses_it(
    inference_run, with_values, settle, run_dag, follow_run, airflow: Airflow, consumers
) -> None:
    before = runs_by_type(airflow)
    with with_values("pipelines.inferenceOnNewModel=true", SHORT_TRAINING):
        settle()
        assert consumers() == ["inference_dag"]
        training = run_dag("training_dag", TRAINING_SECONDS)
        assert training.state == "success", training.told()
        until(
            lambda: bool(runs_by_type(airflow)["dataset_triggered"]), START_SECONDS, "nothing runs"
        )
        (run_id,) = runs_by_type(airflow)["dataset_triggered"]
        inference = follow_run("inference_dag", run_id, INFERENCE_SECONDS)
    assert inference.state == "success", inference.told()
    used, registered = inference.results["load_model"], training.results["upload_model"]
    assert (used["name"], used["version"]) == (registered["name"], registered["version"])
    # The daily schedule goes on as before, and the model has started nothing else.
    assert runs_by_type(airflow) == before | {"dataset_triggered": [run_id]}
    settle()
    assert consumers() == []
