"""One try of a task: makes its pod, or meets it, follows it to its end, and ends the task.

A pod is put away only when Airflow has stored how the task ends: an event that gets lost with its
triggerer is found again, as the next triggerer meets the same pod.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import structlog
from airflow.sdk.definitions._internal.templater import create_template_env
from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import (
    BaseTrigger,
    TaskFailedEvent,
    TaskSkippedEvent,
    TaskSuccessEvent,
    TriggerEvent,
)
from kubernetes.client.exceptions import ApiException

from one_pod import changes, failures, pod_manager, start
from one_pod.lineage import FAILURE, result_of
from one_pod.log import Log
from one_pod.manifest import (
    TERMINAL,
    View,
    filled_in,
    has_ended,
    labels_of,
    name_of,
    of_try,
    own_state,
)
from one_pod.pods import REQUEST_ERRORS, Pods

TICK_SECONDS = 1  # a pod that waits is looked at again, also if nothing happens to it
QUOTA_SECONDS = (2, 6)  # between two requests while a ResourceQuota is used up
KEY = "return_value"

log = structlog.get_logger(__name__)


class Failure(Exception):
    """Why a pod cannot be made or followed, in words for the task log."""


class PodTrigger(BaseTrigger):
    """Runs `pod`, JSON of a manifest with templates. launch.py of the DAGs makes the arguments."""

    def __init__(self, pod: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.template, self.options = pod, options
        self.pod: dict[str, Any] = json.loads(pod)
        self.container: str = options["container"]
        self.pods: Pods | None = None
        self.made: asyncio.Future[View] | None = None
        self.filled, self.fault = False, ""
        self.last: View | None = None
        """The pod as it was seen last."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What Airflow makes the trigger of again."""
        return "one_pod.trigger.PodTrigger", {"pod": self.template, "options": self.options}

    def render_template_fields(self, context: Any, jinja_env: Any = None) -> None:
        """Fill in the whole manifest. A fault is told in `run`: a raise here costs a worker."""
        changes.answer_xcom_pull(context["ti"])
        before, self.template_ext, self.filled = self.pod, (), True
        try:
            self.pod = self.render_template(before, context, create_template_env())
        except Exception as error:
            self.fault = f"a template cannot be filled in: {type(error).__name__}: {error}"
            return
        for path, text in filled_in(before, self.pod):
            log.info(f"{path}: {text}")

    def render_template(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """As the parent's. A plain text stays as it is, which Jinja takes a millisecond to find."""
        if isinstance(content, str) and "{" not in content and not content.endswith("\n"):
            return content
        return super().render_template(content, *args, **kwargs)

    @property
    def name(self) -> str:
        """The pod's."""
        return name_of(self.pod, self.task_instance)

    @property
    def _of_xcom(self) -> dict[str, Any]:
        names = ("dag_id", "task_id", "run_id", "map_index")
        return {name: getattr(self.task_instance, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield how the task ends, then wait for the news that Airflow has stored it."""
        changes.quicken()
        # Airflow cancels this task with a message, which gets lost where a time limit ends at the
        # same moment: those are in another one.
        work = asyncio.create_task(self._try())
        try:
            await asyncio.wait([work])
        finally:
            work.cancel()
        changes.quicken()
        event = work.result()
        yield event
        await changes.stored()
        if self.last is not None:
            self.pods.put_away(self.name, delete=self._goes(event))

    async def _try(self) -> TriggerEvent:
        try:
            return await self._end()
        except Failure as error:
            log.error(said := f"Pod {self.name} {error}")
            await self._tell_events()
            with suppress(Exception):  # the log has it
                await XCom.aset(FAILURE, said, **self._of_xcom)
        except REQUEST_ERRORS as error:
            log.error(f"Pod {self.name}: {failures.explain_refusal(error)}")
        except Exception:  # it would cost a worker that does nothing but fail
            log.exception(f"Pod {self.name} cannot be followed")
        return TaskFailedEvent()

    async def on_kill(self) -> None:
        """A person has marked the task, or cleared it: delete its pod."""
        if self.pods and self.options["on_kill_action"] != "keep_pod":
            followed = changes.is_followed(self.task_instance)
            await self.pods.delete(self.name, self.made, unless=followed)

    def _goes(self, event: TriggerEvent) -> bool:
        """Whether the pod goes, by `on_finish_action`; one that would run on does in any case."""
        action = self.options["on_finish_action"]
        if action == "keep_pod":
            return False
        runs = self.last.status.phase not in TERMINAL
        succeeded = not isinstance(event, TaskFailedEvent)
        return runs or action == "delete_pod" or (action == "delete_succeeded_pod" and succeeded)

    async def _end(self) -> TriggerEvent:
        if self.fault:
            raise Failure(f"is not made: {self.fault}")
        ti, name, of_xcom = self.task_instance, self.name, self._of_xcom
        self.pods = await Pods.of(self.pod["metadata"].get("namespace", ""))
        if ti.try_number > 1:
            await changes.delete_xcom(key=KEY, **of_xcom)
        states, started = self.pods.follow(name), None
        try:
            await self._end_earlier_tries()
            pod = self.last = await self._make()
            look = start.starting(self.container, self.options["limits"])
            while not has_ended(pod, self.container, self._declared()):
                state = own_state(pod, self.container)
                if self.options["log"] and started is None and state.running is not None:
                    started = Log(self.pods, name, self.container)
                self._give_up(pod, look)
                pod = self.last = await self._next(states, pod)
            if self.options["log"] and own_state(pod, self.container).terminated:
                await (started or Log(self.pods, name, self.container)).end()
        finally:
            self.pods.leave(name)
            if started:
                started.task.cancel()
        ended = own_state(pod, self.container).terminated
        if pod.status.phase == "Failed" or (ended and ended.exit_code != 0):
            if ended and ended.exit_code in self.options["skip_on_exit_code"]:
                return TaskSkippedEvent()
            raise Failure(f"failed: {failures.explain_failure(pod, self.container)}")
        result = None
        if self.options["push"]:
            try:
                result = result_of(pod, self.container, lambda text, *of: log.warning(text % of))
            except ValueError as error:
                raise Failure(f"failed: {error}") from error
        length = self._length(result)
        # TaskSuccessEvent(xcoms=...) would store JSON within JSON (models/trigger.py).
        if result is not None:
            await XCom.aset(KEY, result, _mapped_length=length, **of_xcom)
        return TaskSuccessEvent()

    def _length(self, result: Any) -> int | None:
        """How many instances a mapped task makes of the result, if one does. Raises Failure."""
        if self.task is None or next(self.task.iter_mapped_dependants(), None) is None:
            return None
        if not isinstance(result, (list, dict)):
            raise Failure("has left nothing in /dev/termination-log that can be mapped over")
        return len(result)

    async def _end_earlier_tries(self) -> None:
        """Delete what still runs of this task: it must not write beside this try."""
        labels, pods = labels_of(self.task_instance), self.pods
        for other in pods.active - {self.name}:
            there = pods.labels.get(other, {})
            if labels.items() <= there.items() and "map_index" not in there:
                log.warning(f"Pod {other} of an earlier try still runs and is deleted")
                await pods.delete(other)
                give_up = time.monotonic() + pod_manager.LOST_SECONDS
                while other in pods.active and time.monotonic() < give_up:
                    await asyncio.sleep(TICK_SECONDS / 5)

    async def _make(self) -> View:
        """The pod of this try, which may be there. Raises Failure, or as Api.ask does."""
        if not self.filled:  # the newest DAG does not start this task here any more
            return await self._met()
        await self.pods.turn(self.name, self.options["max_pods"])
        refused = 0.0
        while True:
            request = of_try(self.pod, self.task_instance)
            self.made = asyncio.ensure_future(self.pods.create(request))
            try:
                return await asyncio.shield(self.made)
            except ApiException as error:
                said, now = failures.explain_refusal(error), time.monotonic()
                late = now - (refused or now) >= self.options["limits"][start.STARTUP]
                if late or not failures.exceeds_quota(error):
                    raise Failure(f"was refused: {said}") from error
                if not refused:
                    log.info(f"Pod {self.name} waits: {said}")
                refused = refused or now
            await asyncio.sleep(random.uniform(*QUOTA_SECONDS))

    async def _met(self) -> View:
        """The pod if it is there. Raises Failure."""
        try:
            return await self.pods.get(self.name)
        except ApiException as error:
            if error.status != 404:
                raise
            raise Failure(f"is gone: {failures.explain_absence(self.last)}") from error

    async def _next(self, states: asyncio.Queue[View | None], pod: View) -> View:
        """The pod's next state, or the same one again after a while. Raises Failure."""
        waits = pod.status.phase == "Pending" or pod.metadata.deletion_timestamp
        try:
            async with asyncio.timeout(TICK_SECONDS if waits else None):
                seen = await states.get()
        except TimeoutError:
            return pod
        # A list that was on its way when the pod was made does not know it.
        return await self._met() if seen is None else seen

    def _give_up(self, pod: View, look: Callable[..., list[str]]) -> None:
        """Tell what a pod waits for. Raises Failure when it is no use, or has taken too long."""
        if pod.metadata.deletion_timestamp:
            gone_at = datetime.fromisoformat(pod.metadata.deletion_timestamp).timestamp()
            if gone_at + pod_manager.LOST_SECONDS < time.time():
                raise Failure("is gone: its node does not answer")
        elif pod.status.phase == "Pending":
            news, failed = look(pod, time.monotonic())
            if news:
                log.info(f"Pod {self.name} waits: {news}")
            if failed:
                raise Failure(failed)

    async def _tell_events(self) -> None:
        """What Kubernetes has said of the pod."""
        if self.options["log_events"] and self.last is not None:
            with suppress(*REQUEST_ERRORS):
                for event in await self.pods.events(self.name):
                    log.info(f"Pod Event: {event.reason} - {event.message}")

    def _declared(self) -> set[str]:
        return {one["name"] for one in self.pod["spec"]["containers"]}
