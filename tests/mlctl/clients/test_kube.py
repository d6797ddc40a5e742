"""What is said about pods."""

from typing import Any

import pytest

from mlctl.clients.pods import describe_trouble, is_ready, is_stuck, not_ready, restarts, state
from tests.helpers.namespace import Namespace


def pod(phase: str = "Running", *, ready: bool = False, **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"name": "p"},
        "status": {"phase": phase, "conditions": conditions, **status},
    }


def container(ready: bool = False, restarts: int = 0, **now: Any) -> dict[str, Any]:
    return {"name": "c", "ready": ready, "restartCount": restarts, "state": now}


CASES = {
    "no status yet": ({"metadata": {"name": "p"}}, "Unknown", False, False),
    "ready": (pod(ready=True, containerStatuses=[container(True, running={})]), "Running", True, 0),
    "finished": (pod("Succeeded"), "Succeeded", True, False),
    "no image": (
        pod("Pending", containerStatuses=[container(waiting={"reason": "ImagePullBackOff"})]),
        "c: ImagePullBackOff",
        False,
        True,
    ),
    "starting": (
        pod("Pending", containerStatuses=[container(waiting={"reason": "ContainerCreating"})]),
        "c: ContainerCreating",
        False,
        False,
    ),
    "init failed": (
        pod("Pending", initContainerStatuses=[container(terminated={"exitCode": 3})]),
        "c: ended with status 3",
        False,
        False,
    ),
    "not ready yet": (
        pod(containerStatuses=[container(running={"startedAt": "now"})]),
        "c: running, not ready",
        False,
        False,
    ),
    "no node": (
        pod(
            "Pending",
            conditions=[{"type": "PodScheduled", "status": "False", "message": "no memory"}],
        ),
        "not scheduled: no memory",
        False,
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_state_of_a_pod(case: str) -> None:
    given, words, ready, stuck = CASES[case]
    assert state(given) == words
    assert is_ready(given) is bool(ready)
    assert is_stuck(given) is bool(stuck)


def test_a_pod_that_goes_is_terminating() -> None:
    going = pod(ready=True)
    going["metadata"]["deletionTimestamp"] = "now"
    assert state(going) == "Terminating"


def test_restarts_of_all_containers_count() -> None:
    status = {
        "initContainerStatuses": [container(restarts=1)],
        "containerStatuses": [container(restarts=2), container()],
    }
    assert restarts(pod(**status)) == 3


def test_not_ready_names_pod_and_reason() -> None:
    waiting = pod("Pending", containerStatuses=[container(waiting={"reason": "ErrImagePull"})])
    assert not_ready([pod("Succeeded"), waiting]) == "p (c: ErrImagePull)"
    assert not_ready([]) == ""
    waiting["metadata"]["labels"] = {"component": "scheduler"}
    waiting["status"]["initContainerStatuses"] = [container(True, restarts=2)]
    assert not_ready([waiting]) == "scheduler (c: ErrImagePull, 2 restarts)"


def test_many_restarts_are_no_accident() -> None:
    def tried(times: int, *, ready: bool = False) -> dict[str, Any]:
        return pod(containerStatuses=[container(ready, restarts=times, running={})])

    assert [is_stuck(tried(times)) for times in (0, 2, 3)] == [False, False, True]
    assert not is_stuck(tried(3, ready=True))


def test_trouble_is_nothing_when_all_is_well() -> None:
    assert (
        describe_trouble(Namespace(pods=[pod(ready=True, containerStatuses=[container(True)])]))
        == ""
    )


@pytest.mark.parametrize(
    ("well", "now", "log"),
    [
        (True, {"running": {"startedAt": "now"}}, "before the restart"),
        (False, {"running": {"startedAt": "now"}}, "after the restart"),
        (False, {"waiting": {"reason": "CrashLoopBackOff"}}, "before the restart"),
    ],
)
def test_trouble_shows_the_log_that_tells_why(well: bool, now: dict[str, Any], log: str) -> None:
    restarted = container(well, restarts=1, **now)
    restarted["lastState"] = {
        "terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "then"}
    }
    told = describe_trouble(Namespace(pods=[pod(ready=well, containerStatuses=[restarted])]))
    assert "c ended with status 137 (OOMKilled) at then" in told
    assert told.endswith(f"\n    {log}")
