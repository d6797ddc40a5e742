"""The operator as Airflow's own task instance runs it, on a real (SQLite) database."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow import DAG
from airflow.exceptions import AirflowException

from ml_pipelines import PodOperator
from tests.dags.cluster import RUNNING, Cluster, ended, until
from tests.dags.conftest import START, hook_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run_instance(instance: Any, dag: Any, session: Any) -> None:
    instance.refresh_from_task(dag.get_task(instance.task_id))
    with suppress(Exception):
        instance.run(ignore_ti_state=True, ignore_all_deps=True, session=session)


@pytest.fixture
def run_dag(session, clock, monkeypatch: pytest.MonkeyPatch):
    """Run the tasks of a DAG in their order; gives their instances, by task id."""
    from airflow.utils.types import DagRunType

    def run(dag: Any, cluster: Cluster, *task_ids: str) -> dict[str, Any]:
        monkeypatch.setattr(PodOperator, "hook", hook_of(cluster))
        dag.sync_to_db(session=session)
        when = datetime.now(UTC)
        dag_run = dag.create_dagrun(
            run_id="r",
            execution_date=when,
            data_interval=(when, when),
            run_type=DagRunType.MANUAL,
            state="running",
            start_date=when,
            session=session,
        )
        session.commit()
        instances = {one.task_id: one for one in dag_run.get_task_instances(session=session)}
        for task_id in task_ids:
            run_instance(instances[task_id], dag, session)
        return instances

    return run


def test_a_result_can_be_mapped_over(run_dag, clock, session) -> None:
    from airflow.models.taskmap import TaskMap

    with DAG("mapping", schedule=None, start_date=START) as dag:
        parts = PodOperator(task_id="parts", image="i", namespace="default")
        each = PodOperator.partial(task_id="each", image="i").expand(cmds=parts.output)
        parts >> each
    cluster = Cluster(clock, until(10, ended(0, message=json.dumps([["a"], ["b"]]))))
    instances = run_dag(dag, cluster, "parts")
    assert instances["parts"].state == "success"
    assert instances["parts"].xcom_pull(task_ids="parts", session=session) == [["a"], ["b"]]
    assert len(cluster.created) == 1
    assert cluster.deleted == cluster.created
    (mapped,) = session.query(TaskMap).filter(TaskMap.dag_id == "mapping")
    assert mapped.length == 2


class Fallback(PodOperator):
    """Runs its pod only when another one has failed, and inside its handler."""

    def execute(self, context: Any) -> Any:
        try:
            raise AirflowException("no GPU")
        except AirflowException:
            return super().execute(context)


@pytest.mark.parametrize(("exit_code", "state"), [(2, "failed"), (0, "success")])
def test_a_failed_pod_is_a_failed_task_also_inside_a_handler(
    run_dag, clock, session, exit_code: int, state: str
) -> None:
    with DAG(f"fallback_{exit_code}", schedule=None, start_date=START) as dag:
        Fallback(task_id="t", image="i", namespace="default", retries=0)
    cluster = Cluster(clock, until(10, ended(exit_code)))
    instance = run_dag(dag, cluster, "t")["t"]
    assert instance.state == state
    pushed = instance.xcom_pull(task_ids="t", session=session)
    assert bool(pushed) is (state == "success")


@pytest.mark.parametrize(("exit_code", "state"), [(99, "skipped"), (2, "up_for_retry")])
def test_a_skip_is_a_skip_and_a_failure_is_tried_again(
    run_dag, clock, exit_code: int, state: str
) -> None:
    with DAG(f"skip_{exit_code}", schedule=None, start_date=START) as dag:
        PodOperator(task_id="t", image="i", namespace="default", skip_on_exit_code=99, retries=2)
    cluster = Cluster(clock, until(10, ended(exit_code)))
    assert run_dag(dag, cluster, "t")["t"].state == state


def test_a_result_that_was_cut_off_is_not_tried_again(run_dag, clock) -> None:
    with DAG("cut_off", schedule=None, start_date=START) as dag:
        PodOperator(task_id="t", image="i", namespace="default", retries=2)
    cluster = Cluster(clock, until(10, ended(0, message='["' + "x" * 4094)))
    assert run_dag(dag, cluster, "t")["t"].state == "failed"


def test_a_task_that_is_deferred_waits_with_its_pod(run_dag, clock) -> None:
    with DAG("deferred", schedule=None, start_date=START) as dag:
        PodOperator(
            task_id="t", image="i", namespace="default", deferrable=True, kubernetes_conn_id=None
        )
    cluster = Cluster(clock, [(0, RUNNING)])
    assert run_dag(dag, cluster, "t")["t"].state == "deferred"
    assert len(cluster.there) == 1


@pytest.mark.parametrize("mapped", [False, True])
def test_a_task_that_waits_for_a_quota_costs_no_try(
    run_dag, clock, session, settings_file, mapped: bool
) -> None:
    from airflow.models.trigger import Trigger
    from airflow.triggers.base import TriggerEvent

    settings_file({"triggerer": True})
    with DAG(f"quota_{mapped}", schedule=None, start_date=START) as dag:
        arguments = {"task_id": "t", "image": "i", "namespace": "default", "retries": 0}
        if mapped:
            PodOperator.partial(**arguments).expand(cmds=[["a"]])
        else:
            PodOperator(**arguments)
    cluster = Cluster(clock, until(10, ended(0, message='["done"]')))
    cluster.quota = 0
    instance = run_dag(dag, cluster, "t")["t"]
    assert instance.state == "deferred"
    assert cluster.created == []
    cluster.quota = None
    Trigger.submit_event(instance.trigger_id, TriggerEvent(START), session=session)
    session.commit()
    instance.refresh_from_db(session=session)
    assert instance.state == "scheduled"
    run_instance(instance, dag, session)
    assert instance.state == "success"
    assert instance.prev_attempted_tries == 1
    assert cluster.labels(cluster.created[0])["try_number"] == "1"
    result = instance.xcom_pull(task_ids="t", map_indexes=instance.map_index, session=session)
    assert result == ["done"]
    assert cluster.there == []
