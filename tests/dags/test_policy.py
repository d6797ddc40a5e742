"""What a task gets from the values, its DAG and itself, and in which order."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow import DAG

from ml_pipelines import PodOperator
from tests.dags.conftest import START
from tests.helpers.pipelines import EVERY_TASK, stored

try:
    from airflow.sdk import TaskGroup
except ImportError:  # Airflow 2
    from airflow.utils.task_group import TaskGroup


def test_every_task_is_listed_here(load_dag, chart_settings) -> None:
    tasks = {
        (dag_id, task.task_id)
        for dag_id in ("training_dag", "inference_dag")
        for task in load_dag(dag_id).tasks
    }
    assert tasks == set(EVERY_TASK)


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_a_failed_pod_stays_and_nothing_secret_is_logged(
    load_dag, chart_settings, dag_id: str, task_id: str
) -> None:
    task = load_dag(dag_id).get_task(task_id)
    assert task.retries == 2
    assert task.retry_delay == timedelta(seconds=10)
    assert task.on_finish_action == "delete_succeeded_pod"
    assert task.reattach_on_restart is True
    assert task.log_pod_spec_on_failure is False
    assert task.log_events_on_failure is True
    assert task.deferrable is False
    assert task.stuck_timeout_seconds < task.startup_timeout_seconds
    assert task.startup_timeout_seconds < task.execution_timeout.total_seconds()


@pytest.mark.parametrize("dag_id", ["training_dag", "inference_dag"])
def test_clean_up_is_a_teardown_without_setups(load_dag, dag_id: str) -> None:
    dag = load_dag(dag_id)
    assert {task.task_id for task in dag.tasks if task.is_teardown} == {"clean_up"}
    assert {task.task_id for task in dag.tasks if task.is_setup} == set()
    assert dag.get_task("clean_up").on_failure_fail_dagrun is False


def test_what_a_task_says_wins_over_its_dag_over_the_values_over_the_house(
    make_task, settings_file
) -> None:
    settings_file({"operator": {"retries": 1, "startup_timeout_seconds": 1, "queue": "values"}})
    by_dag = {"retries": 2, "queue": "dag", "stuck_timeout_seconds": 22}
    task = make_task(default_args=by_dag, retries=3)
    assert (task.retries, task.queue) == (3, "dag")
    assert (task.startup_timeout_seconds, task.stuck_timeout_seconds) == (1, 22)
    assert task.startup_check_interval_seconds == 0.5


@pytest.mark.parametrize(
    ("said", "sidecar", "pushes"),
    [(None, False, True), (True, True, True), (False, False, False)],
)
@pytest.mark.parametrize("layer", ["values", "DAG", "task"])
def test_do_xcom_push_may_be_said_in_every_layer(
    make_task, settings_file, layer: str, said: bool | None, sidecar: bool, pushes: bool
) -> None:
    given = {} if said is None else {"do_xcom_push": said}
    settings_file({"operator": given} if layer == "values" else {})
    task = make_task(
        default_args=given if layer == "DAG" else {}, **(given if layer == "task" else {})
    )
    assert (task.xcom_sidecar, task.do_xcom_push) == (sidecar, pushes)


VALUES = {
    "operator": {"retries": 1, "execution_timeout": 60},
    "tasks": {
        "g.score": {"operator": {"retries": 7, "execution_timeout": 77}},
        "churn.score": {"operator": {"retries": 8, "execution_timeout": 88}},
    },
    "presets": {"gpu": {"operator": {"pool": "gpu"}}},
}


def mapped(group: str | None = None, **arguments):
    """A mapped task, of the DAG `churn`, and as it is unmapped for its first pod."""
    try:
        from airflow.sdk import TaskGroup
    except ImportError:  # Airflow 2
        from airflow.utils.task_group import TaskGroup

    default_args = arguments.pop("default_args", {})
    with DAG("churn", schedule=None, start_date=START, default_args=default_args):

        def make():
            partial = PodOperator.partial(task_id="score", image="i", **arguments)
            return partial.expand(cmds=[["a"], ["b"]])

        if group is None:
            return make()
        with TaskGroup(group):
            return make()


@pytest.mark.parametrize(("group", "retries"), [(None, 8), ("g", 7), ("other", 1)])
def test_a_mapped_task_gets_its_retries_and_limits_from_the_values(
    settings_file, group: str | None, retries: int
) -> None:
    settings_file(VALUES)
    task = mapped(group, presets=["gpu"])
    assert task.retries == retries
    assert task.execution_timeout == timedelta(seconds=60 if retries == 1 else retries * 11)
    assert task.pool == "gpu"
    assert f'"retries": {retries}' in stored(task.dag)


def test_a_mapped_task_and_its_dag_win_over_the_values(settings_file) -> None:
    settings_file(VALUES)
    assert mapped(default_args={"retries": 5}).retries == 5
    assert mapped(default_args={"retries": 5}, retries=6).retries == 6
    assert mapped(default_args={"retries": 5}).execution_timeout == timedelta(seconds=88)


def test_an_unmapped_task_is_the_one_of_the_values(settings_file) -> None:
    settings_file(VALUES)
    task = mapped("g")
    one = task.unmap({"cmds": ["a"]})
    assert one.task_id == "g.score"
    assert one.retries == 7
    assert one.cmds == ["a"]
    assert one.stuck_timeout_seconds == 120


def test_a_task_in_a_group_has_its_whole_id_in_the_values(settings_file, render_pod) -> None:
    settings_file(
        {"tasks": {"g.score": {"operator": {"retries": 7}, "pod": {"spec": {"hostname": "h"}}}}}
    )
    with DAG("churn", schedule=None, start_date=START):
        with TaskGroup("g"):
            task = PodOperator(task_id="score", image="i")
        alone = PodOperator(task_id="score", image="i")
    assert (task.retries, alone.retries) == (7, 0)
    assert render_pod(task, "r")["spec"]["hostname"] == "h"
    assert "hostname" not in render_pod(alone, "r")["spec"]


def test_dag_and_group_may_be_given_as_arguments(settings_file) -> None:
    settings_file(
        {
            "tasks": {
                "churn.score": {"operator": {"retries": 7}},
                "churn.g.score": {"operator": {"retries": 8}},
            }
        }
    )
    dag = DAG("churn", schedule=None, start_date=START)
    group = TaskGroup("g", dag=dag)
    alone = PodOperator(task_id="score", image="i", dag=dag)
    grouped = PodOperator(task_id="score", image="i", dag=dag, task_group=group)
    nowhere = PodOperator(task_id="score", image="i")
    assert (alone.retries, grouped.retries, nowhere.retries) == (7, 8, 0)


def test_what_holds_where_nobody_says_anything(settings_file, make_task) -> None:
    settings_file({})
    task = make_task()
    assert task.startup_timeout_seconds == 600
    assert task.stuck_timeout_seconds == 120
    assert task.startup_check_interval_seconds == 0.5
    assert getattr(task, "base_container_status_polling_interval", 0.2) == 0.2  # a newer provider
    assert task.termination_message_policy == "FallbackToLogsOnError"
    assert getattr(task, "log_events_on_startup", False) is False  # a newer provider
    assert task.log_events_on_failure is True
    assert task.log_pod_spec_on_failure is False
    assert task.on_finish_action == "delete_succeeded_pod"
    assert make_task(random_name_suffix=False, name="a").on_finish_action == "delete_pod"
