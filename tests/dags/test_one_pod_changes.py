"""What changes.py of one_pod changes of Airflow: the code that it goes by is still there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
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
from airflow.sdk.execution_time import comms
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
    assert done.stdout.split()[-3:] == ["SimpleNamespace", "end_as_on_a_worker", "send_if_used"]
