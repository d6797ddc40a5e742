"""An API server that is played, and the clock that drives it.

Nothing is counted by requests. A pod goes through a timeline of (second after its creation,
Status); the clock moves by what is slept, and while a log is followed. Label selectors, deletion
with grace, name conflicts and labels that are not valid are as in Kubernetes.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException

DIGEST = f"sha256:{'1a' * 32}"
# Of a pod that an earlier try of conftest.py's task has made.
LABELS = {
    "dag_id": "a_dag",
    "task_id": "a_task",
    "run_id": "manual__1",
    "kubernetes_pod_operator": "True",
    "try_number": "1",
}
XCOM_SIDECAR = "airflow-xcom-sidecar"
LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
TERMINAL = ("Succeeded", "Failed")
STEP = 0.1


class WaitsForEver(BaseException):
    """The code under test has waited for hours."""


class Clock:
    """A clock that moves by what is slept, so that long waits are tested in no time.

    `at(second, do)` has something done, e.g. an exception raised, as soon as it is that late.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Near the real time, which the provider reads here and there.
        self.start = self.now = time.time()
        self.slept: list[float] = []
        self.alarms: list[tuple[float, Callable[[], Any]]] = []
        really = asyncio.sleep

        async def sleep(seconds: float, result: Any = None) -> Any:
            self.sleep(seconds)
            await really(0)
            return result

        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)

    @property
    def passed(self) -> float:
        return self.now - self.start

    def at(self, second: float, do: Callable[[], Any]) -> None:
        self.alarms.append((self.start + second, do))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        if self.passed > 20_000:
            raise WaitsForEver
        for alarm in [one for one in self.alarms if one[0] <= self.now]:
            self.alarms.remove(alarm)
            alarm[1]()


class Log:
    """Collects what is logged, by level."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        def log(message: object, *arguments: object, **_: object) -> None:
            if isinstance(message, int):  # log.log(level, message, ...)
                message, arguments = arguments[0], arguments[1:]
            self.lines.append((level, str(message) % arguments if arguments else str(message)))

        return log

    @property
    def text(self) -> str:
        return "\n".join(line for level, line in self.lines if level != "debug")


State = k8s.V1ContainerState
RUNNING_STATE = State(running=k8s.V1ContainerStateRunning())
ENDED_STATE = State(terminated=k8s.V1ContainerStateTerminated(exit_code=0))


@dataclass(frozen=True, eq=False)
class Status:
    """What is so with a pod: the state of its container, and what goes beside it."""

    base: State | None = None
    """None: the kubelet has not reported a container."""
    phase: str | None = None
    """As Kubernetes computes it from the containers, if it is not said."""
    others: dict[str, State] = field(default_factory=dict)
    """Further containers; one that is not named runs for ever once the pod has started."""
    init: dict[str, State] = field(default_factory=dict)
    placed: bool = True
    image_id: str = f"ghcr.io/kyryl-opens-ml/classic-example@{DIGEST}"
    more: dict[str, Any] = field(default_factory=dict)
    """Of the pod's status: reason, message, conditions."""

    def states(self, pod: k8s.V1Pod, ended: set[str]) -> dict[str, State]:
        """Of the containers that the kubelet has reported, by name."""
        started = self.base is not None and self.base.waiting is None
        states = {}
        for number, container in enumerate(pod.spec.containers):
            state = self.base if number == 0 else None
            if number and container.name in ended:
                state = ENDED_STATE
            elif number:
                state = self.others.get(container.name, RUNNING_STATE if started else self.base)
            if state is not None:
                states[container.name] = state
        return states

    def of(self, pod: k8s.V1Pod, ended: set[str]) -> k8s.V1PodStatus:
        states = self.states(pod, ended)
        return k8s.V1PodStatus(
            phase=self.phase or self._phase(states),
            container_statuses=[self._status(*one) for one in states.items()] or None,
            init_container_statuses=[self._status(*one) for one in self.init.items()] or None,
            **self.more,
        )

    def _phase(self, states: dict[str, State]) -> str:
        if any(one.terminated and one.terminated.exit_code for one in self.init.values()):
            return "Failed"
        if not states or all(one.waiting for one in states.values()):
            return "Pending"
        if not all(one.terminated for one in states.values()):
            return "Running"
        failed = any(one.terminated.exit_code for one in states.values())
        return "Failed" if failed else "Succeeded"

    def _status(self, name: str, state: State) -> k8s.V1ContainerStatus:
        return k8s.V1ContainerStatus(
            name=name,
            image="i",
            image_id=self.image_id,
            ready=False,
            restart_count=0,
            state=state,
        )


def waits(reason: str, message: str = "", **more: Any) -> Status:
    waiting = k8s.V1ContainerStateWaiting(reason=reason, message=message)
    return Status(State(waiting=waiting), **more)


def terminated(exit_code: int, reason: str = "", message: str = "") -> State:
    return State(
        terminated=k8s.V1ContainerStateTerminated(
            exit_code=exit_code,
            reason=reason or ("Error" if exit_code else "Completed"),
            message=message,
            finished_at=datetime.fromtimestamp(time.time(), UTC),
        )
    )


def ended(exit_code: int, reason: str = "", message: str = "", **more: Any) -> Status:
    return Status(terminated(exit_code, reason, message), **more)


KILLED_STATE = terminated(137)
PENDING = Status()
STARTING = waits("ContainerCreating")
RUNNING = Status(RUNNING_STATE)
EVICTION = k8s.V1PodCondition(
    type="DisruptionTarget",
    status="True",
    reason="EvictionByEvictionAPI",
    message="Eviction API: evicting",
)
EVICTED = Status(RUNNING_STATE, more={"conditions": [EVICTION]})
Timeline = Sequence[tuple[float, Status]]


def until(second: float, status: Status) -> Timeline:
    """A pod that starts after a second and then runs, until the given one."""
    return [(0, STARTING), (1, RUNNING), (second, status)]


def answer(status: int, reason: str, message: str = "", why: str = "") -> ApiException:
    """What the API server says to a request that it refuses."""
    error = ApiException(status=status, reason=reason)
    error.body = json.dumps({"message": message, "reason": why or reason.replace(" ", "")})
    return error


NOT_FOUND = answer(404, "Not Found")


@dataclass
class Trouble:
    """What happens to requests in a span of time."""

    begin: float
    end: float
    error: Exception
    requests: tuple[str, ...]
    done: bool
    """The request is done, and its answer gets lost."""


@dataclass
class Made:
    """A pod of the cluster."""

    pod: k8s.V1Pod
    timeline: Timeline
    created: float
    deleted: float | None = None
    grace: float = 0
    ended: set[str] = field(default_factory=set)
    """Sidecars that were told to end."""
    killed: Status | None = None
    read: tuple[Any, k8s.V1Pod] | None = None
    """What the last request has seen."""


class Cluster:
    """Plays CoreV1Api; `timelines` are those of the pods that will be created, the last stays."""

    def __init__(
        self,
        clock: Clock,
        *timelines: Timeline,
        log: Sequence[str] = ("epoch 1",),
        events: Sequence[tuple[str, str]] = (),
        skew: float = 0,
        log_lead: float = 0.6,
        injected: Sequence[k8s.V1Container] = (),
        lost_node: bool = False,
    ) -> None:
        self.clock = clock
        self.timelines = list(timelines)
        self.log_lines, self.events = log, events
        self.skew = skew
        """How far the API server's clock is ahead."""
        self.log_lead = log_lead
        """The log ends so long before the API server knows of a container's end."""
        self.injected = injected
        self.quota: int | None = None
        """So many pods may be there that have not ended; `workers` are such pods too."""
        self.workers = 0
        self.lost_node = lost_node
        """Deleted pods stay: no kubelet says that they are gone."""
        self.made: dict[str, Made] = {}
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.graces: list[float | None] = []
        self.troubles: list[Trouble] = []
        self.api_client = ApiClient()
        self.versions = itertools.count(1)

    # What a test does to it

    def trouble(
        self, begin: float, end: float, error: Exception, *requests: str, done: bool = False
    ) -> None:
        """Let requests fail from `begin` to `end` (seconds from now); all, or those named."""
        now = self.clock.now
        self.troubles.append(Trouble(now + begin, now + end, error, requests, done))

    def add(
        self,
        name: str,
        timeline: Timeline,
        age: float = 60,
        annotations: dict[str, str] | None = None,
        **labels: str,
    ) -> k8s.V1Pod:
        """Have a pod there that was created `age` seconds ago."""
        metadata = k8s.V1ObjectMeta(
            name=name, namespace="default", labels=labels, annotations=annotations
        )
        container = k8s.V1Container(name="base", image="ghcr.io/example/before:1")
        spec = k8s.V1PodSpec(containers=[container], termination_grace_period_seconds=30)
        self._make(k8s.V1Pod(metadata=metadata, spec=spec), timeline, self.clock.now - age)
        return self.made[name].pod

    def pod(self, name: str | None = None) -> dict[str, Any]:
        """A pod as JSON, the one that was created first if none is named."""
        made = self.made[name or self.created[0]]
        return self.api_client.sanitize_for_serialization(made.pod)

    def labels(self, name: str) -> dict[str, str]:
        return self.made[name].pod.metadata.labels

    @property
    def there(self) -> list[str]:
        """The pods that are there now."""
        return [name for name in list(self.made) if self._there(name)]

    @property
    def has_room(self) -> bool:
        """Whether the quota takes another pod."""
        going = [one for one in self.there if self._read(one).status.phase not in TERMINAL]
        return self.quota is None or len(going) + self.workers < self.quota

    # CoreV1Api

    def create_namespaced_pod(
        self, namespace: str, body: Any, _request_timeout: Any = None
    ) -> k8s.V1Pod:
        with self._request("create_namespaced_pod"):
            return self._create(namespace, body)

    def read_namespaced_pod(
        self, name: str, namespace: str, _request_timeout: Any = None
    ) -> k8s.V1Pod:
        with self._request("read_namespaced_pod"):
            return self._read(name, namespace)

    def list_namespaced_pod(
        self,
        namespace: str,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
        timeout_seconds: float = 0,
        watch: bool = False,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> Any:
        if watch:
            with self._request("watch_namespaced_pod"):
                name = field_selector.removeprefix("metadata.name=")
                return PodWatch(self, namespace, name, resource_version, timeout_seconds)
        with self._request("list_namespaced_pod"):
            pods = [self._read(name) for name in self.there]
            selected = [
                pod
                for pod in pods
                if pod.metadata.namespace == namespace
                and selects(label_selector, pod.metadata.labels or {})
            ]
            return SimpleNamespace(items=selected)

    def patch_namespaced_pod(
        self, name: str, namespace: str, body: dict[str, Any], _request_timeout: Any = None
    ) -> k8s.V1Pod:
        with self._request("patch_namespaced_pod"):
            pod = self._read(name, namespace)
            assert set(body) == {"metadata"}
            assert set(body["metadata"]) == {"labels"}
            labels = body["metadata"]["labels"]
            self.made[name].pod.metadata.labels = (pod.metadata.labels or {}) | labels
            return self._read(name)

    def delete_namespaced_pod(
        self,
        name: str,
        namespace: str,
        body: Any = None,
        grace_period_seconds: float | None = None,
        _request_timeout: Any = None,
    ) -> None:
        with self._request("delete_namespaced_pod"):
            pod, made = self._read(name, namespace), self.made[name]
            if made.deleted is None:
                self.deleted.append(name)
                self.graces.append(grace_period_seconds)
                grace = grace_period_seconds
                if grace is None:
                    grace = pod.spec.termination_grace_period_seconds
                # Without a container that runs there is nothing to wait for.
                runs = any(one.state.running for one in pod.status.container_statuses or [])
                made.grace = (30 if grace is None else grace) if runs or self.lost_node else 0
                made.deleted = self.clock.now

    def read_namespaced_pod_log(
        self,
        name: str,
        namespace: str,
        container: str,
        follow: bool = False,
        timestamps: bool = False,
        since_seconds: int | None = None,
        tail_lines: int | None = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> LogStream:
        with self._request("read_namespaced_pod_log"):
            self._read(name, namespace)
            if self._state(name, container) is None:
                raise answer(400, "Bad Request", f'container "{container}" is waiting to start')
            return LogStream(self, name, container, follow, timestamps, since_seconds)

    def list_namespaced_event(
        self,
        namespace: str,
        field_selector: str,
        resource_version: str | None = None,
        resource_version_match: str | None = None,
        _request_timeout: Any = None,
    ) -> Any:
        with self._request("list_namespaced_event"):
            items = [
                SimpleNamespace(
                    type="Warning",
                    reason=reason,
                    message=message,
                    metadata=SimpleNamespace(uid=reason, resource_version="1"),
                    involved_object=SimpleNamespace(field_path=""),
                )
                for reason, message in self.events
            ]
            return SimpleNamespace(items=items, metadata=SimpleNamespace(resource_version="1"))

    # How it works

    def met(self, request: str) -> Trouble | None:
        """The trouble that such a request meets now."""
        for one in self.troubles:
            named = not one.requests or request in one.requests
            if named and one.begin <= self.clock.now < one.end:
                return one
        return None

    @contextmanager
    def _request(self, name: str) -> Iterator[None]:
        trouble = self.met(name)
        if trouble and not trouble.done:
            raise trouble.error
        yield
        if trouble:
            raise trouble.error

    def _create(self, namespace: str, body: Any) -> k8s.V1Pod:
        name = body["metadata"]["name"]
        if self._there(name):
            raise answer(409, "Conflict", f'pods "{name}" already exists', "AlreadyExists")
        for key, value in body["metadata"].get("labels", {}).items():
            if len(value) > 63 or not LABEL.fullmatch(value):
                raise answer(422, "Unprocessable Entity", f"{key}: Invalid value: {value!r}")
        if not self.has_room:
            full = f'pods "{name}" is forbidden: exceeded quota: team, limited: pods={self.quota}'
            raise answer(403, "Forbidden", full)
        response = SimpleNamespace(data=json.dumps(body))
        try:
            pod = self.api_client.deserialize(response, "V1Pod")
        except TypeError:  # kubernetes client 36
            pod = self.api_client.deserialize(json.dumps(body), "V1Pod", "application/json")
        pod.metadata.namespace = namespace
        pod.spec.containers += copy.deepcopy(list(self.injected))
        timeline = self.timelines.pop(0) if len(self.timelines) > 1 else self.timelines[0]
        self._make(pod, timeline, self.clock.now)
        self.created.append(name)
        return self._read(name)

    def _make(self, pod: k8s.V1Pod, timeline: Timeline, created: float) -> None:
        pod.metadata.creation_timestamp = self._stamp(created)
        self.made[pod.metadata.name] = Made(pod, timeline, created)

    def _stamp(self, moment: float) -> datetime:
        return datetime.fromtimestamp(int(moment + self.skew), UTC)

    def _there(self, name: str) -> bool:
        made = self.made.get(name)
        if made is None or made.deleted is None or self.lost_node:
            return made is not None
        # The object goes a moment after its last container.
        return self.clock.now < made.deleted + made.grace + (1 if made.grace else 0)

    def _status_at(self, made: Made, moment: float) -> Status:
        status = [one for second, one in made.timeline if second <= moment - made.created][-1]
        stopped = made.deleted is not None and moment >= made.deleted + made.grace
        if stopped and not self.lost_node and status.base and status.base.running:
            made.killed = made.killed or replace(status, base=KILLED_STATE)
            return made.killed
        return status

    def _read(self, name: str, namespace: str | None = "") -> k8s.V1Pod:
        """The pod now; one of this namespace, where it is asked for with one."""
        if not self._there(name) or namespace not in ("", self.made[name].pod.metadata.namespace):
            raise NOT_FOUND
        made = self.made[name]
        status = self._status_at(made, self.clock.now)
        # The client's models are slow to make.
        seen = (status, made.deleted, frozenset(made.ended), id(made.pod.metadata.labels))
        if made.read and made.read[0] == seen:
            return made.read[1]
        pod = copy.deepcopy(made.pod)
        made.read = (seen, pod)
        pod.status = status.of(pod, made.ended)
        pod.status.start_time = pod.metadata.creation_timestamp
        pod.metadata.resource_version = str(next(self.versions))
        pod.spec.node_name = "node-1" if status.placed else None
        if made.deleted is not None:
            pod.metadata.deletion_timestamp = self._stamp(made.deleted + made.grace)
        return pod

    def _state(self, name: str, container: str) -> State | None:
        """How a container that has started is now, a moment before the API server knows."""
        if not self._there(name):
            raise NOT_FOUND
        made = self.made[name]
        status = self._status_at(made, self.clock.now + self.log_lead)
        state = status.states(made.pod, made.ended).get(container)
        return None if state is None or state.waiting else state


class LogStream:
    """The answer to a request for a log: one that is followed ends with the container."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        container: str,
        follow: bool,
        timestamps: bool,
        since_seconds: int | None,
    ) -> None:
        self.cluster, self.name, self.container = cluster, name, container
        self.follow, self.timestamps, self.resumed = follow, timestamps, since_seconds is not None

    def __iter__(self) -> Iterator[bytes]:
        stamp = f"{datetime.fromtimestamp(self.cluster.clock.now, UTC).isoformat()} "
        if not self.resumed:
            for line in self.cluster.log_lines:
                yield f"{stamp if self.timestamps else ''}{line}\n".encode()
        while self.follow and self._running():
            self.cluster.clock.advance(STEP)

    def _running(self) -> bool:
        if trouble := self.cluster.met("read_namespaced_pod_log"):
            if isinstance(trouble.error, ApiException):  # no answer to a request that is answered
                return False
            raise trouble.error
        try:
            state = self.cluster._state(self.name, self.container)
        except ApiException:
            return False
        return state is not None and state.running is not None

    def stream(self, amt: Any = None, decode_content: Any = None) -> Iterator[bytes]:
        return iter(self)


@dataclass
class PodWatch:
    """The answer to a watch of one pod: its first event, or none within the timeout."""

    cluster: Cluster
    namespace: str
    name: str
    version: str
    timeout: float

    def stream(self) -> Iterator[bytes]:
        end = self.cluster.clock.now + self.timeout
        while self.cluster.clock.now < end:
            if trouble := self.cluster.met("watch_namespaced_pod"):
                raise trouble.error
            try:
                seen = self.cluster._read(self.name, self.namespace).metadata.resource_version
            except ApiException:
                seen = "gone"
            if seen != self.version:
                yield b"{}\n"
            self.cluster.clock.advance(STEP)

    def close(self) -> None:
        pass


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Whether a label selector, of equality and existence, takes these labels."""
    for term in selector.split(",") if selector else []:
        key, operator, value = re.fullmatch(r"(!?[^=!]+)(==|=|!=|)(.*)", term).groups()
        if not LABEL.fullmatch(value):
            raise answer(400, "Bad Request", f"unable to parse requirement: {term}")
        if operator == "!=":
            holds = labels.get(key) != value
        elif operator:
            holds = labels.get(key) == value
        elif key.startswith("!"):
            holds = key[1:] not in labels
        else:
            holds = key in labels
        if not holds:
            return False
    return True
