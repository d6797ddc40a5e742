"""The pod manager alone: how long it waits for what, to the second."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ml_pipelines.pod_manager import PatientPodManager, is_transient
from tests.dags.cluster import (
    RUNNING,
    RUNNING_STATE,
    STARTING,
    XCOM_SIDECAR,
    Clock,
    Cluster,
    Log,
    Status,
    answer,
    ended,
    terminated,
)

RESET = HTTPError("reset")
NO_RIGHT = answer(403, "Forbidden", "not you")


@pytest.fixture
def cluster(clock: Clock) -> Cluster:
    clock.start = clock.now = 1_800_000_000.0  # sums of whole seconds are exact
    return Cluster(clock)


@pytest.fixture
def manager(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(PodManager, "log", Log())
    return PatientPodManager.of(PodManager(cluster))


def test_a_request_is_repeated_for_two_minutes(clock, cluster, manager) -> None:
    cluster.trouble(0, 119, RESET)
    assert manager.request("list_namespaced_pod", "default").items == []
    assert clock.slept == [2] * 60
    said = [("warning", "Kubernetes API: HTTPError: reset; trying again")]
    assert manager.log.lines == said
    cluster.trouble(0, 10_000, RESET)
    with pytest.raises(HTTPError):
        manager.request("list_namespaced_pod", "default")
    assert clock.slept == [2] * 120
    assert manager.log.lines == 2 * said


def test_a_node_is_lost_a_minute_after_the_grace_period(clock, cluster, manager) -> None:
    cluster.lost_node = True
    pod = cluster.add("a", [(0, RUNNING), (500, ended(0))])
    manager.delete_pod(pod)
    clock.advance(30 + 60)
    assert manager.read_pod(pod) is manager.last_seen
    clock.advance(1)
    with pytest.raises(ApiException, match=r"404.*\nReason: Its node does not answer"):
        manager.read_pod(pod)
    clock.advance(400)  # it was not lost after all
    assert manager.read_pod(pod).status.phase == "Succeeded"


@pytest.fixture
def unwatched(cluster: Cluster) -> None:
    """Nobody gives the right to watch."""
    cluster.trouble(0, 10_000, NO_RIGHT, "watch_namespaced_pod")


def slept(clock: Clock) -> set[float]:
    return {round(seconds, 3) for seconds in clock.slept}


def test_what_the_log_says_of_the_end_is_believed_for_a_moment(
    clock, cluster, manager, unwatched
) -> None:
    pod = cluster.add("a", [(0, RUNNING)])
    pod.spec.containers.append(k8s.V1Container(name=XCOM_SIDECAR))
    assert manager.container_is_running(pod, "base") is True
    assert slept(clock) == {0.2}
    assert 1.5 < clock.passed < 1.9
    clock.slept.clear()
    assert manager.container_is_running(pod, XCOM_SIDECAR) is True
    assert clock.slept == []


def test_the_end_of_a_log_is_believed_while_the_pod_is_watched(clock, cluster, manager) -> None:
    pod = cluster.add("a", [(0, RUNNING)])
    pod.spec.containers.append(k8s.V1Container(name=XCOM_SIDECAR))
    assert manager.container_is_running(pod, "base") is True
    passed = clock.passed
    assert 1.5 < passed < 2.2
    assert manager.container_is_running(pod, XCOM_SIDECAR) is True
    assert clock.passed == passed


def test_a_log_that_cannot_be_read_is_asked_for_less_and_less(clock, cluster, manager) -> None:
    pod = cluster.add("a", [(0, RUNNING)])

    def pause() -> float:
        before = clock.now
        assert list(manager.read_pod_logs(pod, "base")) == []
        return clock.now - before

    refused = answer(403, "Forbidden", "not you")
    cluster.trouble(0, 10_000, refused, "read_namespaced_pod_log")
    assert [pause() for _ in range(8)] == [2, 4, 8, 16, 32, 64, 120, 120]
    assert set(clock.slept) == {2}
    assert set(manager.log.lines) == {("warning", "The log cannot be read: not you")}
    cluster.troubles.clear()
    assert manager.read_pod_logs(pod, "base")
    cluster.trouble(0, 10_000, refused, "read_namespaced_pod_log")
    assert pause() == 2


@pytest.mark.parametrize(
    ("asked", "last", "after"),
    [
        ({}, "last", 9),  # the whole pod
        ({}, XCOM_SIDECAR, 9),
        ({"istio_enabled": True}, "last", 3),  # its container "base"
        ({"istio_enabled": True, "container_name": "helper"}, "last", 6),
        ({"do_xcom_push": True}, "last", 9),  # there is no sidecar that would go on
        ({"do_xcom_push": True}, XCOM_SIDECAR, 3),
    ],
)
@pytest.mark.parametrize("watched", [True, False])
def test_what_is_waited_for(
    clock, cluster, manager, request, asked: dict[str, Any], last: str, after: float, watched: bool
) -> None:
    if not watched:
        request.getfixturevalue("unwatched")
    going = {"helper": RUNNING_STATE, last: RUNNING_STATE}
    timeline = [
        (0, RUNNING),
        (3, ended(0, others=going)),
        (6, ended(0, others=going | {"helper": terminated(0)})),
        (9, ended(0, others=dict.fromkeys(going, terminated(0)))),
    ]
    pod = cluster.add("a", timeline, age=0)
    pod.spec.containers += [k8s.V1Container(name=name) for name in going]
    manager.await_pod_completion(pod, **asked)
    assert clock.passed == pytest.approx(after, abs=0.21)
    assert slept(clock) == ({0} if watched else {0.2})


@pytest.mark.parametrize(
    ("more", "after"), [({}, 3), ({"reason": "DeadlineExceeded", "message": "too long"}, 4)]
)
def test_a_pod_has_succeeded_before_its_phase_says_so(
    clock, cluster, manager, more: dict[str, Any], after: float
) -> None:
    end = [(3, ended(0, phase="Running", more=more)), (4, ended(0, phase="Failed", more=more))]
    pod = cluster.add("a", [(0, RUNNING), *end], age=0)
    seen = manager.await_pod_completion(pod)
    assert clock.passed == pytest.approx(after, abs=0.21)
    assert seen.status.phase == ("Failed" if more else "Succeeded")
    assert manager.last_seen is seen
    manager.await_deletion(pod)
    assert clock.passed == pytest.approx(after, abs=0.21)


def test_a_container_is_waited_for_by_its_name(clock, cluster, manager) -> None:
    going = {"helper": RUNNING_STATE, "last": RUNNING_STATE}
    timeline = [(0, RUNNING), (6, Status(RUNNING_STATE, others={"helper": terminated(0)}))]
    pod = cluster.add("a", timeline, age=0)
    pod.spec.containers += [k8s.V1Container(name=name) for name in going]
    manager.await_container_completion(pod, "helper", polling_time=0.5)
    assert clock.passed == pytest.approx(6, abs=0.1)


def test_without_a_watch_a_container_is_asked_for_by_its_name(
    clock, cluster, manager, unwatched
) -> None:
    timeline = [(0, RUNNING), (6, Status(RUNNING_STATE, others={"helper": terminated(0)}))]
    pod = cluster.add("a", timeline, age=0)
    pod.spec.containers.append(k8s.V1Container(name="helper"))
    manager.await_container_completion(pod, "helper", polling_time=0.5)
    assert clock.passed == 6
    assert slept(clock) == {0.5}


def test_a_change_is_seen_at_once_and_nothing_is_asked_before(clock, cluster, manager) -> None:
    pod = cluster.add("a", [(0, STARTING), (40.5, RUNNING)], age=0)
    seen = manager.read_pod(pod)
    cluster.trouble(0, 40, answer(500, "Internal Server Error"), "read_namespaced_pod")
    manager.await_change(seen, 60)
    assert clock.passed == pytest.approx(40.5, abs=0.1)
    assert clock.slept == []


@pytest.mark.parametrize("seconds", [0.2, 1, 5])
def test_a_pod_that_does_not_change_is_looked_at_again(clock, cluster, manager, seconds) -> None:
    """A second is the shortest watch."""
    pod = cluster.add("a", [(0, RUNNING)])
    manager.await_change(manager.read_pod(pod), seconds)
    assert clock.passed == pytest.approx(max(1, seconds), abs=0.1)


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (NO_RIGHT, 0),
        (RESET, 0),
        (RESET, 0.4),  # while it was watched
    ],
)
def test_without_a_watch_the_pod_is_looked_at_by_and_by(
    clock, cluster, manager, error: Exception, after: float
) -> None:
    pod = cluster.add("a", [(0, STARTING), (0.6, RUNNING)], age=0)
    seen = manager.read_pod(pod)
    cluster.trouble(after, 10, error, "watch_namespaced_pod")
    manager.await_change(seen, 2.5)
    assert clock.passed == pytest.approx(2.5)


@pytest.mark.parametrize("there", [False, True], ids=["no sidecar", "sidecar"])
def test_the_sidecar_for_xcoms_is_waited_for_where_there_is_one(
    cluster, manager, monkeypatch, there: bool
) -> None:
    waited = []
    monkeypatch.setattr(
        PodManager,
        "await_xcom_sidecar_container_start",
        lambda self, *args, **kwargs: waited.append((args, kwargs)),
    )
    pod = cluster.add("a", [(0, RUNNING)])
    if there:
        pod.spec.containers.append(k8s.V1Container(name=XCOM_SIDECAR))
    manager.await_xcom_sidecar_container_start(pod, 900, log_interval=30)  # a newer provider's
    assert waited == ([((pod, 900), {"log_interval": 30})] if there else [])
    # What was seen last is not asked for again.
    cluster.trouble(0, 10_000, answer(500, "away"))
    manager.await_xcom_sidecar_container_start(pod)
    assert waited[1:] == ([((pod,), {})] if there else [])


QUOTA = answer(403, "Forbidden", "exceeded quota: team")


@pytest.mark.parametrize(
    ("error", "first", "later"),
    [
        (RESET, True, True),
        (answer(401, "Unauthorized"), False, True),
        (answer(403, "Forbidden"), False, True),
        (QUOTA, False, False),
        (answer(409, "Conflict", why="AlreadyExists"), False, False),
        (answer(409, "Conflict"), True, True),
        (answer(0, "no answer"), True, True),
        (answer(None, "no answer"), True, True),
        (answer(429, "Too Many Requests"), True, True),
        (answer(500, "Internal Server Error"), True, True),
        (answer(499, "of a proxy"), False, False),
        (answer(404, "Not Found"), False, False),
        (answer(422, "Unprocessable Entity"), False, False),
    ],
    ids=lambda one: str(getattr(one, "status", one)),
)
def test_what_may_succeed_in_a_moment(error: Exception, first: bool, later: bool) -> None:
    assert is_transient(error) is first
    assert is_transient(error, outage=True) is later
