"""How a pod that does not start, or does not succeed, is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from airflow.exceptions import AirflowException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

from tests.dags.cluster import (
    EVICTED,
    EVICTION,
    PENDING,
    RUNNING,
    RUNNING_STATE,
    STARTING,
    Cluster,
    Status,
    answer,
    ended,
    terminated,
    until,
    waits,
)

UNSCHEDULABLE = Status(
    placed=False,
    more={
        "conditions": [
            k8s.V1PodCondition(
                type="PodScheduled",
                status="False",
                reason="Unschedulable",
                message="0/1 nodes are available: 1 Insufficient memory.",
            )
        ]
    },
)


@pytest.fixture
def run(clock, make_task, run_task):
    """Run a task on a pod with this timeline; its cluster and clock are in what it gives."""

    def run(*timeline: tuple[float, Status], events=(), after: Callable | None = None, **arguments):
        cluster = Cluster(clock, timeline, events=events)
        if after:
            clock.at(20, lambda: after(cluster))
        return run_task(make_task(**arguments), cluster)

    return run


def test_failed_container_is_explained_by_its_error_line(run) -> None:
    said = "loading\nERROR: no accuracy in metrics.json; run `train` first\nbye"
    done = run(*until(10, ended(2, message=said)), events=[("BackOff", "restarting failed one")])
    assert isinstance(done.error, AirflowException)
    assert "failed: exit code 2: ERROR: no accuracy in metrics.json; run `train` first" in (
        done.message
    )
    assert "restarting failed one" in done.log.text
    assert "return_value" not in done.xcoms


def test_failed_pod_stays_for_a_look_and_is_not_met_again(run, run_task, make_task) -> None:
    first = run(*until(10, ended(2)))
    cluster = first.cluster
    (failed,) = cluster.created
    assert cluster.deleted == []
    assert cluster.labels(failed)["already_checked"] == "True"

    cluster.timelines = [until(10, ended(0))]
    second = run_task(make_task(), cluster, try_number=2)
    assert second.error is None
    assert cluster.deleted == cluster.created[1:]
    assert failed not in second.log.text


def test_failed_pod_is_not_dumped(run) -> None:
    done = run(*until(10, ended(2, message="ERROR: x")))
    assert "ML_PIPELINES_RUN_ID" not in done.message + done.log.text
    assert len(done.message) < 200


LIMIT = k8s.V1ResourceRequirements(limits={"memory": "4Gi"})


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            ended(137, "OOMKilled"),
            "OOMKilled: the container needed more memory than its limit of 4Gi (raise the task's "
            "resources.limits.memory)",
        ),
        (ended(137), "killed by SIGKILL (exit code 137)"),
        (ended(2, message="first\n last \n\n"), "failed: exit code 2: last"),
        (ended(2), "failed: exit code 2"),
        (
            Status(
                terminated(143),
                more={"reason": "Evicted", "message": "The node was low on resource: disk."},
            ),
            "Evicted: The node was low on resource: disk.; exit code 143",
        ),
        (
            Status(terminated(143), more={"conditions": [EVICTION]}),
            "it was evicted (EvictionByEvictionAPI: Eviction API: evicting); exit code 143",
        ),
        (
            Status(None, "Failed", more={"reason": "DeadlineExceeded", "message": "too long"}),
            "DeadlineExceeded: too long",
        ),
        (ended(255, "Unknown"), "Unknown, exit code 255"),
    ],
)
def test_the_end_of_a_pod_is_told_in_words(run, status: Status, said: str) -> None:
    done = run(*until(10, status), container_resources=LIMIT)
    assert isinstance(done.error, AirflowException)
    assert said in done.message


INIT = [k8s.V1Container(name="fetch", image="i", resources=LIMIT)]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (terminated(3, message="ERROR: no route"), "exit code 3: ERROR: no route"),
        (terminated(137, "OOMKilled"), "OOMKilled: the container needed more memory than its"),
    ],
)
@pytest.mark.parametrize("get_logs", [True, False])
def test_init_container_that_fails_is_told_like_the_main_one(
    clock, run, state, said: str, get_logs: bool
) -> None:
    waiting = waits("PodInitializing", init={"fetch": RUNNING_STATE})
    failed = waits("PodInitializing", init={"fetch": state})
    done = run((0, PENDING), (1, waiting), (30, failed), init_containers=INIT, get_logs=get_logs)
    assert f"failed: init container fetch: {said}" in done.message
    assert 30 <= clock.passed < 40


@pytest.mark.parametrize(
    ("reason", "seconds"), [("ImagePullBackOff", 120), ("InvalidImageName", 0)], ids=str
)
def test_init_container_that_cannot_start_is_told_like_the_main_one(
    clock, run, reason: str, seconds: int
) -> None:
    pulling = waits(reason, "no such image").base
    waiting = waits("PodInitializing", init={"fetch": pulling})
    done = run((0, PENDING), (1, waiting), init_containers=INIT)
    assert f"cannot start: {reason}" in done.message
    assert f"{reason}: init container fetch: no such image (check the image" in done.log.text
    assert seconds < clock.passed < seconds + 10


def test_pod_evicted_before_it_started_says_so(run) -> None:
    gone = Status(None, "Failed", more={"reason": "Evicted", "message": "DiskPressure."})
    done = run((0, PENDING), (5, gone))
    assert "Evicted: DiskPressure." in done.message


@pytest.mark.parametrize("get_logs", [True, False])
def test_pod_that_was_deleted_by_hand_says_so(run, get_logs: bool) -> None:
    def delete(cluster: Cluster) -> None:
        cluster.delete_namespaced_pod(cluster.created[0], "default", grace_period_seconds=0)

    done = run((0, RUNNING), after=delete, get_logs=get_logs)
    assert isinstance(done.error, AirflowException)
    assert "is gone: it was deleted or evicted, or its node was lost" in done.message


def test_pod_evicted_through_the_api_says_so_when_it_is_gone(run) -> None:
    def evict(cluster: Cluster) -> None:
        made = cluster.made[cluster.created[0]]
        made.timeline = [(0, EVICTED)]
        cluster.delete_namespaced_pod(cluster.created[0], "default", grace_period_seconds=0.5)

    done = run((0, RUNNING), after=evict, get_logs=False)
    assert "it was evicted (EvictionByEvictionAPI: Eviction API: evicting)" in done.message


@pytest.mark.parametrize(
    ("status", "explanation", "limit", "seconds"),
    [
        (
            waits("ImagePullBackOff", "Back-off pulling image"),
            "ImagePullBackOff: Back-off pulling image (check the image and its pull secrets)",
            "cannot start: ImagePullBackOff for 120 s (stuck_timeout_seconds)",
            120,
        ),
        (
            waits("CreateContainerConfigError", 'secret "ml-pipelines-wandb" not found'),
            'CreateContainerConfigError: secret "ml-pipelines-wandb" not found (check the Secrets',
            "cannot start: CreateContainerConfigError for 120 s (stuck_timeout_seconds)",
            120,
        ),
        (
            waits("CreateContainerError", "no such command"),
            "CreateContainerError: no such command",
            "cannot start: CreateContainerError for 120 s (stuck_timeout_seconds)",
            120,
        ),
        (
            UNSCHEDULABLE,
            "Unschedulable: 0/1 nodes are available: 1 Insufficient memory. (check the task's ",
            "did not start within 600 s (s",
            600,
        ),
        (STARTING, "ContainerCreating", "did not start within 600 s (startup_timeout_s", 600),
    ],
    ids=["image", "secret", "container", "unschedulable", "volume"],
)
def test_pod_that_does_not_start_fails_at_the_limit_and_says_why(
    clock, run, status: Status, explanation: str, limit: str, seconds: int
) -> None:
    done = run((0, status), events=[("FailedSomething", "the event of the pod")])
    assert isinstance(done.error, AirflowException)
    assert limit in done.message
    assert "the event of the pod" in done.log.text
    assert seconds <= clock.passed < seconds + 5
    # It would start when its image came, beside the next try.
    assert done.cluster.deleted == done.cluster.created
    # Each reason once, not at every look.
    (line,) = [one for one in done.log.text.splitlines() if f" waits: {explanation}" in one]
    assert line.startswith(f"Pod {done.cluster.created[0]} waits: ")


def test_a_wait_without_a_reason_is_none_to_tell(run) -> None:
    done = run((0, PENDING), (3, RUNNING), (5, ended(0)))
    assert done.error is None
    assert "waits" not in done.log.text


def test_a_second_container_that_cannot_start_is_told(clock, run, settings_file) -> None:
    beside = {"name": "uploader", "image": "none"}
    settings_file({"pod": {"spec": {"containers": [{"name": "base", "image": "i"}, beside]}}})
    pulling = waits("ErrImagePull", "not found").base
    status = waits("ContainerCreating", others={"uploader": pulling})
    done = run((0, status))
    assert "waits: ErrImagePull: container uploader: not found (check the image" in done.log.text
    assert 120 <= clock.passed < 125


def test_limits_of_the_task_and_its_values_hold(clock, run, settings_file) -> None:
    settings_file({"operator": {"stuck_timeout_seconds": 30, "startup_timeout_seconds": 50}})
    done = run((0, waits("ErrImagePull")))
    assert "ErrImagePull for 30 s" in done.message
    done = run((0, waits("ErrImagePull")), stuck_timeout_seconds=40)
    assert "ErrImagePull for 40 s" in done.message
    done = run((0, STARTING))
    assert "within 50 s" in done.message


def test_wait_that_ends_by_itself_is_not_held_against_the_next(clock, run) -> None:
    pulling = waits("ErrImagePull", "timeout")
    done = run((0, pulling), (100, STARTING), (101, pulling), (200, RUNNING), (210, ended(0)))
    assert done.error is None
    assert clock.passed >= 210


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_pod_that_can_never_start_fails_at_once(clock, run, reason: str) -> None:
    done = run((0, waits(reason, "of the image")))
    assert f"cannot start: {reason}" in done.message
    assert f"{reason}: of the image" in done.log.text
    assert clock.passed < 5
    assert done.cluster.deleted == done.cluster.created


def test_events_of_a_start_are_not_told(run) -> None:
    timeline = ((0, STARTING), (5, RUNNING), (9, ended(0)))
    done = run(*timeline, events=[("Pulling", "the event of the pod")])
    assert done.error is None
    assert "the event of the pod" not in done.log.text


PARAMETERS = inspect.signature(KubernetesPodOperator.__init__).parameters
if "log_events_on_startup" in PARAMETERS:

    @pytest.mark.parametrize("wanted", [True, False])
    def test_events_of_a_start_are_told_where_they_are_wanted(clock, run, wanted: bool) -> None:
        timeline = ((0, STARTING), (5, RUNNING), (9, ended(0)))
        events = [("Pulling", "the event of the pod")]
        done = run(*timeline, events=events, log_events_on_startup=wanted)
        assert done.error is None
        assert ("the event of the pod" in done.log.text) is wanted

    def test_events_that_nobody_may_read_are_no_obstacle(clock, make_task, run_task) -> None:
        cluster = Cluster(clock, until(9, ended(0)))
        cluster.trouble(0, 10_000, answer(403, "Forbidden"), "list_namespaced_event")
        done = run_task(make_task(log_events_on_startup=True), cluster)
        assert done.error is None


if "schedule_timeout_seconds" in PARAMETERS:
    # The provider of Airflow 2.9 has one limit for both.
    def test_a_pod_that_is_slow_to_find_a_node_may_start_later(clock, run) -> None:
        done = run((0, UNSCHEDULABLE), (500, STARTING), (900, RUNNING), (910, ended(0)))
        assert done.error is None
        done = run((0, UNSCHEDULABLE), schedule_timeout_seconds=30)
        assert "did not start within 30 s (schedule_timeout_seconds)" in done.message
