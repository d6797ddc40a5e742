"""Workers that go on with the next task of their run, and what that changes of the executor."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.providers.cncf.kubernetes.executors import (
    kubernetes_executor,
    kubernetes_executor_utils,
)
from airflow.providers.cncf.kubernetes.executors.kubernetes_executor import KubernetesExecutor
from airflow.providers.cncf.kubernetes.executors.kubernetes_executor_utils import (
    ADOPTED,
    AirflowKubernetesScheduler,
    KubernetesJobWatcher,
)
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes import client
from kubernetes.client import ApiClient, ApiException
from kubernetes.client import models as k8s

from next_task import FIRST, IDLE, OPEN, SECONDS, executor, worker

API = ApiClient()
DATE = datetime(2024, 1, 1, tzinfo=UTC)


class Server:
    """The pods of an API server: create, read, list by labels, JSON patch, watch by version."""

    def __init__(self) -> None:
        self.pods: dict[str, k8s.V1Pod] = {}
        self.versions = itertools.count(1)
        self.history: list[k8s.V1Pod] = []
        self.before_patch: list[Callable[[], None]] = []
        """What happens before each next one."""
        self.api_client = API

    def _store(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        pod = copy.deepcopy(pod)
        pod.metadata.resource_version = str(next(self.versions))
        self.pods[pod.metadata.name] = pod
        self.history.append(pod)
        return copy.deepcopy(pod)

    def create_namespaced_pod(self, body: dict[str, Any], namespace: str, **_: Any) -> k8s.V1Pod:
        pod = API.deserialize(SimpleNamespace(data=json.dumps(body)), "V1Pod")
        pod.status = k8s.V1PodStatus(phase="Running")
        return self._store(pod)

    def read_namespaced_pod(self, name: str, namespace: str, **_: Any) -> k8s.V1Pod:
        if name not in self.pods:
            raise ApiException(404)
        return copy.deepcopy(self.pods[name])

    def list_namespaced_pod(self, namespace: str, label_selector: str, **_: Any) -> Any:
        wanted = [one.partition("=") for one in label_selector.split(",")]
        found = [
            pod
            for pod in self.pods.values()
            if all(
                name in pod.metadata.labels and value in ("", pod.metadata.labels[name])
                for name, _, value in wanted
            )
        ]
        return SimpleNamespace(items=copy.deepcopy(found))

    def patch_namespaced_pod(
        self, name: str, namespace: str, body: list[dict[str, Any]], **_: Any
    ) -> k8s.V1Pod:
        if self.before_patch:
            self.before_patch.pop(0)()
        pod = self.read_namespaced_pod(name, namespace)
        for change in body:
            _, _, field, *label = change["path"].split("/")
            there = getattr(pod.metadata, field)
            key = label[0].replace("~1", "/") if label else ""
            match change["op"]:
                case "test" if there.get(key) != change["value"]:
                    raise ApiException(422)
                case "add":
                    there[key] = change["value"]
                case "remove":
                    del there[key]
                case "replace":
                    setattr(pod.metadata, field, change["value"])
        return self._store(pod)

    def watch(self, _: Any, namespace: str, resource_version: str, **__: Any) -> Iterator[Any]:
        """What has changed since, and no more."""
        for pod in self.history:
            if int(pod.metadata.resource_version) > int(resource_version):
                yield {"type": "MODIFIED", "object": copy.deepcopy(pod)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    made = Server()
    (tmp_path / "namespace").write_text("here")
    monkeypatch.setattr(worker, "ACCOUNT", tmp_path)
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)
    monkeypatch.setattr(client, "CoreV1Api", lambda: made)
    stream = SimpleNamespace(stream=made.watch)
    monkeypatch.setattr("kubernetes.watch.Watch", lambda: stream)
    return made


@pytest.fixture
def scheduler(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scheduler of the mended executor; `ended` are the tasks whose end is known."""
    monkeypatch.setattr(executor, "values", lambda: {"workerIdleSeconds": 3})
    ended: set[str] = set()

    class Scheduler(AirflowKubernetesScheduler):
        def __init__(self) -> None:
            self.kube_client, self.result_queue, self.ended = server, SimpleQueue(), ended

    module = SimpleNamespace(**vars(kubernetes_executor_utils))
    module.AirflowKubernetesScheduler = Scheduler

    class Watcher(KubernetesJobWatcher):
        def __init__(self) -> None:
            self.watcher_queue = SimpleQueue()

    module.KubernetesJobWatcher = Watcher
    executor.mend_executor(module)
    monkeypatch.setattr(executor, "has_ended", lambda key: key.task_id in ended)
    made = Scheduler()
    made.watcher = Watcher()
    return made


def pod_of(task_id: str, *, run_id: str = "one", job: str = "7", **more: Any) -> k8s.V1Pod:
    """The worker that the executor would make for a task."""
    base = k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(labels={"tier": "airflow"}, annotations={}),
        spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base", image="airflow:1")]),
    )
    return PodGenerator.construct_pod(
        **{
            "dag_id": "dag",
            "task_id": task_id,
            "pod_id": f"dag-{task_id}",
            "try_number": 1,
            "kube_image": "airflow:1",
            "date": None,
            "run_id": run_id,
            "args": ["airflow", "tasks", "run", "dag", task_id, run_id],
            "pod_override_object": None,
            "base_worker_pod": base,
            "namespace": "here",
            "scheduler_job_id": job,
            **more,
        }
    )


def names(server: Server) -> list[str]:
    return sorted(server.pods)


def in_pod(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> worker.Pod:
    monkeypatch.setenv("HOSTNAME", name)
    for variable in server.pods[name].spec.containers[0].env:
        monkeypatch.setenv(variable.name, variable.value or "")
    return worker.Pod()


@pytest.fixture
def pod(scheduler: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> worker.Pod:
    """A worker whose task, the first, has ended."""
    first = pod_of("first")
    scheduler.run_pod_async(first)
    scheduler.ended.add("first")
    return in_pod(server, monkeypatch, first.metadata.name)


def end_of(command: list[str]) -> Any:
    """The status with which a worker ends that begins with a command."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            worker.main(command)
    finally:
        signal.signal(signal.SIGTERM, before)
    return ended.value.code


def test_the_code_that_is_changed_is_still_there() -> None:
    run_next = inspect.getsource(AirflowKubernetesScheduler.run_next)
    assert "self.run_pod_async(pod, **self.kube_config.kube_client_request_args)" in run_next
    watch = inspect.getsource(KubernetesJobWatcher._run)
    assert "self.process_status(\n                pod_name=task.metadata.name," in watch
    change = inspect.getsource(KubernetesExecutor._change_state)
    assert "if state == ADOPTED:" in change
    assert change.index("self.running.remove(key)") < change.index("delete_worker_pods")
    adopt = inspect.getsource(KubernetesExecutor.adopt_launched_task)
    assert "annotations_to_key(pod.metadata.annotations)" in adopt
    assert kubernetes_executor.ADOPTED == ADOPTED


def test_a_task_whose_worker_has_ended_one_of_its_run_gets_no_worker(
    scheduler: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pod_of("first", map_index=3)
    scheduler.run_pod_async(first)
    scheduler.ended.add("first")
    second = pod_of("second")
    scheduler.run_pod_async(second)
    # Its worker is so far only now: what it waits for is there.
    pod = in_pod(server, monkeypatch, first.metadata.name)

    assert names(server) == [first.metadata.name]
    there = server.pods[first.metadata.name].metadata
    # Its identity is that of the second, whose map_index it has not.
    for field in ("labels", "annotations"):
        wanted = {k: v for k, v in getattr(second.metadata, field).items() if k != OPEN}
        assert wanted.items() <= getattr(there, field).items()
        assert "map_index" not in getattr(there, field)
    key, state, name, *_ = scheduler.result_queue.get()
    assert (key, state) == (TaskInstanceKey("dag", "first", "one", 1, 3), ADOPTED)
    assert name == first.metadata.name
    assert pod.next_command(3) == second.spec.containers[0].args
    # And a third.
    scheduler.ended.add("second")
    third = pod_of("third", map_index=1)
    scheduler.run_pod_async(third)
    assert names(server) == [first.metadata.name]
    assert pod.next_command(3) == third.spec.containers[0].args
    assert pod.next_command(3) == []


def test_a_worker_that_waits_is_told_and_takes_no_place(
    pod: worker.Pod, scheduler: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = pod_of("second")
    # Between the label that says it waits and the watch.
    patch = server.patch_namespaced_pod

    def patch_then_give(*given: Any, **more: Any) -> Any:
        done = patch(*given, **more)
        monkeypatch.setattr(server, "patch_namespaced_pod", patch)
        scheduler.run_pod_async(second)
        return done

    monkeypatch.setattr(server, "patch_namespaced_pod", patch_then_give)
    assert pod.next_command(3) == second.spec.containers[0].args
    told = [one for one in server.history if IDLE in one.metadata.labels]
    assert len(told) == 1
    annotations = told[0].metadata.annotations
    event = {"type": "MODIFIED", "object": told[0]}
    for phase in ("Running", "Succeeded"):
        scheduler.watcher.process_status(
            pod_name="x",
            namespace="here",
            status=phase,
            annotations=annotations,
            resource_version="9",
            event=event,
        )
    assert scheduler.watcher.watcher_queue.get() == ("x", "here", ADOPTED, annotations, "9")
    assert scheduler.watcher.watcher_queue.get()[2] is None
    assert scheduler.watcher.watcher_queue.empty()
    assert IDLE not in server.pods[pod.name].metadata.labels


@pytest.mark.parametrize(
    "other",
    [
        {"run_id": "two"},
        {"dag_id": "other"},
        {"job": "8"},
        {"pod_override_object": k8s.V1Pod(spec=k8s.V1PodSpec(containers=[], node_name="a"))},
        {"kube_image": "airflow:2"},
    ],
)
def test_a_task_of_another_kind_gets_a_worker(
    scheduler: Any, server: Server, other: dict[str, Any]
) -> None:
    scheduler.run_pod_async(pod_of("first"))
    scheduler.ended.add("first")
    scheduler.run_pod_async(pod_of("second", **other))
    assert len(names(server)) == 2


@pytest.mark.parametrize("why", ["runs", "pending", "leaves", "left"])
def test_a_worker_that_is_not_there_for_it_is_not_asked(
    scheduler: Any, server: Server, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    first = pod_of("first")
    scheduler.run_pod_async(first)
    there = server.pods[first.metadata.name]
    if why != "runs":
        scheduler.ended.add("first")
    if why == "pending":
        there.status.phase = "Pending"
    if why == "leaves":
        there.metadata.deletion_timestamp = DATE
    if why == "left":
        assert in_pod(server, monkeypatch, first.metadata.name).next_command(3) == []
    scheduler.run_pod_async(pod_of("second"))
    assert len(names(server)) == 2


def test_who_is_sooner_at_the_last_moment_decides(
    pod: worker.Pod, scheduler: Any, server: Server
) -> None:
    second = pod_of("second")
    # The worker has waited for long enough; before it leaves it is given a task.
    server.before_patch = [lambda: None, lambda: scheduler.run_pod_async(second)]
    assert pod.next_command(3) == second.spec.containers[0].args
    # It leaves in the moment in which the executor has found it.
    scheduler.ended.add("second")
    server.before_patch = [lambda: pod.leave()]
    scheduler.run_pod_async(pod_of("third"))
    assert names(server) == [pod.name, pod_of("third").metadata.name]


def test_an_api_server_that_is_away_is_waited_for(
    scheduler: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pod_of("first")
    scheduler.run_pod_async(first)
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0)

    def fails(error: Exception) -> Callable[[], None]:
        def fail() -> None:
            raise error

        return fail

    pod = in_pod(server, monkeypatch, first.metadata.name)
    server.before_patch = [fails(OSError("no route")), fails(ApiException(503)), lambda: None]
    assert pod.next_command(3) == []
    assert OPEN not in server.pods[first.metadata.name].metadata.labels
    # Of a pod that is gone nobody wants anything.
    del server.pods[first.metadata.name]
    assert pod.leave() == []


@pytest.mark.parametrize("statuses", [(0,), (0, 0), (3, 0), (0, 3)])
def test_a_worker_ends_as_its_last_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, statuses: tuple[int, ...]
) -> None:
    seen, asked = tmp_path / "seen", []
    commands = [["airflow", "tasks", "run", str(status)] for status in statuses]

    def main() -> None:
        with seen.open("a") as file:
            file.write(f"{os.getpid()} {' '.join(sys.argv)}\n")
        if sys.argv[-1] != "0":
            sys.exit(int(sys.argv[-1]))

    def given(how: str) -> list[str]:
        asked.append(how)
        return next(following, [])

    monkeypatch.setitem(sys.modules, "airflow.__main__", SimpleNamespace(main=main))
    monkeypatch.setattr(worker, "prepare", lambda: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv(SECONDS, "3")
    pod = SimpleNamespace(
        next_command=lambda seconds: given("waits"), leave=lambda: given("does not")
    )
    monkeypatch.setattr(worker, "Pod", lambda: pod)
    first, following = commands[0], iter(commands[1:])
    status = end_of(first)
    assert status == statuses[-1]
    # Behind a task that has not ended as it should it waits for no other.
    assert asked == ["does not" if status else "waits" for status in statuses]
    told = [line.split() for line in seen.read_text().splitlines()]
    assert [words[1:] for words in told] == commands
    assert len({words[0] for words in told} | {str(os.getpid())}) == len(commands) + 1


def test_a_worker_that_is_asked_to_end_does_so_behind_its_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started(command: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        child = os.fork()
        if child == 0:
            os._exit(0)
        return child

    asked: list[str] = []
    monkeypatch.setenv(SECONDS, "3")
    monkeypatch.setattr(worker, "started", started)
    monkeypatch.setattr(worker, "prepare", lambda: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    pod = SimpleNamespace(next_command=asked.append, leave=list)
    monkeypatch.setattr(worker, "Pod", lambda: pod)
    status = end_of(["airflow"])
    assert asked == []
    # Not as a success: it may have been given a task by then.
    assert status == 128 + signal.SIGTERM


def test_what_is_imported_before_is_there() -> None:
    worker.prepare()
    assert set(worker.NEEDED) <= sys.modules.keys()


def test_without_the_value_nothing_is_changed(
    scheduler: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.run_pod_async(pod_of("first"))
    scheduler.ended.add("first")
    made = server.pods["dag-first"].spec.containers[0]
    assert {one.name: one.value for one in made.env}[SECONDS] == "3"
    # Switched off, while a worker waits: it is read with each task.
    monkeypatch.setattr(executor, "values", lambda: {"workerIdleSeconds": 0})
    wanted = API.sanitize_for_serialization(pod_of("second"))
    scheduler.run_pod_async(pod_of("second"))
    plain = API.sanitize_for_serialization(server.pods["dag-second"])
    assert plain["metadata"]["labels"] == wanted["metadata"]["labels"]
    assert plain["spec"] == wanted["spec"]
    assert FIRST not in json.dumps(plain)
