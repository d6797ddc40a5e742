"""Which tasks the triggerer runs itself, and what it is given of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow import DAG
from airflow.serialization.serialized_objects import DagSerialization
from kubernetes.client import Configuration, V1EnvVar

from ml_pipelines import PodOperator
from one_pod import launch
from tests.dags.conftest import START

SETTINGS = {"launch": "triggerer", "maxPods": 10}


@pytest.fixture(autouse=True)
def settings(settings_file: Callable[[Any], Any]) -> None:
    settings_file(SETTINGS)


def make(dag: dict[str, Any] | None = None, **arguments: Any) -> PodOperator:
    with DAG("a_dag", schedule=None, start_date=START, **(dag or {})):
        return PodOperator(**{"task_id": "a_task", "image": "i:1", "cmds": ["true"]} | arguments)


def test_a_task_starts_in_the_triggerer() -> None:
    task = make(execution_timeout=timedelta(minutes=5))
    assert task.start_from_trigger is True
    kwargs = task.start_trigger_args.trigger_kwargs
    pod = json.loads(kwargs["pod"])
    assert pod["metadata"]["name"] == "a-task"
    assert "namespace" not in pod["metadata"]
    assert pod["spec"]["activeDeadlineSeconds"] == 300
    assert kwargs["options"]["max_pods"] == 10
    assert kwargs["options"]["on_finish_action"] == "delete_succeeded_pod"
    # Nobody needs to look for its pod when it has failed.
    assert not task.on_failure_callback


def test_a_file_is_read_without_words_and_without_copies_of_the_clients_configuration(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Configuration] = []

    def copied(self: Configuration, _memo: Any) -> Configuration:
        copies.append(self)
        return self

    monkeypatch.setattr(Configuration, "__deepcopy__", copied)
    monkeypatch.setattr(Configuration, "_default", other := Configuration())
    copies.clear()
    task = make(env_vars=[V1EnvVar(name="A", value="b")])
    # The environment was made above, with its own.
    assert [one is other for one in copies] == [True]
    assert (Configuration.__deepcopy__, Configuration._default) == (copied, other)
    assert "Building pod" not in "".join(capfd.readouterr())
    assert not {"hook", "_cached_logger"} & vars(task).keys()


def test_the_values_decide(settings_file) -> None:
    settings_file({"launch": "worker"})
    assert make().start_from_trigger is False
    settings_file({})
    task = make(execution_timeout=timedelta(minutes=5))
    assert task.start_from_trigger is False
    assert task.execution_timeout == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("why", "arguments"),
    [
        # Limits are the scheduler's, when it starts a worker.
        ("pool", {"pool": "gpu"}),
        ("pool_slots", {"pool_slots": 2}),
        ("max_active_tis_per_dag", {"max_active_tis_per_dag": 1}),
        ("max_active_tis_per_dagrun", {"max_active_tis_per_dagrun": 1}),
        ("max_active_tasks of the DAG", {"dag": {"max_active_tasks": 2}}),
        ("on_success_callback", {"on_success_callback": print}),
        ("on_execute_callback", {"on_execute_callback": print}),
        ("_pre_execute_hook", {"pre_execute": print}),
        ("xcom_sidecar", {"do_xcom_push": True}),
        ("deferrable", {"deferrable": True}),
        ("random_name_suffix", {"random_name_suffix": False}),
        ("in_cluster", {"in_cluster": False}),
        ("kubernetes_conn_id", {"kubernetes_conn_id": "other"}),
        ("container_logs", {"container_logs": ["other"]}),
        ("user_defined_macros of the DAG", {"dag": {"user_defined_macros": {"f": print}}}),
        ("fail_fast of the DAG", {"dag": {"fail_fast": True}}),
        ("a template for all of arguments", {"arguments": "{{ params.all }}"}),
    ],
)
def test_what_only_a_worker_gives_stays_with_one(why: str, arguments: dict[str, Any]) -> None:
    task = make(**arguments)
    assert launch.why_worker(task, SETTINGS) == why
    assert task.start_from_trigger is False
    assert task.on_failure_callback


def test_a_limit_of_the_values_stays_with_workers(settings_file) -> None:
    settings_file(SETTINGS | {"dags": {"a_dag": {"max_active_tasks": 3}}})
    assert make().start_from_trigger is False
    settings_file(SETTINGS | {"dags": {"other": {"max_active_tasks": 3}}})
    assert make().start_from_trigger is True


def test_an_operator_of_ones_own_and_a_result_as_a_list_stay_with_workers() -> None:
    class Own(PodOperator):
        pass

    with DAG("a_dag", schedule=None, start_date=START):
        own = Own(task_id="own", image="i:1")
        other = PodOperator(task_id="other", image="i:1")
        uses = PodOperator(task_id="uses", image="i:1", cmds=other.output)
    assert [one.start_from_trigger for one in (own, other, uses)] == [False, True, False]
    assert launch.why_worker(uses, SETTINGS) == "a result in cmds"


def test_a_mapped_task_stays_with_workers() -> None:
    with DAG("a_dag", schedule=None, start_date=START) as dag:
        mapped = PodOperator.partial(
            task_id="mapped", image="i:1", execution_timeout=timedelta(minutes=5)
        ).expand(cmds=[["a"], ["b"]])
    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("mapped")
    assert not stored.start_from_trigger
    one = mapped.unmap({"cmds": ["a"]})
    assert one.start_from_trigger is False
    assert one.execution_timeout == timedelta(minutes=5)


@pytest.mark.parametrize("name", ["training_dag", "inference_dag"])
def test_the_examples_run_without_workers(load_dag, name: str, settings_file) -> None:
    from tests.dags.conftest import CHART_SETTINGS

    settings_file(CHART_SETTINGS | SETTINGS | {"dags": {}})
    dag = load_dag(name)
    by_worker = {
        one.task_id
        for one in dag.tasks
        if isinstance(one, PodOperator) and not one.start_from_trigger
    }
    assert by_worker <= {"gate_model"}  # it decides what comes after it
    assert len(json.dumps(DagSerialization.to_dict(dag))) < 60_000
