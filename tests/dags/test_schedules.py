"""What starts inference_dag, with and without `inferenceOnNewModel`."""

from __future__ import annotations

import json

import pytest

from ml_pipelines.schedules import DATASETS, model_dataset
from ml_pipelines.settings import parse_settings

MODEL = "ml-pipelines://models/airflow-pipeline"


def stored(dag: object) -> dict:
    """The DAG as the scheduler has it."""
    try:
        from airflow.serialization.serialized_objects import DagSerialization as Serialization
    except ImportError:  # Airflow 2
        from airflow.serialization.serialized_objects import SerializedDAG as Serialization

    return json.loads(json.dumps(Serialization.to_dict(dag)))["dag"]


def waited_for(dag: object) -> set[str]:
    """The datasets that start a DAG, by what its timetable says."""
    if DATASETS == "datasets":  # Airflow 2
        condition = dag.dataset_triggers
        return {uri for uri, _ in condition.iter_datasets()} if condition else set()
    condition = getattr(dag.timetable, "asset_condition", None)
    return {asset.uri for asset in condition.objects} if condition else set()


@pytest.fixture
def inference(load_dag, settings_file):
    def load(cron: str | None, *, on_new_model: bool):
        settings_file({"schedule": {"inference_dag": cron}, "inferenceOnNewModel": on_new_model})
        return load_dag("inference_dag")

    return load


@pytest.mark.parametrize("cron", ["0 9 * * *", "@daily", "@once", None])
def test_without_the_switch_only_the_clock_counts(inference, cron: str | None) -> None:
    dag = inference(cron, on_new_model=False)
    assert waited_for(dag) == set()
    assert MODEL not in json.dumps(stored(dag))


@pytest.mark.parametrize("cron", ["0 9 * * *", "@daily", "@once"])
def test_with_the_switch_clock_and_models_count(inference, cron: str) -> None:
    dag = inference(cron, on_new_model=True)
    assert waited_for(dag) == {MODEL}
    # The clock is the one that Airflow itself makes of the expression.
    without = inference(cron, on_new_model=False)
    if DATASETS == "datasets":  # Airflow 2
        assert dag.timetable.timetable == without.timetable
    else:
        clock = stored(without)["timetable"]
        assert stored(dag)["timetable"]["__var"]["timetable"] == clock
    assert dag.timetable.can_be_scheduled is True
    assert MODEL in json.dumps(stored(dag))
    assert dag.catchup is False


def test_with_the_switch_and_no_schedule_only_models_count(inference) -> None:
    dag = inference(None, on_new_model=True)
    assert waited_for(dag) == {MODEL}
    assert not hasattr(dag.timetable, "timetable")


@pytest.mark.parametrize("on_new_model", [True, False])
def test_upload_model_announces_the_model_that_inference_waits_for(
    load_dag, settings_file, on_new_model: bool
) -> None:
    settings_file({"inferenceOnNewModel": on_new_model, "registry": {"modelName": "größe"}})
    training, inference = load_dag("training_dag"), load_dag("inference_dag")
    announced = {task.task_id: {one.uri for one in task.outlets} for task in training.tasks}
    assert announced.pop("upload_model") == {"ml-pipelines://models/gr%C3%B6%C3%9Fe"}
    assert set().union(*announced.values()) == set()
    assert waited_for(inference) == (
        {"ml-pipelines://models/gr%C3%B6%C3%9Fe"} if on_new_model else set()
    )


def test_another_model_is_another_dataset() -> None:
    first, second = (
        model_dataset(parse_settings({"registry": {"modelName": name}}, "test", {}).registry)
        for name in ("one", "two")
    )
    assert first.uri != second.uri
