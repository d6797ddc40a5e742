"""What of Airflow 3.3 is changed so that tasks can run from the triggerer, all of it.

Each names the code of Airflow (apache-airflow-core 3.3.2 unless it says another) that it goes by.
tests/dags/test_one_pod_changes.py fails when that code moves. `MENDS` are applied to modules as
they are imported, by the chart's templates/airflow/_local_settings.tpl.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROUND_SECONDS = 0.25
QUICK_SECONDS = 60
DAGS = 32  # that the triggerer keeps in memory
FILES = 4 * DAGS  # of DAGs, some of which its runner has still to read
DIRECTORY = Path(tempfile.gettempdir()) / "one-pod-dags"

_quick_until = 0.0


def quicken() -> None:
    """Let the triggerer look every ROUND_SECONDS for what is to start or has ended, for a minute.

    A task waits for three of its rounds, of a second each.
    """
    global _quick_until
    _quick_until = time.monotonic() + QUICK_SECONDS


def mend_rounds(module: Any) -> None:
    """jobs/triggerer_job_runner.py, TriggerRunner.arun: `with anyio.move_on_after(1)`, no setting.

    The supervisor's wait of a second (run_once) ends with the runner's message.
    """
    anyio = module.anyio

    def move_on_after(seconds: float) -> Any:
        quick = time.monotonic() < _quick_until
        return anyio.move_on_after(ROUND_SECONDS if quick else seconds)

    module.anyio = SimpleNamespace(Event=anyio.Event, move_on_after=move_on_after)


def mend_dags(module: Any) -> None:
    """jobs/triggerer_job_runner.py: the DAG of a task that starts from the triggerer.

    For each task TriggerRunnerSupervisor._create_workload reads all of its DAG and sends it to
    TriggerRunner.create_runtime_ti, which makes it anew: a DAG of a thousand tasks took more memory
    than any triggerer has. Here each of the two makes it once, and what is sent names a file.
    """
    from airflow.models.dagbag import CachedDBDagBag

    class Dags(CachedDBDagBag):
        def get_serialized_dag_model(self, version_id: Any, session: Any) -> Any:
            if (dag := self.get_dag(version_id, session)) is None:
                return None
            os.utime(file := self._file_of(version_id))
            return SimpleNamespace(dag=dag, data={"file": str(file)})

        def _read_dag(self, serdag: Any) -> Any:
            if dag := super()._read_dag(serdag):
                DIRECTORY.mkdir(exist_ok=True)
                file = self._file_of(serdag.dag_version_id)
                file.write_text(json.dumps(serdag.data))
                files = sorted(DIRECTORY.iterdir(), key=lambda one: one.stat().st_mtime)
                for old in files[:-FILES]:
                    old.unlink()
            return dag

        def _file_of(self, version_id: Any) -> Path:
            return DIRECTORY / f"{version_id}-{self._dags[version_id].dag_hash}.json"

    dags = Dags(cache_size=DAGS, cache_ttl=0, stats_prefix="triggerer")
    from_dict = module.DagSerialization.from_dict

    @lru_cache(DAGS)
    def read(file: str) -> Any:
        return from_dict(json.loads(Path(file).read_text()))

    module.DBDagBag = lambda: dags
    module.DagSerialization = SimpleNamespace(from_dict=lambda sent: read(sent["file"]))


def mend_triggerer(module: Any) -> None:
    """All of jobs/triggerer_job_runner.py."""
    mend_rounds(module)
    mend_dags(module)


def mend_task_end(module: Any) -> None:
    """models/trigger.py, handle_event_submit of a BaseTaskEndEvent.

    * The end of the try before stays in `end_date` (TaskInstance.set_state): a task that was tried
      again would have a negative duration.
    * Only api_fastapi/execution_api/routes/task_instances.py makes the events of a task's outlets.
    """
    from airflow.triggers.base import BaseTaskEndEvent

    end_task, bags = module.handle_event_submit.dispatch(BaseTaskEndEvent), []

    @module.handle_event_submit.register(BaseTaskEndEvent)
    def end_as_on_a_worker(event: Any, *, task_instance: Any, session: Any) -> None:
        from airflow.api_fastapi.execution_api.datamodels.asset import AssetProfile
        from airflow.models.dagbag import DBDagBag
        from airflow.models.taskinstance import TaskInstance

        task_instance.end_date = None
        end_task(event, task_instance=task_instance, session=session)
        if event.task_instance_state != "success":
            return
        bags[:] = bags or [DBDagBag()]
        dag = bags[0].get_dag_for_run(dag_run=task_instance.dag_run, session=session)
        outlets = [
            AssetProfile(
                name=getattr(one, "name", None),
                uri=getattr(one, "uri", None),
                type=type(one).__name__.removeprefix("Serialized"),
            )
            for one in (dag.get_task(task_instance.task_id).outlets if dag else ())
        ]
        told = TaskInstance.register_asset_changes_in_db(
            task_instance, outlets, [], session=session
        )
        for tell in told:
            tell()


def mend_callbacks(module: Any) -> None:
    """callbacks/database_callback_sink.py: a task's success is sent to the DAG processor too.

    It loads the DAG's file to say that it is no failure (dag_processing/processor.py,
    _execute_task_callbacks).
    """
    send = module.DatabaseCallbackSink.send

    def send_if_used(self: Any, callback: Any, **kwargs: Any) -> None:
        if getattr(callback, "task_callback_type", None) != "success":
            send(self, callback, **kwargs)

    module.DatabaseCallbackSink.send = send_if_used


MENDS = {
    "airflow.jobs.triggerer_job_runner": mend_triggerer,
    "airflow.models.trigger": mend_task_end,
    "airflow.callbacks.database_callback_sink": mend_callbacks,
}


async def stored() -> None:
    """After a trigger's event: return when Airflow has stored it.

    jobs/triggerer_job_runner.py, TriggerRunner.cancel_triggers: a trigger that the database does
    not know any more is cancelled with a message, one of a triggerer that stops without.
    """
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        if not error.args:
            raise
        asyncio.current_task().uncancel()


async def delete_xcom(**which: Any) -> None:
    """Forget what an earlier try has left, as a worker's start does.

    It is api_fastapi/execution_api/routes/task_instances.py, ti_run, which a trigger never calls.
    """
    from airflow.sdk.execution_time import comms, task_runner

    await task_runner.SUPERVISOR_COMMS.asend(comms.DeleteXCom(**which))


async def is_followed(ti: Any) -> bool:
    """Whether a task that a trigger is to kill still waits for one: another triggerer has it.

    jobs/triggerer_job_runner.py, TriggerRunnerSupervisor.update_triggers: a triggerer that was away
    for a while (frozen, or cut off from the database) finds its triggers with another, and cancels
    them as if a person had acted. Of a task that was cleared the next try ends the pod.
    """
    from airflow.sdk.execution_time import comms, task_runner

    which = {"dag_id": ti.dag_id, "task_ids": [ti.task_id], "run_ids": [ti.run_id]}
    answer = await task_runner.SUPERVISOR_COMMS.asend(comms.GetTaskStates(**which))
    return answer.task_states.get(ti.run_id, {}).get(ti.task_id) == "deferred"


def answer_xcom_pull(ti: Any) -> None:
    """Let templates pull an XCom without `map_indexes`, which would wait for ever.

    sdk/execution_time/task_runner.py (task-sdk 1.3.2), RuntimeTaskInstance.xcom_pull asks for
    GetXComSequenceSlice, which TriggerRunnerSupervisor._handle_request of
    jobs/triggerer_job_runner.py does not know and never answers. GetXCom and GetTICount it knows.
    """
    pull = ti.xcom_pull

    def all_of(task_id: str, more: dict[str, Any]) -> list[Any]:
        if (value := pull(task_id, map_indexes=-1, **more)) is not None:
            return [value]
        where = {"dag_id": more.get("dag_id") or ti.dag_id}
        where["run_ids"] = [more.get("run_id") or ti.run_id]
        count = ti.get_ti_count(task_ids=[task_id], **where)
        values = [pull(task_id, map_indexes=index, **more) for index in range(count)]
        return [one for one in values if one is not None] or [None]

    def xcom_pull(task_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        if "map_indexes" in kwargs:
            return pull(task_ids, *args, **kwargs)
        more = dict(zip(("dag_id", "key", "include_prior_dates"), args, strict=False)) | kwargs
        wanted = task_ids or ti.task_id
        several = not isinstance(wanted, str)
        values = [value for one in (wanted if several else [wanted]) for value in all_of(one, more)]
        return values if several or len(values) != 1 else values[0]

    object.__setattr__(ti, "xcom_pull", xcom_pull)
