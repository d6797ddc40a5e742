"""The operator against an API server that is played: results, failures and their explanations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.exceptions import AirflowException
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ProtocolError

from ml_pipelines.settings import KEPT_UNTIL

RUN_ID = "manual__1"
RESULT = {"accuracy": 0.82, "baseline_accuracy": 0.78, "steps": 200}
DIGEST = f"sha256:{'1a' * 32}"
# What the operator adds to a result.
RAN = {"image": "ghcr.io/kyryl-opens-ml/classic-example:main", "image_digest": DIGEST}

State = Callable[[k8s.V1Pod], None] | BaseException


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
        return "\n".join(line for _, line in self.lines)


class Cluster:
    """Plays the API server: the created pod goes through `states`, one per read, and stays in the
    last. A state that is an exception is raised instead. Time does not pass, it is counted.
    `refusals`: what creating, deleting and reading the log raise before they work."""

    def __init__(self, states: list[State], log_lines: list[str], events: list[tuple[str, str]]):
        self.states = list(states)
        self.log_lines = log_lines
        self.events = events
        self.pods: dict[str, k8s.V1Pod] = {}
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.refusals: dict[str, list[Exception]] = {"create": [], "delete": [], "log": []}
        self.api_client = ApiClient()

    def refuse(self, request: str) -> None:
        if self.refusals[request]:
            raise self.refusals[request].pop(0)

    def create_namespaced_pod(self, body: Any, namespace: str, **_: Any) -> k8s.V1Pod:
        self.refuse("create")
        response = SimpleNamespace(data=json.dumps(body))
        try:
            pod = self.api_client.deserialize(response, "V1Pod")
        except TypeError:  # kubernetes client 36
            pod = self.api_client.deserialize(json.dumps(body), "V1Pod", "application/json")
        pod.status = k8s.V1PodStatus(phase="Pending")
        self.pods[pod.metadata.name] = pod
        self.created.append(pod.metadata.name)
        return pod

    def list_namespaced_pod(self, namespace: str, label_selector: str) -> Any:
        if label_selector == KEPT_UNTIL:
            kept = [pod for pod in self.pods.values() if KEPT_UNTIL in pod.metadata.labels]
            return SimpleNamespace(items=kept)
        assert "task_id=train_model" in label_selector
        unchecked = [
            pod for pod in self.pods.values() if "already_checked" not in pod.metadata.labels
        ]
        return SimpleNamespace(items=unchecked)

    def read_namespaced_pod(self, name: str, namespace: str) -> k8s.V1Pod:
        if name not in self.pods:
            raise ApiException(status=404, reason="Not Found")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, BaseException):
            if isinstance(state, ApiException) and state.status == 404:
                self.pods.pop(name)
            raise state
        state(self.pods[name])
        return self.pods[name]

    def read_namespaced_pod_log(self, name: str, **_: Any) -> Any:
        self.refuse("log")
        stamp = "2026-11-23T09:00:00.000000000Z"
        data = "".join(f"{stamp} {line}\n" for line in self.log_lines).encode()
        return SimpleNamespace(stream=lambda **_: iter([data]))

    def patch_namespaced_pod(self, name: str, namespace: str, body: dict) -> None:
        self.pods[name].metadata.labels.update(body["metadata"]["labels"])

    def delete_namespaced_pod(self, name: str, namespace: str, **_: Any) -> None:
        self.refuse("delete")
        if name not in self.pods:
            raise ApiException(status=404, reason="Not Found")
        self.pods.pop(name)
        self.deleted.append(name)

    def list_namespaced_event(self, namespace: str, field_selector: str, **_: Any) -> Any:
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


def status(
    phase: str,
    container: dict[str, Any] | None = None,
    image_id: str = f"ghcr.io/kyryl-opens-ml/classic-example@{DIGEST}",
    **pod_status: Any,
) -> State:
    """A state of the pod: its phase and that of its container."""

    def apply(pod: k8s.V1Pod) -> None:
        statuses = None
        if container is not None:
            statuses = [
                k8s.V1ContainerStatus(
                    name="base",
                    image="i",
                    image_id=image_id,
                    ready=False,
                    restart_count=0,
                    state=k8s.V1ContainerState(**container),
                )
            ]
        pod.status = k8s.V1PodStatus(phase=phase, container_statuses=statuses, **pod_status)

    return apply


def waiting(reason: str, message: str = "") -> State:
    state = k8s.V1ContainerStateWaiting(reason=reason, message=message)
    return status("Pending", {"waiting": state})


def ended(exit_code: int, reason: str, message: str = "", **pod_status: Any) -> State:
    state = k8s.V1ContainerStateTerminated(
        exit_code=exit_code, reason=reason, message=message, finished_at=datetime.now(tz=UTC)
    )
    return status("Failed" if exit_code else "Succeeded", {"terminated": state}, **pod_status)


RUNNING = status("Running", {"running": k8s.V1ContainerStateRunning()})
SUCCEEDED = ended(0, "Completed", json.dumps(RESULT))
UNSCHEDULABLE = status(
    "Pending",
    conditions=[
        k8s.V1PodCondition(
            type="PodScheduled",
            status="False",
            reason="Unschedulable",
            message="0/1 nodes are available: 1 Insufficient memory.",
        )
    ],
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that moves by what is slept, so that long waits are tested in no time."""
    clock = SimpleNamespace(now=1000.0, slept=[])

    def sleep(seconds: float) -> None:
        clock.slept.append(seconds)
        clock.now += seconds
        assert clock.now < 1000 + 10_000, "waits for ever"

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "time", lambda: clock.now)
    return clock


@pytest.fixture
def train(load_dag, context_of, clock, monkeypatch: pytest.MonkeyPatch):
    """Run train_model against a played cluster; gives cluster, log, task and what it pushed."""

    def run(
        *states: State,
        log_lines: list[str] | None = None,
        events: list[tuple[str, str]] | None = None,
        cluster: Cluster | None = None,
        run_started: datetime | None = None,
    ) -> SimpleNamespace:
        task = load_dag("training_dag").get_task("train_model")
        run.task = task
        log = Log()
        monkeypatch.setattr(type(task), "log", log)
        monkeypatch.setattr("ml_pipelines.operator.PipelinePodManager.log", log)
        cluster = cluster or Cluster(list(states), log_lines or ["epoch 1"], events or [])
        task.__dict__["client"] = cluster
        task.__dict__["hook"] = SimpleNamespace(is_in_cluster=True)
        context = context_of(task, RUN_ID)
        context["dag_run"] = SimpleNamespace(start_date=run_started)
        task.render_template_fields(context)
        error = None
        try:
            task.execute(context)
        except BaseException as raised:
            error = raised
        return SimpleNamespace(
            cluster=cluster,
            log=log,
            task=task,
            xcoms=context["ti"].xcoms,
            error=error,
            message=str(error),
        )

    return run


def test_result_of_the_container_becomes_the_xcom(train) -> None:
    run = train(status("Pending"), RUNNING, RUNNING, SUCCEEDED)
    assert run.error is None
    assert run.xcoms["return_value"] == RESULT | RAN
    assert run.cluster.deleted == run.cluster.created
    assert len(run.cluster.created) == 1
    assert "epoch 1" in run.log.text


@pytest.mark.parametrize("message", ["", "no json", "[1]", '"text"'])
def test_success_without_a_result_is_a_success(train, message: str) -> None:
    run = train(RUNNING, ended(0, "Completed", message))
    assert run.error is None
    assert run.xcoms["return_value"] == RAN
    assert ("Not a result" in run.log.text) is bool(message)


@pytest.mark.parametrize(
    ("image_id", "digest"),
    [
        (f"docker.io/library/classic-example@{DIGEST}", DIGEST),
        # An image that was imported and not pulled has no name with a digest.
        (DIGEST, DIGEST),
        (f"docker-pullable://classic-example@{DIGEST}", DIGEST),
        ("", None),
        ("classic-example:main", None),
    ],
)
def test_result_says_which_image_has_run(train, image_id: str, digest: str | None) -> None:
    run = train(RUNNING, ended(0, "Completed", json.dumps(RESULT), image_id=image_id))
    assert run.xcoms["return_value"].get("image_digest") == digest
    assert run.xcoms["return_value"]["image"] == RAN["image"]


def test_result_says_what_ran_and_not_what_the_settings_say_now(train) -> None:
    """The next try follows a pod that was made before the settings changed."""
    first = train(RUNNING, RUNNING, ApiException(status=403, reason="Forbidden"))
    cluster = first.cluster
    (name,) = cluster.created
    cluster.pods[name].metadata.labels.pop("already_checked", None)
    cluster.pods[name].spec.containers[0].image = "registry.example/classic-example:before"
    cluster.states = [RUNNING, RUNNING, SUCCEEDED]
    second = train(cluster=cluster)
    assert second.xcoms["return_value"]["image"] == "registry.example/classic-example:before"


def test_end_of_the_container_is_noticed_at_once(train, clock) -> None:
    # Still "running" for a moment after the log stream has ended, then not yet in a final phase.
    gone = status("Running", {"terminated": k8s.V1ContainerStateTerminated(exit_code=0)})
    run = train(RUNNING, RUNNING, RUNNING, RUNNING, gone, gone, SUCCEEDED)
    assert run.error is None
    assert sum(clock.slept) < 1.5
    assert max(clock.slept) == 0.2


def test_failed_container_is_explained_by_its_error_line(train) -> None:
    said = "loading\nERROR: no accuracy in metrics.json; run `train` first\nbye"
    run = train(
        RUNNING, ended(2, "Error", said), events=[("BackOff", "restarting failed container")]
    )
    assert isinstance(run.error, AirflowException)
    assert "failed: exit code 2: ERROR: no accuracy in metrics.json; run `train` first" in (
        run.message
    )
    assert "restarting failed container" in run.log.text
    assert "return_value" not in run.xcoms


def test_failed_pod_is_kept_for_a_look_and_goes_with_a_later_task(train, clock) -> None:
    first = train(RUNNING, ended(2, "Error", "ERROR: x"))
    cluster = first.cluster
    (failed,) = cluster.created
    assert cluster.deleted == []
    labels = cluster.pods[failed].metadata.labels
    assert labels[KEPT_UNTIL] == str(int(clock.now) + 900)
    assert labels["already_checked"] == "True"
    assert f"{failed} is kept until" in first.log.text

    cluster.states = [RUNNING, RUNNING, SUCCEEDED]
    second = train(cluster=cluster)
    assert second.error is None
    assert cluster.deleted == cluster.created[1:]

    clock.now += 901
    cluster.states = [RUNNING, RUNNING, SUCCEEDED]
    train(cluster=cluster)
    assert failed in cluster.deleted
    assert cluster.pods == {}


def test_failed_pod_goes_at_once_when_none_shall_be_kept(train, settings_file) -> None:
    settings_file({"defaults": {"failedPodTtlSeconds": 0}})
    run = train(RUNNING, ended(2, "Error", "ERROR: x"))
    assert "failed: exit code 2: ERROR: x" in run.message
    assert run.cluster.deleted == run.cluster.created
    assert "is kept" not in run.log.text


def test_failed_pods_that_cannot_be_listed_do_not_stop_a_task(train, monkeypatch) -> None:
    cluster = Cluster([RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    listed = cluster.list_namespaced_pod

    def refuse(namespace: str, label_selector: str) -> Any:
        if label_selector == KEPT_UNTIL:
            raise ApiException(status=403, reason="Forbidden")
        return listed(namespace, label_selector)

    cluster.list_namespaced_pod = refuse
    run = train(cluster=cluster)
    assert run.error is None
    assert "Failed pods of before could not be deleted" in run.log.text


def test_failed_pod_is_not_dumped(train) -> None:
    run = train(RUNNING, ended(2, "Error", "ERROR: x"))
    shown = [line for level, line in run.log.lines if level != "debug"]
    assert "ML_PIPELINES_RUN_ID" not in "\n".join([run.message, *shown])
    assert len(run.message) < 200


def test_pod_out_of_memory_says_so(train) -> None:
    run = train(RUNNING, ended(137, "OOMKilled", ""))
    assert (
        "OOMKilled: the container needed more memory than its limit of 4Gi (raise the task's "
        "resources.limits.memory)" in run.message
    )


def test_killed_container_says_so(train) -> None:
    run = train(RUNNING, ended(137, "Error", ""))
    assert "killed by SIGKILL (exit code 137)" in run.message


def test_evicted_pod_says_so(train) -> None:
    run = train(
        RUNNING,
        status(
            "Failed",
            {"terminated": k8s.V1ContainerStateTerminated(exit_code=143, reason="Error")},
            reason="Evicted",
            message="The node was low on resource: ephemeral-storage.",
        ),
    )
    assert "Evicted: The node was low on resource: ephemeral-storage.; exit code 143" in run.message


def test_pod_evicted_before_it_started_says_so(train) -> None:
    run = train(status("Failed", reason="Evicted", message="The node had condition: DiskPressure."))
    assert "Evicted: The node had condition: DiskPressure." in run.message + run.log.text


EVICTION = k8s.V1PodCondition(
    type="DisruptionTarget",
    status="True",
    reason="EvictionByEvictionAPI",
    message="Eviction API: evicting",
)


@pytest.mark.parametrize(
    "last",
    [
        ApiException(status=404, reason="Not Found"),
        status(
            "Failed",
            {"terminated": k8s.V1ContainerStateTerminated(exit_code=143, reason="Error")},
            conditions=[EVICTION],
        ),
    ],
    ids=["gone", "failed"],
)
def test_pod_evicted_through_the_api_says_so(train, last: State) -> None:
    leaving = status("Running", {"running": k8s.V1ContainerStateRunning()}, conditions=[EVICTION])
    run = train(RUNNING, RUNNING, leaving, last)
    assert "it was evicted (EvictionByEvictionAPI: Eviction API: evicting)" in run.message


def test_pod_past_its_deadline_says_so(train) -> None:
    run = train(RUNNING, status("Failed", reason="DeadlineExceeded", message="too long"))
    assert "DeadlineExceeded: too long" in run.message


@pytest.mark.parametrize(
    ("state", "explanation", "limit", "seconds"),
    [
        (
            waiting("ImagePullBackOff", "Back-off pulling image"),
            "ImagePullBackOff: Back-off pulling image (check the image and its pull secrets)",
            "cannot start: ImagePullBackOff for 120 s (stuckTimeoutSeconds)",
            120,
        ),
        (
            waiting("CreateContainerConfigError", 'secret "ml-pipelines-wandb" not found'),
            'CreateContainerConfigError: secret "ml-pipelines-wandb" not found (check the Secrets',
            "cannot start: CreateContainerConfigError for 120 s (stuckTimeoutSeconds)",
            120,
        ),
        (
            UNSCHEDULABLE,
            "Unschedulable: 0/1 nodes are available: 1 Insufficient memory. (check the task's ",
            "did not start within 600 s (startupTimeoutSeconds)",
            600,
        ),
    ],
    ids=["image", "secret", "unschedulable"],
)
def test_pod_that_does_not_start_fails_at_the_limit_and_says_why(
    train, clock, state: State, explanation: str, limit: str, seconds: int
) -> None:
    run = train(state, events=[("FailedSomething", "the event of the pod")])
    assert isinstance(run.error, AirflowException)
    assert limit in run.message
    assert explanation in run.log.text
    assert "the event of the pod" in run.log.text
    assert seconds <= clock.now - 1000 < seconds + 60
    assert run.cluster.deleted == run.cluster.created
    # Each reason once, not at every look.
    assert run.log.text.count(f"waits: {explanation}") == 1


def test_wait_that_ends_by_itself_is_not_held_against_the_next(train, clock) -> None:
    pulling = [waiting("ErrImagePull", "timeout")] * 200
    run = train(*pulling, waiting("ContainerCreating"), *pulling, RUNNING, RUNNING, SUCCEEDED)
    assert run.error is None
    assert clock.now - 1000 >= 200


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_pod_that_can_never_start_fails_at_once(train, clock, reason: str) -> None:
    run = train(waiting(reason, "of the image"))
    assert "cannot start" in run.message
    assert f"{reason}: of the image" in run.log.text
    assert clock.now - 1000 < 5
    assert run.cluster.deleted == run.cluster.created


@pytest.mark.parametrize(
    "outage",
    [
        ApiException(status=500, reason="Internal Server Error"),
        ApiException(status=429, reason="Too Many Requests"),
        ApiException(status=503, reason="Service Unavailable"),
        ProtocolError("Connection aborted."),
    ],
    ids=["500", "429", "503", "reset"],
)
def test_api_server_that_is_away_for_a_while_costs_no_try(train, clock, outage) -> None:
    run = train(RUNNING, RUNNING, *([outage] * 5), RUNNING, SUCCEEDED)
    assert run.error is None
    assert run.xcoms["return_value"] == RESULT | RAN
    assert 10 <= clock.now - 1000 < 20
    assert "trying again" in run.log.text


def test_api_server_that_starts_may_refuse_for_a_moment(train, clock) -> None:
    away = ProtocolError("Connection aborted.")
    starting = ApiException(status=403, reason="Forbidden")
    run = train(RUNNING, RUNNING, away, away, starting, RUNNING, SUCCEEDED)
    assert run.error is None


OUTAGES = [
    ApiException(status=429, reason="Too Many Requests"),
    ApiException(status=500, reason="Internal Server Error"),
    ProtocolError("Connection aborted."),
]


@pytest.mark.parametrize("request_name", ["create", "delete", "log"])
def test_requests_are_repeated_until_the_api_server_is_back(
    train, clock, request_name: str
) -> None:
    cluster = Cluster([status("Pending"), RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    cluster.refusals[request_name] = list(OUTAGES)
    run = train(cluster=cluster)
    assert run.error is None
    assert run.xcoms["return_value"] == RESULT | RAN
    assert "epoch 1" in run.log.text
    assert len(cluster.created) == 1
    assert cluster.deleted == cluster.created


def test_log_that_cannot_be_read_does_not_end_the_training(train, clock) -> None:
    # With containerd away the kubelet answers 500, and the container runs.
    cluster = Cluster([RUNNING] * 40 + [SUCCEEDED], ["epoch 1"], [])
    cluster.refusals["log"] = [ApiException(status=500, reason="Internal Server Error")] * 500
    run = train(cluster=cluster)
    assert run.error is None
    assert "The log cannot be read: 500 Internal Server Error" in run.log.text


def test_pod_whose_creation_got_lost_on_the_way_is_made_once(train) -> None:
    cluster = Cluster([RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    create = cluster.create_namespaced_pod
    answers = iter([ProtocolError("Connection aborted."), None])

    def lose_the_answer(body: Any, namespace: str) -> k8s.V1Pod:
        if body["metadata"]["name"] in cluster.pods:
            said = json.dumps({"reason": "AlreadyExists"})
            error = ApiException(status=409, reason="Conflict")
            error.body = said
            raise error
        create(body, namespace)
        raise next(answers)

    cluster.create_namespaced_pod = lose_the_answer
    run = train(cluster=cluster)
    assert run.error is None
    assert len(cluster.created) == 1


def refusal(message: str, status: int = 403) -> ApiException:
    error = ApiException(status=status, reason="Forbidden")
    error.body = json.dumps({"message": message, "reason": "Forbidden"})
    return error


def quota(requested: str, used: str, limited: str) -> ApiException:
    return refusal(
        f'pods "train-model-x" is forbidden: exceeded quota: team, requested: {requested}, '
        f"used: {used}, limited: {limited}"
    )


USED_UP = quota(
    "requests.memory=1Gi,pods=1", "requests.memory=3Gi,pods=2", "requests.memory=3Gi,pods=5"
)


def test_pod_waits_for_room_in_the_quota(train, clock) -> None:
    cluster = Cluster([RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    cluster.refusals["create"] = [USED_UP] * 3
    run = train(cluster=cluster)
    assert run.error is None
    assert run.log.text.count("exceeded quota: team, requested: requests.memory=1Gi") == 1
    assert 15 <= clock.now - 1000 < 30


def test_quota_that_stays_used_up_fails_the_try_at_the_limit(train, clock) -> None:
    cluster = Cluster([RUNNING], [], [])
    cluster.refusals["create"] = [USED_UP] * 500
    run = train(cluster=cluster)
    assert "was refused: " in run.message
    assert "exceeded quota: team" in run.message
    assert 600 <= clock.now - 1000 < 660
    assert cluster.created == []


@pytest.mark.parametrize(
    "error",
    [
        quota(
            "requests.memory=4Gi,pods=1", "requests.memory=0,pods=2", "requests.memory=3Gi,pods=5"
        ),
        refusal("failed quota: team: must specify limits.cpu for: base"),
        refusal('Pod "x" is invalid', status=422),
    ],
    ids=["more than there is", "unspecified", "invalid"],
)
def test_pod_that_is_refused_for_good_fails_at_once(train, clock, error: ApiException) -> None:
    cluster = Cluster([RUNNING], [], [])
    cluster.refusals["create"] = [error] * 500
    run = train(cluster=cluster)
    assert json.loads(error.body)["message"] in run.message
    assert clock.now - 1000 < 5


def test_api_server_that_stays_away_fails_the_try_and_keeps_the_pod(train, clock) -> None:
    run = train(RUNNING, RUNNING, ApiException(status=503, reason="Service Unavailable"))
    assert run.error is not None
    # The pod may be running well: the next try follows it.
    assert run.cluster.deleted == []
    assert clock.now - 1000 < 600


def test_refused_request_is_not_repeated(train, clock) -> None:
    run = train(RUNNING, RUNNING, ApiException(status=403, reason="Forbidden"))
    assert "403" in run.message
    assert clock.now - 1000 < 10


def test_pod_that_was_deleted_by_hand_says_so(train) -> None:
    run = train(RUNNING, RUNNING, ApiException(status=404, reason="Not Found"))
    assert "is gone: it was deleted or evicted, or its node was lost" in run.message


def test_next_try_follows_the_pod_that_still_runs(train) -> None:
    first = train(RUNNING, RUNNING, ApiException(status=403, reason="Forbidden"))
    cluster = first.cluster
    (name,) = cluster.created
    cluster.pods[name].metadata.labels.pop("already_checked", None)
    cluster.states = [RUNNING, RUNNING, SUCCEEDED]
    second = train(cluster=cluster)
    assert second.error is None
    assert second.xcoms["return_value"] == RESULT | RAN
    assert cluster.created == [name]
    assert cluster.deleted == [name]


def test_next_try_waits_for_a_pod_that_is_being_deleted(train, clock) -> None:
    cluster = Cluster([RUNNING, RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    leaving = k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(
            name="old",
            namespace="default",
            labels={"try_number": "1"},
            deletion_timestamp=datetime.now(tz=UTC),
        ),
        spec=k8s.V1PodSpec(containers=[], termination_grace_period_seconds=5),
    )
    cluster.pods["old"] = leaving
    cluster.states = [RUNNING, RUNNING, ApiException(status=404), RUNNING, RUNNING, SUCCEEDED]
    run = train(cluster=cluster)
    assert run.error is None
    assert len(cluster.created) == 1
    assert clock.slept[:2] == [0.2, 0.2]


def left_pod(cluster: Cluster, name: str, state: State, age: int = 60) -> None:
    """Leave a pod of an earlier try in the cluster."""
    pod = k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(
            name=name,
            namespace="default",
            labels={"try_number": "1"},
            creation_timestamp=NOW - timedelta(seconds=age),
        ),
        spec=k8s.V1PodSpec(
            containers=[k8s.V1Container(name="base", image=RAN["image"])],
            termination_grace_period_seconds=5,
        ),
    )
    state(pod)
    cluster.pods[name] = pod


NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


def test_success_of_a_pod_whose_worker_died_is_taken_over(train) -> None:
    cluster = Cluster([SUCCEEDED], ["epoch 1"], [])
    left_pod(cluster, "old", SUCCEEDED)
    run = train(cluster=cluster, run_started=NOW - timedelta(seconds=100))
    assert run.error is None
    assert run.xcoms["return_value"] == RESULT | RAN
    assert cluster.created == []
    assert cluster.deleted == ["old"]


def test_failure_of_a_pod_whose_worker_died_is_told_and_not_taken_over(train) -> None:
    # A node that was switched off: the next try must not fail with the pod of the one before.
    cluster = Cluster([RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    left_pod(cluster, "old", ended(255, "Unknown"))
    run = train(cluster=cluster, run_started=NOW - timedelta(seconds=100))
    assert run.error is None
    assert "Pod old of an earlier try failed: Unknown, exit code 255" in run.log.text
    assert len(cluster.created) == 1
    assert KEPT_UNTIL in cluster.pods["old"].metadata.labels


@pytest.mark.parametrize("state", [RUNNING, SUCCEEDED], ids=["running", "succeeded"])
def test_pod_from_before_the_run_was_cleared_is_not_taken_over(train, state: State) -> None:
    cluster = Cluster([RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    left_pod(cluster, "old", state)
    run = train(cluster=cluster, run_started=NOW - timedelta(seconds=20))
    assert run.error is None
    assert len(cluster.created) == 1
    assert cluster.deleted == ["old", *cluster.created]


def test_of_two_pods_the_younger_is_followed_and_the_other_goes(train) -> None:
    cluster = Cluster([RUNNING, RUNNING, SUCCEEDED], ["epoch 1"], [])
    left_pod(cluster, "older", RUNNING, age=90)
    left_pod(cluster, "younger", RUNNING, age=60)
    run = train(cluster=cluster, run_started=NOW - timedelta(seconds=100))
    assert run.error is None
    assert cluster.created == []
    assert cluster.deleted == ["older", "younger"]


class TimeLimit(BaseException):
    """As Airflow's AirflowTaskTimeout: not an Exception, raised in the middle of anything."""


def test_time_limit_stays_the_reason_and_the_pod_goes(train) -> None:
    run = train(RUNNING, RUNNING, TimeLimit("Timeout, PID: 1"), RUNNING)
    assert isinstance(run.error, TimeLimit)
    assert run.cluster.deleted == run.cluster.created
    assert "was stopped" in run.log.text
    # Airflow calls on_kill after a timeout: the pod is gone, nothing is left to complain about.
    run.task.on_kill()
    assert not [line for level, line in run.log.lines if level == "exception"]


def test_killed_task_deletes_its_pod_and_waits_for_its_end(train, clock) -> None:
    def kill(pod: k8s.V1Pod) -> None:
        cluster = train.task.client
        # Deleting takes a moment: two more looks find the pod.
        cluster.states = [RUNNING, RUNNING, ApiException(status=404, reason="Not Found")]
        cluster.delete_namespaced_pod = lambda name, **_: cluster.deleted.append(name)
        before = len(clock.slept)
        train.task.on_kill()
        assert clock.slept[before:] == [0.2, 0.2]
        raise AirflowException("Task received SIGTERM signal")

    run = train(RUNNING, RUNNING, kill)
    assert "SIGTERM" in run.message
    assert run.cluster.deleted == run.cluster.created
