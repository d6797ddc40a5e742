"""Fixtures of the DAG tests. They need Airflow and no cluster, and run on Airflow 2 and 3 alike.

Airflow reads its configuration at import: this file sets it before any test module imports it.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.dags.cluster import Clock, Cluster, Log

DAGS = Path(__file__).parents[2] / "dags"
ONE_POD = DAGS.parent / "images" / "airflow3" / "one_pod"
TEMPLATES = DAGS.parent / "charts" / "ml-pipelines" / "templates"
NUMBERS = count()

_HOME = tempfile.TemporaryDirectory(prefix="airflow-dag-tests-")
os.environ.update(
    {
        "AIRFLOW_HOME": _HOME.name,
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(DAGS.parent / "images" / "airflow" / "plugins"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME.name}/airflow.db",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        # As the document has it: the key must not get anywhere from here.
        "WANDB_API_KEY": "planted-0123456789abcdef0123456789abcdef",
        "WANDB_PROJECT": "planted-project",
    }
)
os.environ.pop("ML_PIPELINES_SETTINGS", None)
sys.path[:0] = [str(DAGS), str(ONE_POD.parent)]
AIRFLOW_2 = find_spec("airflow.sdk") is None  # imports Airflow
# On Airflow 3 a task is run by its SDK, which asks an API server for everything.
collect_ignore = ["test_operator_in_airflow.py", "test_next_task.py"]
if AIRFLOW_2:
    sys.path.insert(0, str(DAGS.parent / "images" / "airflow"))
    collect_ignore = [f"test_one_pod_{part}.py" for part in ("changes", "launch", "trigger")]
else:
    import one_pod

    one_pod.__path__.append(str(DAGS / "ml_pipelines"))  # as in the image

START = datetime(2024, 1, 1, tzinfo=UTC)
RUN_ID = "manual__1"


# What the chart writes: tests/chart/test_settings.py holds it to it, and has the values.
CHART_SETTINGS = json.loads((DAGS.parent / "tests/helpers/chart_settings.json").read_text())


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Path]:
    """Write a settings file and make it the one that the DAGs read."""

    def write(content: Any) -> Path:
        path = tmp_path / "settings.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("ML_PIPELINES_SETTINGS", str(path))
        return path

    return write


@pytest.fixture
def chart_settings(settings_file: Callable[[Any], Path]) -> dict[str, Any]:
    """Have the DAGs read a file like the chart's; what it says."""
    settings_file(CHART_SETTINGS)
    return CHART_SETTINGS


@pytest.fixture
def local_settings() -> str:
    """What the chart has every Airflow process run at its start."""
    text = (TEMPLATES / "airflow" / "_local_settings.tpl").read_text(encoding="utf-8")
    return re.search(r"airflowLocalSettings\" -}}\n(.*)\n{{- end }}", text, re.DOTALL)[1]


@pytest.fixture
def run_local_settings(
    local_settings: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run them in this process, until the test has ended; gives the names that they leave."""
    from airflow import settings

    of_airflow_2 = getattr(settings, "POLICY_PLUGIN_MANAGER", None)
    policies = of_airflow_2 or settings.get_policy_plugin_manager()
    before = policies.get_plugins()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(ApiException, "__str__", ApiException.__str__)

    def run() -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(compile(local_settings, "airflow_local_settings.py", "exec"), names)
        return names

    yield run
    for plugin in policies.get_plugins() - before:
        policies.unregister(plugin)


@pytest.fixture
def as_stored(run_local_settings) -> Callable[[Any], Any]:
    """What becomes of a DAG of a file, by the policies of the chart."""
    from airflow import settings

    run_local_settings()

    def apply(dag: Any) -> Any:
        settings.dag_policy(dag)
        return dag

    return apply


@pytest.fixture(scope="session")
def load_dag() -> Callable[[str], Any]:
    """Run a DAG file, as the DAG processor does: each call gives a DAG of its own."""
    return lambda name: runpy.run_path(str(DAGS / f"{name}.py"))["dag"]


@pytest.fixture(scope="session")
def database() -> None:
    """Airflow's tables, and the rows that every installation has."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def session(database: None) -> Iterator[Any]:
    """A session with that database; what it has not committed goes with it."""
    from airflow import settings

    session = settings.Session()
    yield session
    session.rollback()
    session.close()


class FakeTaskInstance:
    """What operator and templates use of a task instance; `xcoms` holds what was pushed.

    `results` are those of the tasks before it, by task id.
    """

    def __init__(self, task: Any, results: dict[str, dict[str, Any]], try_number: int = 1) -> None:
        self.task = task
        self.task_id = task.task_id
        self.dag_id = task.dag_id
        self.map_index = -1
        self.try_number = try_number
        self.max_tries = 2
        self.start_date = datetime.now(UTC)
        self.xcoms: dict[str, Any] = {}
        self.results = results

    def xcom_pull(self, *, task_ids: str) -> dict[str, Any] | None:
        return self.results.get(task_ids)

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.xcoms[key] = value


@pytest.fixture
def context_of() -> Callable[..., dict[str, Any]]:
    """The part of a task's context that templates and the operator read."""

    def context(
        task: Any,
        run_id: str,
        results: dict[str, dict[str, Any]] | None = None,
        started: datetime = datetime(2026, 11, 23, 9, tzinfo=UTC),
        **of_instance: Any,
    ) -> dict[str, Any]:
        ti = FakeTaskInstance(task, results or {})
        vars(ti).update(of_instance)
        run = SimpleNamespace(start_date=started)
        of_ti = {"ti": ti, "task_instance": ti}
        of_dag = {"dag": task.dag, "task": task, "params": task.dag.params.dump()}
        return {**of_dag, "run_id": run_id, "dag_run": run, **of_ti}

    return context


@pytest.fixture
def render_pod(context_of: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The pod that a task asks the API server for, as JSON, in a given run.

    `results` are those of the tasks before it, by task id.
    """
    from kubernetes.client import ApiClient

    def render(
        task: Any, run_id: str, results: dict[str, dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        context = context_of(task, run_id, results)
        task.render_template_fields(context)
        # The hook would look for a kubeconfig; the pod only says whether it ran in the cluster.
        vars(task)["hook"] = SimpleNamespace(is_in_cluster=True, get_namespace=lambda: None)
        pod = task.build_pod_request_obj(context)
        return ApiClient().sanitize_for_serialization(pod)

    return render


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    from ml_pipelines.lineage import dags_commit

    dags_commit()  # cached: to wait for git moves a clock that is played as long as git runs
    return Clock(monkeypatch)


@pytest.fixture
def make_task() -> Callable[..., Any]:
    """Make a task of a DAG of its own."""
    from airflow import DAG

    from ml_pipelines import PodOperator

    def make(operator: Any = PodOperator, dag_id: str = "a_dag", **arguments: Any) -> Any:
        default_args = arguments.pop("default_args", {})
        dag = DAG(dag_id, schedule=None, start_date=START, default_args=default_args)
        with dag:
            return operator(**{"task_id": "a_task", "namespace": "default"} | arguments)

    return make


def stored(dag: Any, session: Any) -> Any:
    """The DAG as the scheduler has it."""
    if AIRFLOW_2:
        dag.sync_to_db(session=session)
        return dag
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG

    session.merge(DagBundleModel(name="tests"))
    session.flush()
    lazy = LazyDeserializedDAG.from_dag(dag)
    SerializedDAG.bulk_write_to_db("tests", None, [lazy], session=session)
    SerializedDagModel.write_dag(lazy, bundle_name="tests", session=session)
    session.flush()
    return DagSerialization.from_dict(lazy.data)


@pytest.fixture
def ended(session, make_task) -> Callable[..., Any]:
    """Let the tasks of a run end so, each with XComs, and the run with them; gives the run.

    `note` and `notes` (by task) are what people have written to the run and its tasks.
    """

    def end(
        tasks: dict[str, tuple[str, dict[str, Any]]],
        dag_id: str = "",
        note: str = "",
        notes: dict[str, str] | None = None,
    ) -> Any:
        if AIRFLOW_2:
            from airflow.models.xcom import XCom
        else:
            from airflow.models.xcom import XComModel as XCom
        first = make_task(task_id=next(iter(tasks)), dag_id=dag_id or f"ended_{next(NUMBERS)}")
        for task_id in list(tasks)[1:]:
            type(first)(task_id=task_id, namespace="default", dag=first.dag)
        dag, when = stored(first.dag, session), datetime.now(UTC)
        more = {"execution_date": when} if AIRFLOW_2 else {"logical_date": when, "run_after": when}
        if not AIRFLOW_2:
            from airflow.utils.types import DagRunTriggeredByType

            more["triggered_by"] = DagRunTriggeredByType.TEST
        run = dag.create_dagrun(
            run_id="manual__1",
            data_interval=(when, when),
            run_type="manual",
            state="running",
            start_date=when,
            session=session,
            **more,
        )
        if note:
            run.note = note
        session.flush()
        of = {"dag_id": run.dag_id, "run_id": run.run_id, "session": session}
        instances = {one.task_id: one for one in run.get_task_instances(session=session)}
        for number, (task_id, (state, xcoms)) in enumerate(tasks.items()):
            instances[task_id].state = state
            instances[task_id].end_date = when + timedelta(seconds=number)
            if task_id in (notes or {}):
                instances[task_id].note = notes[task_id]
            for key, value in xcoms.items():
                XCom.set(key=key, value=value, task_id=task_id, **of)
        session.flush()
        run.dag = dag
        run.update_state(session=session, execute_callbacks=False)
        session.commit()
        session.refresh(run)
        run.written = first.dag
        return run

    return end


@pytest.fixture
def run_task(context_of, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a task on a played cluster.

    `event` is what the triggerer says, of a task that was deferred, `how` the TaskDeferred that it
    was deferred with. Other arguments are the task instance's, and `run_id` and `started` of its
    run.
    """

    def run(
        task: Any,
        cluster: Cluster,
        event: Any = None,
        how: Any = None,
        run_id: str = RUN_ID,
        **of_run: Any,
    ) -> Outcome:
        from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
        from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager

        log = Log()
        monkeypatch.setattr(KubernetesPodOperator, "log", log)
        monkeypatch.setattr(PodManager, "log", log)
        vars(task)["hook"] = hook_of(cluster)
        context = context_of(task, run_id, **of_run)
        task.render_template_fields(context)
        result = error = None
        try:
            if event is None:
                result = task.execute(context)
            elif how is not None:
                arguments = {**(how.kwargs or {}), "event": event}
                result = task.resume_execution(how.method_name, arguments, context)
            else:
                result = task.trigger_reentry(context, event)
        except (Exception, *interruptions()) as raised:
            error = raised
        return Outcome(result, error, context["ti"].xcoms, log, task, cluster)

    return run


def hook_of(cluster: Cluster) -> SimpleNamespace:
    """The provider's hook, of a played cluster."""
    nothing = lambda: None  # noqa: E731
    return SimpleNamespace(
        core_v1_client=cluster,
        is_in_cluster=True,
        get_namespace=nothing,
        get_pod=cluster.read_namespaced_pod,
        get_xcom_sidecar_container_image=nothing,
        get_xcom_sidecar_container_resources=nothing,
        get_xcom_sidecar_container_security_context=nothing,
    )


def interruptions() -> tuple[type[BaseException], ...]:
    """What ends a task and is no Exception."""
    try:
        from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
    except ImportError:  # Airflow 2
        from airflow.exceptions import AirflowTaskTerminated, AirflowTaskTimeout, TaskDeferred

        return AirflowTaskTimeout, AirflowTaskTerminated, TaskDeferred
    return AirflowTaskTimeout, TaskDeferred


@dataclass
class Outcome:
    """How a try has ended."""

    result: Any
    error: BaseException | None
    xcoms: dict[str, Any]
    log: Log
    task: Any
    cluster: Cluster

    @property
    def message(self) -> str:
        return str(self.error)
