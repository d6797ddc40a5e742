"""A task that the triggerer runs without a worker: Airflow's runner of triggers, played pods."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import jinja2
import pytest
import structlog
from airflow.api_fastapi.execution_api.datamodels.taskinstance import DagRun
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.sdk.execution_time import comms, task_runner
from airflow.serialization.serialized_objects import DagSerialization

from one_pod import log as log_module
from one_pod import pods as pods_module
from one_pod import trigger as trigger_module
from one_pod.trigger import PodTrigger
from tests.dags.conftest import START
from tests.dags.pod_server import PodServer

FAILED = "failed: exit code 3: ERROR: no data"
RUN = "manual__2026-11-27T10:00:00+00:00"
SETTINGS = {"launch": "triggerer", "maxPods": 10}


class Comms:
    """The supervisor, as far as triggers ask it: XComs, by task id and map index."""

    def __init__(self) -> None:
        self.xcoms: dict[tuple[str, int], Any] = {}
        self.counts: dict[str, int] = {}
        self.state = "failed"
        """Of every task: a person has marked it."""
        self.said: list[Any] = []

    async def asend(self, message: Any) -> Any:
        return self.send(message)

    def send(self, message: Any) -> Any:
        self.said.append(message)
        match message:
            case comms.SetXCom():
                self.xcoms[message.task_id, message.map_index] = message.value
            case comms.DeleteXCom():
                self.xcoms.pop((message.task_id, message.map_index), None)
            case comms.GetXCom():
                value = self.xcoms.get((message.task_id, message.map_index))
                return comms.XComResult(key=message.key, value=value)
            case comms.GetTICount():
                return comms.TICount(count=self.counts.get(message.task_ids[0], 1))
            case comms.GetTaskStates():
                states = dict.fromkeys(message.task_ids, self.state)
                return comms.TaskStatesResult(task_states={message.run_ids[0]: states})
            case _:
                raise AssertionError(f"a triggerer never answers {message}")
        return comms.OKResponse(ok=True)


class Triggerer:
    """One process of Airflow's, and what it has told of tasks."""

    def __init__(self, server: PodServer, url: str) -> None:
        self.server, self.runner, self.api = server, TriggerRunner(), pods_module.Api(url)
        self.comms, self.number = Comms(), 0
        task_runner.SUPERVISOR_COMMS = self.comms

    def start(self, task: Any, ti_id: uuid.UUID | None = None, of_ti: Any = (), **conf: Any) -> int:
        """Start a try as TriggerRunner.create_triggers does; returns the trigger's id."""
        self.number += 1
        dag = DagSerialization.to_dict(task.dag)
        ids = {"dag_id": task.dag_id, "run_id": RUN}
        ti = TaskInstanceDTO(
            id=ti_id or uuid.uuid4(),
            task_id=task.task_id,
            dag_version_id=uuid.uuid4(),
            **{
                "try_number": 1,
                "map_index": -1,
                "pool_slots": 1,
                "priority_weight": 1,
                "queue": "x",
            }
            | ids
            | dict(of_ti),
        )
        times = dict.fromkeys(
            ("logical_date", "data_interval_start", "data_interval_end", "run_after", "start_date"),
            START,
        )
        run = DagRun(
            **ids,
            **times,
            end_date=None,
            run_type="manual",
            state="running",
            conf=conf,
            consumed_asset_events=[],
            partition_key=None,
        )
        stored = DagSerialization.from_dict(dag).get_task(task.task_id)
        assert stored.start_from_trigger is True
        from airflow.serialization.decoders import smart_decode_trigger_kwargs

        kwargs = stored.start_trigger_args.trigger_kwargs
        trigger = PodTrigger(**smart_decode_trigger_kwargs(kwargs))
        runtime_ti = self.runner.create_runtime_ti(ti, dag, run.model_dump())
        context = runtime_ti.get_template_context()
        trigger.task_instance, trigger.trigger_id = runtime_ti, self.number
        self.runner.triggers[self.number] = {
            "task": asyncio.create_task(
                self.runner.run_trigger(self.number, trigger, None, context)
            ),
            "is_watcher": False,
            "name": str(self.number),
            "events": 0,
        }
        return self.number

    async def ends(self, number: int = 1) -> str:
        """How a task has ended, once Airflow has been told."""
        return await self.server.until(lambda: self._state(number))

    def _state(self, number: int) -> str:
        told = {one.trigger_id: one.event for one in self.runner.events}
        return str(told[number].task_instance_state.value) if number in told else ""

    async def stored(self, number: int = 1) -> None:
        """Airflow has stored the event: it cancels the trigger, once in each round."""
        await self.cancelled(number)

    async def cancelled(self, number: int = 1) -> None:
        """The database does not know the trigger any more: it was stored, or a person has acted."""
        task = self.runner.triggers[number]["task"]
        while not task.done():
            self.runner.to_cancel.append(number)
            await self.runner.cancel_triggers()
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """The process ends; nothing of it is told."""
        for details in self.runner.triggers.values():
            details["task"].cancel()
        for pods in pods_module.Pods._of.values():
            pods.watch.cancel()
        pods_module.Pods._of.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, settings_file: Callable[[Any], Any]) -> None:
    settings_file(SETTINGS)
    monkeypatch.setattr(trigger_module, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(trigger_module, "QUOTA_SECONDS", (0.01, 0.05))
    monkeypatch.setattr(log_module, "END_SECONDS", 0.2)
    monkeypatch.setattr(pods_module.pod_manager, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(pods_module.Pods, "_of", {})
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", None, raising=False)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the task's log gets."""
    found: list[dict[str, Any]] = []

    def collect(_logger: Any, level: str, event: dict[str, Any]) -> Any:
        found.append({"level": level} | event)
        raise structlog.DropEvent

    logger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[collect],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    for module in (trigger_module, log_module, pods_module):
        monkeypatch.setattr(module, "log", logger)
    return found


def text(lines: list[dict[str, Any]]) -> str:
    return "\n".join(one["event"] for one in lines)


@asynccontextmanager
async def a_triggerer(monkeypatch: pytest.MonkeyPatch) -> Any:
    server = PodServer()
    triggerer = Triggerer(server, await server.start())
    monkeypatch.setattr(pods_module.Api, "in_cluster", lambda: triggerer.api)
    try:
        yield triggerer
    finally:
        triggerer.stop()
        await triggerer.api.session.close()
        await server.stop()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, lines: Any) -> Callable[..., None]:
    """Run a scene with a triggerer and its API server."""

    def run(scene: Callable[[Triggerer, PodServer], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with asyncio.timeout(600), a_triggerer(monkeypatch) as triggerer:
                await scene(triggerer, triggerer.server)

        asyncio.run(whole())

    return run


@pytest.fixture
def make(make_task: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **arguments: make_task(**{"image": "i:1", "cmds": ["true"]} | arguments)


def test_a_pod_runs_and_its_result_is_the_tasks(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        name = await server.new()
        labels = server.pods[name]["metadata"]["labels"]
        assert (labels["dag_id"], labels["task_id"]) == ("a_dag", "a_task")
        assert labels["run_id"].startswith("manual__2026-11-27T1000000000")
        assert labels["try_number"] == "1"
        server.logs[name] = ["2026-11-27T10:00:00.5Z epoch 1", "2026-11-27T10:00:00.51Z epoch 2"]
        server.run(name)
        await server.until(lambda: "epoch 2" in text(lines))  # while it runs
        server.logs[name].append("2026-11-27T10:00:01Z done")
        server.end(name, message='{"accuracy": 0.82}')
        assert await triggerer.ends() == "success"
        result = triggerer.comms.xcoms["a_task", -1]
        assert result["accuracy"] == 0.82
        assert result["image"] == "i:1"
        assert result["image_digest"] == f"sha256:{'1a' * 32}"
        # It stays until Airflow has stored how the task ends.
        assert server.deleted == []
        await triggerer.stored()
        await server.until(lambda: server.deleted == [name])

    play(scene)
    (line,) = [one for one in lines if one["event"] == "[base] epoch 1"]
    assert line["timestamp"] == "2026-11-27T10:00:00.5Z"
    assert text(lines).count("epoch") == 2
    assert text(lines).count("done") == 1


def test_templates_are_filled_in_and_told(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.comms.xcoms |= {
            ("one", -1): {"a": 1},
            ("each", 0): {"a": 2},
            ("each", 1): {"a": 3},
        }
        triggerer.comms.counts["each"] = 2
        env = {
            "RUN": "{{ dag.dag_id }}/{{ run_id }} {{ ds }}",
            "CONF": "{{ dag_run.conf['x'] }}",
            "ONE": "{{ ti.xcom_pull(task_ids='one')['a'] }}",
            "EACH": "{{ ti.xcom_pull(task_ids='each') | map(attribute='a') | list }}",
            "NONE": "{{ ti.xcom_pull(task_ids='nobody') }}",
            "BOTH": "{{ ti.xcom_pull(task_ids=['one', 'nobody']) }}",
            "INDEX": "{{ ti.xcom_pull(task_ids='each', map_indexes=1)['a'] }}",
        }
        triggerer.start(make(env_vars=env, cmds=["echo", "{{ ti.try_number }}"]), x="y")
        pod = server.pods[await server.new()]
        (base,) = pod["spec"]["containers"]
        found = {one["name"]: one.get("value") for one in base["env"]}
        assert found["RUN"] == f"a_dag/{RUN} 2024-01-01"
        assert [found[name] for name in ("CONF", "ONE", "EACH", "NONE", "INDEX")] == [
            "y",
            "1",
            "[2, 3]",
            "None",
            "3",
        ]
        assert found["BOTH"] == "[{'a': 1}, None]"
        assert found["ML_PIPELINES_RUN_ID"] == RUN
        assert base["command"] == ["echo", "1"]

    play(scene)
    assert "spec.containers[0].command[1]: 1" in text(lines)


def test_what_is_no_template_is_not_read_as_one(make, play, monkeypatch) -> None:
    from_string, read = jinja2.Environment.from_string, []

    def seen(self: Any, source: str, *args: Any, **kwargs: Any) -> Any:
        read.append(source)
        return from_string(self, source, *args, **kwargs)

    monkeypatch.setattr(jinja2.Environment, "from_string", seen)

    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        # Jinja takes a last line's end away, with a worker too.
        env = {"A": "{{ run_id }}", "B": "{% if 1 %}x{% endif %}", "C": "{# no #}", "D": "d\n"}
        triggerer.start(make(env_vars=env | {"E": "plain }} %}", "F": '{"a": 1}'}))
        (base,) = server.pods[await server.new()]["spec"]["containers"]
        found = {one["name"]: one["value"] for one in base["env"] if len(one["name"]) == 1}
        assert found == {"A": RUN, "B": "x", "C": "", "D": "d", "E": "plain }} %}", "F": '{"a": 1}'}
        assert set(env.values()) <= set(read)
        assert not {"plain }} %}", "true", "i:1"} & set(read)

    play(scene)


def test_a_template_that_cannot_be_filled_in_fails_the_try(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make(cmds=["{{ nobody.knows }}"]))
        assert await triggerer.ends() == "failed"
        assert server.created == []

    play(scene)
    assert "a template cannot be filled in: UndefinedError: 'nobody' is undefined" in text(lines)


@pytest.mark.parametrize(("message", "state"), [('["a", "b"]', "success"), ("3", "failed")])
def test_a_result_can_be_mapped_over(play, lines, message: str, state: str) -> None:
    from airflow import DAG

    from ml_pipelines import PodOperator

    with DAG("a_dag", schedule=None, start_date=START):
        parts = PodOperator(task_id="a_task", image="i:1", namespace="default")
        PodOperator.partial(task_id="each", image="i:1").expand(cmds=parts.output)

    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(parts)
        server.end(await server.new(), message=message)
        assert await triggerer.ends() == state
        lengths = [getattr(one, "mapped_length", None) for one in triggerer.comms.said]
        assert [one for one in lengths if one] == ([2] if state == "success" else [])

    play(scene)
    assert ("nothing in /dev/termination-log that can be mapped" in text(lines)) is (
        state == "failed"
    )


def test_a_failed_pod_is_explained_and_stays(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        name = await server.new()
        server.end(name, 3, message="ERROR: no data\nbye")
        assert await triggerer.ends() == "failed"
        told = triggerer.comms.said[-1]
        assert (told.key, told.value) == ("failure", f"Pod {name} {FAILED}")
        assert "already_checked" not in server.pods[name]["metadata"]["labels"]
        await triggerer.stored()
        assert server.deleted == []
        # The janitor deletes it soon.
        labels = server.pods[name]["metadata"]["labels"]
        await server.until(lambda: labels.get("already_checked") == "True")

    play(scene)
    assert FAILED in text(lines)


def test_a_time_limit_is_the_pods(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        task = make(execution_timeout=timedelta(seconds=90))
        # Airflow's own would end a task that waits for its turn, and by a worker.
        assert task.execution_timeout is None
        triggerer.start(task)
        name = await server.new()
        assert server.pods[name]["spec"]["activeDeadlineSeconds"] == 90
        server.end(name, 137, reason="DeadlineExceeded")
        assert await triggerer.ends() == "failed"

    play(scene)
    assert "failed: DeadlineExceeded" in text(lines)


@pytest.mark.parametrize(("exit_code", "state"), [(99, "skipped"), (2, "failed")])
def test_an_exit_code_can_skip(make, play, exit_code: int, state: str) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make(skip_on_exit_code=99))
        server.end(await server.new(), exit_code)
        assert await triggerer.ends() == state

    play(scene)


@pytest.mark.parametrize(
    ("action", "exit_code", "goes"),
    [
        ("keep_pod", 0, False),
        ("delete_pod", 1, True),
        ("delete_succeeded_pod", 0, True),
        ("delete_succeeded_pod", 1, False),
    ],
)
def test_a_pod_goes_or_stays(make, play, action: str, exit_code: int, goes: bool) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make(on_finish_action=action))
        name = await server.new()
        labels = server.pods[name]["metadata"]["labels"]
        server.end(name, exit_code)
        await triggerer.ends()
        await triggerer.stored()
        seen = await server.until(lambda: server.deleted or labels.get("already_checked"))
        assert seen == ([name] if goes else "True")

    play(scene)


def test_a_result_that_was_cut_off_fails(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        server.end(await server.new(), message='["' + "x" * 4094)
        assert await triggerer.ends() == "failed"

    play(scene)
    assert "longer than the 4096 bytes" in text(lines)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("InvalidImageName", "cannot start: InvalidImageName"),
        ("ImagePullBackOff", "for 0.2 s (stuck_timeout_seconds)"),
        ("ContainerCreating", "did not start within 1 s (startup_timeout_seconds)"),
    ],
)
def test_a_pod_that_does_not_start_is_given_up(make, play, lines, reason: str, said: str) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make(startup_timeout_seconds=1, stuck_timeout_seconds=0.2))
        name = await server.new()
        server.wait(name, reason)
        assert await triggerer.ends() == "failed"
        await triggerer.stored()
        await server.until(lambda: server.deleted == [name])

    play(scene)
    assert said in text(lines)
    assert "waits: " in text(lines)
    assert "Pod Event: Failed - event of" in text(lines)


def test_a_person_who_marks_the_task_ends_its_pod(make, play) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        name = await server.new()
        server.run(name)
        await triggerer.cancelled()
        await server.until(lambda: server.deleted == [name])
        assert triggerer.runner.events == type(triggerer.runner.events)()

    play(scene)


def test_a_task_is_marked_while_its_pod_is_looked_at_again(make, play, monkeypatch) -> None:
    monkeypatch.setattr(trigger_module, "TICK_SECONDS", 0)

    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        for number in range(1, 11):
            triggerer.start(make())
            name = await server.new(number)
            await triggerer.cancelled(number)
            await server.until(lambda name=name: name in server.deleted)

    play(scene)


def test_a_triggerer_that_was_away_leaves_the_pod_to_the_next(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        ti_id, task = uuid.uuid4(), make()
        triggerer.start(task, ti_id)
        name = await server.new()
        server.run(name)
        pods_module.Pods._of.clear()  # another process has taken over
        triggerer.start(task, ti_id)
        await server.until(lambda: "is there already" in text(lines))
        triggerer.comms.state = "deferred"
        await triggerer.cancelled()  # and the first finds out
        server.end(name)
        assert await triggerer.ends(2) == "success"
        assert server.deleted == []

    play(scene)


def test_a_pod_that_is_being_made_when_the_task_is_marked_goes_too(make, play) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        server.put("other")
        triggerer.start(make())
        await server.until(lambda: pods_module.Pods._of)
        server.broken += [503] * 20
        await triggerer.cancelled()
        await server.until(lambda: not server.broken or server.created)
        await asyncio.sleep(0.5)
        assert set(server.created) == set(server.deleted)

    play(scene)


def test_a_next_triggerer_meets_the_same_pod(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        ti_id, task = uuid.uuid4(), make()
        triggerer.start(task, ti_id)
        name = await server.new()
        server.run(name)
        triggerer.stop()
        await asyncio.sleep(0.1)
        assert server.deleted == []
        server.end(name, message='{"a": 1}')  # while nobody looks
        triggerer.start(task, ti_id)
        assert await triggerer.ends(2) == "success"
        assert server.created == [name]
        assert triggerer.comms.xcoms["a_task", -1]["a"] == 1

    play(scene)
    assert "is there already" in text(lines)


def test_an_earlier_try_ends_before_the_next_begins(make, play) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.comms.xcoms["a_task", -1] = "of before"
        first = triggerer.start(make())
        name = await server.new()
        server.run(name)
        triggerer.runner.triggers[first]["task"].cancel()
        labels = server.pods[name]["metadata"]["labels"]
        server.put("of-a-mapped-one", **labels | {"map_index": "1"})
        server.put("of-another-run", **labels | {"run_id": "other"})
        triggerer.start(make(), of_ti={"try_number": 2})
        server.end(await server.new(2))
        assert await triggerer.ends(2) == "success"
        assert server.deleted == [name]
        assert triggerer.comms.xcoms["a_task", -1] != "of before"

    play(scene)


def test_a_pod_that_somebody_deletes_fails_the_try(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        name = await server.new()
        server.run(name)
        server.remove(name)
        assert await triggerer.ends() == "failed"

    play(scene)
    assert "is gone: it was deleted or evicted, or its node was lost" in text(lines)


def test_a_node_that_is_lost_fails_the_try(make, play, lines, monkeypatch) -> None:
    monkeypatch.setattr(trigger_module.pod_manager, "LOST_SECONDS", -5)

    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        server.keeps_deleted = True
        triggerer.start(make())
        name = await server.new()
        server.run(name)
        await triggerer.api.ask("DELETE", f"/api/v1/namespaces/default/pods/{name}")
        assert await triggerer.ends() == "failed"

    play(scene)
    assert "is gone: its node does not answer" in text(lines)


def test_an_api_server_that_is_away_costs_no_try(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        name = await server.new()
        server.logs[name] = ["2026-11-27T10:00:00.5Z one"]
        server.run(name)
        await server.until(lambda: "one" in text(lines))
        server.away = True
        server.break_connections()
        await server.until(lambda: "The watch is interrupted" in text(lines))
        server.logs[name] += ["2026-11-27T10:00:00.6Z two"]
        server.forget_history()
        server.end(name)
        server.away = False
        assert await triggerer.ends() == "success"

    play(scene)
    told = [one["event"] for one in lines if one["event"].startswith("[base] ")]
    assert told == ["[base] one", "[base] two"]


def test_a_history_that_is_gone_is_listed_anew(make, play) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        name = await server.new()
        server.break_connections()
        server.run(name)
        server.end(name)
        server.forget_history()
        assert await triggerer.ends() == "success"

    play(scene)


def test_room_in_a_quota_is_waited_for(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        server.quota = 0
        triggerer.start(make())
        await server.until(lambda: "exceeded quota: team" in text(lines))
        await asyncio.sleep(0.2)
        assert not triggerer.runner.events
        server.quota = 1
        server.end(await server.new())
        assert await triggerer.ends() == "success"

    play(scene)
    assert text(lines).count("exceeded quota") == 1


def test_room_in_a_quota_is_not_waited_for_without_end(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        server.quota = 0
        triggerer.start(make(startup_timeout_seconds=0.2))
        assert await triggerer.ends() == "failed"

    play(scene)
    assert "was refused: pods" in text(lines)


def test_a_triggerer_without_rights_says_so(make, play, lines) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        server.broken.append(403)
        triggerer.start(make())
        assert await triggerer.ends() == "failed"
        # The next try asks anew.
        triggerer.start(make())
        server.end(await server.new())
        assert await triggerer.ends(2) == "success"

    play(scene)
    assert "broken" in text(lines)


@pytest.mark.parametrize("there", [0, 2])
def test_many_tasks_make_few_pods_at_once(make, play, settings_file, there: int) -> None:
    settings_file(SETTINGS | {"maxPods": 3})

    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        for number in range(there):
            server.put(f"other-{number}")  # of another triggerer, or of a worker
        task = make()
        for number in range(12):
            triggerer.start(task, of_ti={"run_id": f"run-{number}"})
        for number in range(1, 13):
            server.end(await server.new(number))
        for number in range(1, 13):
            assert await triggerer.ends(number) == "success"
        assert server.most <= 3

    play(scene)


def test_a_task_that_is_cancelled_while_it_waits_leaves_its_turn(make, play, settings_file) -> None:
    settings_file(SETTINGS | {"maxPods": 1})

    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        runs = [{"run_id": f"run-{number}"} for number in range(3)]
        first, second, third = (triggerer.start(make(), of_ti=run) for run in runs)
        name = await server.new()
        await server.until(lambda: len(pods_module.Pods._of["default"].turns) == 2)
        await triggerer.cancelled(second)
        server.end(name)
        assert await triggerer.ends(first) == "success"
        server.end(await server.new(2))
        assert await triggerer.ends(third) == "success"
        assert len(server.created) == 2

    play(scene)


def test_a_pod_has_ended_before_its_phase_says_so(make, play, settings_file) -> None:
    settings_file(SETTINGS | {"maxPods": 1})

    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        runs = [{"run_id": f"run-{number}"} for number in range(2)]
        first, second = (triggerer.start(make(), of_ti=run) for run in runs)
        ended = {"terminated": {"exitCode": 0, "message": '["a"]'}}
        server.state(name := await server.new(), "Running", ended)
        assert await triggerer.ends(first) == "success"
        assert triggerer.comms.xcoms["a_task", -1] == ["a"]
        # It takes no place any more, and goes.
        server.state(await server.new(2), "Running", ended, reason="DeadlineExceeded")
        await triggerer.stored()
        await server.until(lambda: server.deleted == [name])
        server.end(server.created[1], 143)
        assert await triggerer.ends(second) == "failed"

    play(scene)


def test_an_injected_sidecar_does_not_hold_the_task_up(make, play) -> None:
    async def scene(triggerer: Triggerer, server: PodServer) -> None:
        triggerer.start(make())
        name = await server.new()
        pod = server.pods[name]
        pod["spec"]["containers"].append({"name": "istio-proxy"})
        server.run(name)
        ended = {"terminated": {"exitCode": 0, "message": '["a"]'}}
        states = [
            {"name": "base", "state": ended},
            {"name": "istio-proxy", "state": {"running": {}}},
        ]
        pod["status"]["containerStatuses"] = states
        server._changed(pod)
        assert await triggerer.ends() == "success"
        assert triggerer.comms.xcoms["a_task", -1] == ["a"]
        await triggerer.stored()
        await server.until(lambda: server.deleted == [name])

    play(scene)
