"""What changes.py of one_pod changes of Airflow: the code that it goes by is still there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import uuid
from functools import singledispatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from airflow.api_fastapi.execution_api.routes import task_instances
from airflow.callbacks import database_callback_sink
from airflow.dag_processing import processor
from airflow.jobs import triggerer_job_runner
from airflow.models import trigger as trigger_model
from airflow.models.dagbag import DBDagBag
from airflow.models.taskinstance import TaskInstance
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.definitions.param import process_params
from airflow.sdk.execution_time import comms
from airflow.serialization.serialized_objects import DagSerialization
from airflow.triggers.base import (
    BaseTaskEndEvent,
    TaskFailedEvent,
    TaskSkippedEvent,
    TaskSuccessEvent,
)

from one_pod import changes
from tests.dags.conftest import ONE_POD


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_quick_until", 0.0)


def test_rounds_are_quick_while_tasks_run(no_hurry) -> None:
    source = inspect.getsource(triggerer_job_runner)
    assert set(re.findall(r"\banyio\.(\w+)", source)) == {"Event", "move_on_after"}
    assert "anyio.move_on_after(1):" in inspect.getsource(triggerer_job_runner.TriggerRunner.arun)
    module = SimpleNamespace(anyio=anyio)
    changes.mend_rounds(module)

    async def seconds() -> float:
        with module.anyio.move_on_after(1) as scope:
            return scope.deadline - anyio.current_time()

    assert anyio.run(seconds) > 0.5
    changes.quicken()
    assert anyio.run(seconds) <= changes.ROUND_SECONDS


class Stored:
    """A DAG as the database has it; counts how often it is read."""

    def __init__(self, dag_id: str) -> None:
        with DAG(dag_id, params={"size": 1}) as dag:
            for number in range(3):
                EmptyOperator(task_id=f"task_{number}")
        self.data = DagSerialization.to_dict(dag)
        self.dag_version_id, self.dag_hash, self.reads = uuid.uuid4(), "first", 0

    @property
    def dag(self) -> Any:
        self.reads += 1
        return DagSerialization.from_dict(self.data)


class Session:
    """Of a database with such DAGs."""

    def __init__(self, *stored: Stored) -> None:
        self.stored = {one.dag_version_id: one for one in stored}

    def get(self, model: Any, version_id: uuid.UUID, options: Any) -> Any:
        return SimpleNamespace(serialized_dag=self.stored[version_id])

    def scalar(self, _query: Any) -> str:
        (only,) = self.stored.values()
        return only.dag_hash


@pytest.fixture
def dags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The module's names for DAGs, mended; `sent` says how often the runner makes one."""
    made = []

    def from_dict(data: Any) -> Any:
        made.append(data)
        return DagSerialization.from_dict(data)

    monkeypatch.setattr(changes, "DIRECTORY", tmp_path / "dags")
    module = SimpleNamespace(DagSerialization=SimpleNamespace(from_dict=from_dict), made=made)
    changes.mend_dags(module)
    return module


def test_a_dag_is_read_once_for_all_of_its_tasks(dags) -> None:
    stored = Stored("a")
    session = Session(stored)
    read = [
        dags.DBDagBag().get_serialized_dag_model(stored.dag_version_id, session=session)
        for _ in range(5)
    ]
    assert {tuple(one.data) for one in read} == {("file",)}
    assert [one.dag.task_ids for one in read] == [["task_0", "task_1", "task_2"]] * 5
    assert stored.reads == 1
    given = [dags.DagSerialization.from_dict(one.data) for one in read]
    assert len({id(one) for one in given}) == len(dags.made) == 1
    assert (given[0].dag_id, given[0].task_ids) == ("a", ["task_0", "task_1", "task_2"])


def test_a_run_s_parameters_stay_its_own(dags) -> None:
    stored = Stored("a")
    model = dags.DBDagBag().get_serialized_dag_model(stored.dag_version_id, Session(stored))
    task = dags.DagSerialization.from_dict(model.data).get_task("task_0")
    of_runs = [
        process_params(task.dag, task, conf, suppress_exception=False)["size"]
        for conf in ({"size": 7}, {})
    ]
    assert of_runs == [7, 1]


def test_a_dag_that_was_written_anew_is_read_anew(dags, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, other = Stored("a"), Stored("b")
    bag, session = dags.DBDagBag(), Session(stored)
    before = bag.get_serialized_dag_model(stored.dag_version_id, session)
    stored.data, stored.dag_hash = other.data, "second"
    bag._revalidation_interval = 0
    after = bag.get_serialized_dag_model(stored.dag_version_id, session)
    assert [dags.DagSerialization.from_dict(one.data).dag_id for one in (before, after)] == [
        "a",
        "b",
    ]


def test_files_of_dags_go_when_they_are_many(dags, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "FILES", changes.DAGS + 1)
    many = [Stored(f"dag_{number}") for number in range(changes.DAGS + 5)]
    session = Session(*many)
    for one in many:
        model = dags.DBDagBag().get_serialized_dag_model(one.dag_version_id, session)
        assert dags.DagSerialization.from_dict(model.data).dag_id == model.dag.dag_id
    assert len(list(changes.DIRECTORY.iterdir())) == changes.FILES
    # One that is forgotten by then is read again.
    assert dags.DBDagBag().get_serialized_dag_model(many[0].dag_version_id, session)
    assert many[0].reads == 2


def test_the_triggerer_s_names_for_dags_are_as_they_were() -> None:
    supervisor = inspect.getsource(triggerer_job_runner.TriggerRunnerSupervisor)
    assert "dag_bag = DBDagBag()" in supervisor
    assert "dag_data=serialized_dag_model.data" in supervisor
    assert "serialized_dag_model.dag.get_task(" in supervisor
    assert set(re.findall(r"dag_bag\.(\w+)", supervisor)) == {
        "get_serialized_dag_model_for_run",
        "get_serialized_dag_model",
    }
    runner = inspect.getsource(triggerer_job_runner.TriggerRunner.create_runtime_ti)
    assert "DagSerialization.from_dict(encoded_dag)" in runner
    source = inspect.getsource(triggerer_job_runner)
    assert re.findall(r"DagSerialization\.(\w+)", source) == ["from_dict"]


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a task end by the mended handler; gives what is registered of its outlets."""
    ends, assets = [], []

    @singledispatch
    def handle_event_submit(event: Any, *, task_instance: Any, session: Any) -> None:
        raise AssertionError

    @handle_event_submit.register
    def _(event: BaseTaskEndEvent, *, task_instance: Any, session: Any) -> None:
        ends.append((event, task_instance.end_date))

    class SerializedAsset(SimpleNamespace):
        pass

    class SerializedAssetNameRef(SimpleNamespace):
        pass

    outlets = [SerializedAsset(name="a", uri="x-a://a"), SerializedAssetNameRef(name="b")]
    dag = SimpleNamespace(get_task=lambda _: SimpleNamespace(outlets=outlets))
    monkeypatch.setattr(DBDagBag, "get_dag_for_run", lambda *_, **__: dag)

    def register(ti: Any, of_task: Any, events: Any, *, session: Any) -> Any:
        assets.extend((one.type, one.name, one.uri) for one in of_task)
        return ()

    monkeypatch.setattr(TaskInstance, "register_asset_changes_in_db", register)
    changes.mend_task_end(SimpleNamespace(handle_event_submit=handle_event_submit))

    def run(event: Any) -> Any:
        ti = SimpleNamespace(end_date="of the try before", task_id="t", dag_run=None)
        handle_event_submit(event, task_instance=ti, session=None)
        assert ends == [(event, None)]
        return assets

    return run


def test_a_success_makes_the_events_of_its_outlets(end) -> None:
    assert end(TaskSuccessEvent()) == [("Asset", "a", "x-a://a"), ("AssetNameRef", "b", None)]


@pytest.mark.parametrize("event", [TaskFailedEvent(), TaskSkippedEvent()])
def test_another_end_makes_none(end, event: Any) -> None:
    assert end(event) == []


def test_what_a_task_end_goes_by_is_there() -> None:
    handler = trigger_model.handle_event_submit.dispatch(BaseTaskEndEvent)
    assert trigger_model.handle_event_submit.dispatch(TaskSuccessEvent) is handler
    source = inspect.getsource(handler)
    assert "task_instance.set_state(event.task_instance_state" in source
    assert "DatabaseCallbackSink().send(callback=request" in source
    # Once Airflow does it itself, the change goes.
    assert "register_asset" not in source
    assert "self.end_date = self.end_date or" in inspect.getsource(TaskInstance.set_state)
    parameters = list(inspect.signature(TaskInstance.register_asset_changes_in_db).parameters)
    assert parameters == ["ti", "task_outlets", "outlet_events", "session"]
    assert "register_asset_changes_in_db(" in inspect.getsource(task_instances)


def test_a_success_is_no_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "if not request.is_failure_callback:" in inspect.getsource(
        processor._execute_task_callbacks
    )
    sent = []
    sink = type("Sink", (), {"send": lambda self, callback, **_: sent.append(callback)})
    changes.mend_callbacks(SimpleNamespace(DatabaseCallbackSink=sink))
    kinds = [SimpleNamespace(task_callback_type=one) for one in ("success", "failed")]
    of_dag = SimpleNamespace()
    for one in [*kinds, of_dag]:
        sink().send(one, session=None)
    assert sent == [kinds[1], of_dag]
    assert "def send(self, callback" in inspect.getsource(database_callback_sink)


def test_a_triggerer_does_not_answer_for_a_sequence_of_xcoms() -> None:
    # Once it does, the change goes.
    source = inspect.getsource(triggerer_job_runner)
    assert comms.GetXComSequenceSlice.__name__ not in source
    assert all(name in source for name in ("GetXCom,", "GetTICount,", "DeleteXCom,", "SetXCom,"))


CHECK = """
import airflow.jobs.triggerer_job_runner as runner
from airflow.models.trigger import handle_event_submit
from airflow.callbacks.database_callback_sink import DatabaseCallbackSink
from airflow.triggers.base import TaskSuccessEvent
print(
    type(runner.anyio).__name__,
    type(runner.DBDagBag()).__name__,
    handle_event_submit.dispatch(TaskSuccessEvent).__name__,
    DatabaseCallbackSink.send.__name__,
)
"""


def test_the_chart_has_them_applied(local_settings: str, tmp_path: Path) -> None:
    (tmp_path / "airflow_local_settings.py").write_text(local_settings)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ONE_POD.parent)!r}]{CHECK}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    names = ["SimpleNamespace", "Dags", "end_as_on_a_worker", "send_if_used"]
    assert done.stdout.split()[-4:] == names
