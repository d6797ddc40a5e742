"""What `pipelines.inference` of the values makes of inference_dag."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.dags.conftest import CHART_SETTINGS
from tests.helpers.pipelines import COMMANDS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PREDICT = COMMANDS["inference_dag", "run_inference"]


@pytest.fixture
def inference(load_dag, settings_file):
    """The DAG with these keys of `pipelines.inference`."""

    def load(**keys: Any) -> Any:
        inference = CHART_SETTINGS["inference"] | keys
        settings_file(CHART_SETTINGS | {"inference": inference})
        return load_dag("inference_dag")

    return load


def container(pod: dict) -> tuple[list[str], dict[str, str]]:
    """Command and variables of a task's container."""
    (base,) = pod["spec"]["containers"]
    return base["command"], {one["name"]: one.get("value") for one in base["env"]}


def test_by_default_there_is_no_more_than_in_the_document(inference, render_pod) -> None:
    dag = inference()
    assert {task.task_id for task in dag.tasks} == {
        *("clean_storage_before_start", "load_data", "load_model", "run_inference", "clean_up"),
    }
    assert "shards" not in dag.params
    command, variables = container(render_pod(dag.get_task("run_inference"), "run"))
    assert command == PREDICT
    assert variables["PREDICT_ON_BAD_ROW"] == "fail"
    assert "PREDICT_OUTPUT" not in variables


def test_the_workload_is_told_what_the_values_say(inference, render_pod) -> None:
    dag = inference(onBadRow="skip", output="s3://bucket/{{ run_id }}/pred.parquet")
    _, variables = container(render_pod(dag.get_task("run_inference"), "daily-1"))
    assert variables["PREDICT_ON_BAD_ROW"] == "skip"
    assert variables["PREDICT_OUTPUT"] == "s3://bucket/daily-1/pred.parquet"
    assert json.loads(variables["ML_PIPELINES_PARAMS"])["sample_size"] is None


def test_shards_are_mapped_tasks_and_a_task_that_joins_them(inference, render_pod) -> None:
    dag = inference(shards=3)
    mapped, join = dag.get_task("run_inference"), dag.get_task("join_predictions")
    assert mapped.partial_kwargs["cmds"] == PREDICT
    assert mapped.upstream_task_ids == {"clean_storage_before_start", "load_data", "load_model"}
    assert join.upstream_task_ids == {"run_inference"}
    clean_up = dag.get_task("clean_up")
    assert clean_up.is_teardown
    assert clean_up.upstream_task_ids == {task.task_id for task in dag.tasks} - {"clean_up"}
    command, variables = container(render_pod(join, "run"))
    assert command[2:] == ["join-predictions", "/tmp/results/", "/tmp/pred.csv", "3"]
    assert variables["PREDICT_ON_BAD_ROW"] == "fail"


@pytest.mark.parametrize("shards", [1, 2, 100])
def test_the_number_of_shards_is_a_parameter_of_the_run(inference, render_pod, shards) -> None:
    dag = inference(shards=3)
    dag.params["shards"] = shards
    (_, _, script), _ = container(render_pod(dag.get_task("clean_storage_before_start"), "run"))
    said = script.partition("printf '%s' '")[2].rpartition("' > /dev/termination-log")[0]
    assert json.loads(said) == [["--shard", f"{number}/{shards}"] for number in range(shards)]
    # Kubernetes keeps no more of a termination message.
    assert len(said.encode()) < 4096
    command, _ = container(render_pod(dag.get_task("join_predictions"), "run"))
    assert command[-1] == str(shards)


@pytest.mark.parametrize("shards", [1, 2])
def test_drift_starts_a_training_that_nothing_else_waits_for(inference, shards: int) -> None:
    dag = inference(retrainOnDrift=0.25, shards=shards)
    drifted, retrain = dag.get_task("has_drifted"), dag.get_task("retrain")
    before = "join_predictions" if shards > 1 else "run_inference"
    assert drifted.upstream_task_ids == {before}
    assert drifted.downstream_task_ids == {"retrain"}
    assert retrain.trigger_dag_id == "training_dag"
    assert retrain.downstream_task_ids == set()
    called = drifted.python_callable
    assert called({"drift": {"psi_length": 0.1, "psi_tokens": 0.26}}) is True
    assert called({"drift": {"psi_length": 0.25, "ks_length": 0.9}}) is False
    # A model without statistics, as of another's making.
    assert called({"rows": 7}) is False
