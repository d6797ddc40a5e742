"""A worker that has died in its last try: what becomes of its pod, by Airflow's own callbacks."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow import DAG
from airflow.exceptions import AirflowException
from kubernetes.client.exceptions import ApiException

from ml_pipelines import PodOperator
from tests.dags.cluster import LABELS, RUNNING, STARTING, Cluster, Log, answer, ended
from tests.dags.conftest import AIRFLOW_2, RUN_ID, START, hook_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FAILURE = ended(2)


@pytest.fixture
def cluster(clock, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(clock, [(0, RUNNING)])
    monkeypatch.setattr(PodOperator, "hook", hook_of(cluster))
    return cluster


def make_dag(mapped: bool, **arguments: Any) -> Any:
    arguments = {"task_id": "a_task", "namespace": "default", "retries": 0} | arguments
    with DAG("a_dag", schedule=None, start_date=START) as dag:
        if mapped:
            PodOperator.partial(**arguments).expand(cmds=[["a"], ["b"]])
        else:
            PodOperator(**arguments)
    return dag


if AIRFLOW_2:

    @pytest.fixture
    def lose_worker(session):
        """Have Airflow find that the worker of a task has died."""
        from airflow.callbacks.callback_requests import TaskCallbackRequest
        from airflow.dag_processing.processor import DagFileProcessor
        from airflow.models import DagRun
        from airflow.models.taskinstance import SimpleTaskInstance
        from airflow.utils.types import DagRunType

        session.query(DagRun).filter(DagRun.dag_id == "a_dag").delete()

        def lose(dag: Any, map_index: int = -1) -> None:
            dag.sync_to_db(session=session)
            run = dag.create_dagrun(
                run_id=RUN_ID,
                execution_date=datetime.now(UTC),
                data_interval=(START, START),
                run_type=DagRunType.MANUAL,
                state="running",
                session=session,
            )
            instance = run.get_task_instance("a_task", map_index=map_index, session=session)
            instance.state = "running"
            session.flush()
            request = TaskCallbackRequest("a_dag.py", SimpleTaskInstance.from_ti(instance))
            processor = DagFileProcessor(None, "", logging.getLogger())
            processor._execute_task_callbacks(
                SimpleNamespace(dags={"a_dag": dag}), request, session=session
            )
            assert instance.state == "failed"

        return lose

else:

    @pytest.fixture
    def lose_worker():
        """Have Airflow find that the worker of a task has died."""
        import structlog
        from airflow.api_fastapi.execution_api.datamodels import taskinstance
        from airflow.callbacks.callback_requests import TaskCallbackRequest
        from airflow.dag_processing.processor import _execute_task_callbacks

        from tests.helpers.pipelines import stored

        def lose(dag: Any, map_index: int = -1) -> None:
            # The scheduler asks for callbacks only where the stored DAG says that there are any.
            assert '"has_on_failure_callback": true' in stored(dag)
            of_run = {"dag_id": "a_dag", "run_id": RUN_ID}
            instance = taskinstance.TaskInstance(
                **of_run,
                id=uuid4(),
                task_id="a_task",
                try_number=1,
                dag_version_id=uuid4(),
                map_index=map_index,
            )
            request = TaskCallbackRequest(
                filepath="a_dag.py",
                bundle_name="dags",
                bundle_version=None,
                ti=instance,
                task_callback_type="failed",
            )
            _execute_task_callbacks(
                SimpleNamespace(dags={"a_dag": dag}), request, structlog.get_logger()
            )

        return lose


@pytest.mark.parametrize("timeline", [[(0, RUNNING)], [(0, STARTING)]], ids=["runs", "starts"])
def test_the_pod_of_a_dead_worker_goes(cluster, lose_worker, monkeypatch, timeline) -> None:
    log = Log()
    monkeypatch.setattr(PodOperator, "log", log)
    cluster.add("left", timeline, **LABELS)
    lose_worker(make_dag(mapped=False))
    assert cluster.deleted == ["left"]
    assert ("warning", "Pod left still runs and is deleted") in log.lines


def test_of_a_mapped_task_its_own_pod_goes(cluster, lose_worker) -> None:
    cluster.add("left", [(0, RUNNING)], **LABELS, map_index="1")
    cluster.add("another", [(0, RUNNING)], **LABELS, map_index="0")
    lose_worker(make_dag(mapped=True), map_index=1)
    assert cluster.deleted == ["left"]


@pytest.mark.parametrize(
    ("timeline", "other"),
    [
        ([(0, FAILURE)], {}),
        ([(0, ended(0))], {}),
        ([(0, RUNNING)], {"run_id": "manual__2"}),
        ([(0, RUNNING)], {"task_id": "another"}),
        ([(0, RUNNING)], {"already_checked": "True"}),
        ([(0, RUNNING)], {"airflow-worker": "1"}),
    ],
    ids=["failed", "succeeded", "run", "task", "looked at", "worker"],
)
def test_other_pods_stay(cluster, lose_worker, timeline, other: dict[str, str]) -> None:
    cluster.add("other", timeline, **(LABELS | other))
    lose_worker(make_dag(mapped=False))
    assert cluster.deleted == []


def test_a_pod_that_is_to_be_kept_stays(cluster, lose_worker) -> None:
    cluster.add("kept", [(0, RUNNING)], **LABELS)
    lose_worker(make_dag(mapped=False, on_finish_action="keep_pod"))
    assert cluster.deleted == []


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("where", ["task", "dag"])
@pytest.mark.parametrize("form", [lambda one: one, lambda one: [one]], ids=["one", "list"])
def test_callbacks_of_ones_own_are_called_too(
    cluster, lose_worker, mapped: bool, where: str, form: Any
) -> None:
    called = []
    own = {"on_failure_callback": form(lambda context: called.append(context["ti"].task_id))}
    cluster.add("left", [(0, RUNNING)], **LABELS, **({"map_index": "0"} if mapped else {}))
    arguments = own if where == "task" else {"default_args": own}
    lose_worker(make_dag(mapped, **arguments), map_index=0 if mapped else -1)
    assert called == ["a_task"]
    assert cluster.deleted == ["left"]


def test_a_failed_pod_stays_for_a_look_at_it(cluster, make_task, run_task, context_of) -> None:
    cluster.timelines = [[(0, RUNNING), (10, FAILURE)]]
    task = make_task()
    done = run_task(task, cluster)
    assert done.error is not None
    context = context_of(task, RUN_ID) | {"exception": done.error}
    for call in task.on_failure_callback:
        call(context)
    assert cluster.deleted == []
    assert cluster.there == cluster.created
    # For the note of the run.
    assert context["ti"].xcoms == {"failure": done.message}


def test_what_has_failed_is_told_also_where_pods_may_not_be_listed(
    cluster, make_task, context_of
) -> None:
    task = make_task()
    cluster.trouble(0, 10_000, answer(403, "Forbidden"))
    context = context_of(task, RUN_ID) | {"exception": AirflowException("Pod a was refused")}
    for call in task.on_failure_callback:
        with pytest.raises(ApiException):
            call(context)
    assert context["ti"].xcoms == {"failure": "Pod a was refused"}


def test_a_worker_that_died_has_nothing_to_say(cluster, make_task, context_of) -> None:
    """Airflow 3 gives its callbacks no exception then."""
    task = make_task()
    context = context_of(task, RUN_ID)
    for call in task.on_failure_callback:
        call(context)
    assert context["ti"].xcoms == {}
