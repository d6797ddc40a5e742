"""The words for pods that do not start or have failed, without an operator around them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.client import models as k8s
from urllib3.exceptions import HTTPError

from ml_pipelines import failures
from tests.dags.cluster import answer

WHEN = datetime(2026, 11, 23, tzinfo=UTC)


def container(name: str, memory: str | None = None) -> k8s.V1Container:
    limits = {"memory": memory} if memory else {"cpu": "1"}
    return k8s.V1Container(name=name, resources=k8s.V1ResourceRequirements(limits=limits))


def status(name: str, **state: Any) -> k8s.V1ContainerStatus:
    """Of a container; without a state it is one that the kubelet has not looked at."""
    return k8s.V1ContainerStatus(
        name=name,
        image="i",
        image_id="",
        ready=False,
        restart_count=0,
        state=k8s.V1ContainerState(**state) if state else None,
    )


def waits(name: str, reason: str | None, message: str | None = None) -> k8s.V1ContainerStatus:
    return status(name, waiting=k8s.V1ContainerStateWaiting(reason=reason, message=message))


def ended(
    name: str, exit_code: int, reason: str | None = "Error", message: str | None = None
) -> k8s.V1ContainerStatus:
    end = k8s.V1ContainerStateTerminated(exit_code=exit_code, reason=reason, message=message)
    return status(name, terminated=end)


def runs(name: str) -> k8s.V1ContainerStatus:
    return status(name, running=k8s.V1ContainerStateRunning())


def condition(type: str, status: str, reason: str | None = None, message: str | None = None) -> Any:
    return k8s.V1PodCondition(type=type, status=status, reason=reason, message=message)


def pod(
    *of_containers: k8s.V1ContainerStatus,
    init: list[k8s.V1ContainerStatus] | None = None,
    deleted: bool = False,
    containers: list[k8s.V1Container] | None = None,
    init_containers: list[k8s.V1Container] | None = None,
    restart_policy: str | None = None,
    phase: str = "Failed",
    **more: Any,
) -> k8s.V1Pod:
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="a", deletion_timestamp=WHEN if deleted else None),
        spec=k8s.V1PodSpec(
            containers=containers or [container("base", "4Gi")],
            init_containers=init_containers,
            restart_policy=restart_policy,
        ),
        status=k8s.V1PodStatus(
            phase=phase,
            container_statuses=list(of_containers) or None,
            init_container_statuses=init,
            **more,
        ),
    )


UNPLACED = condition("PodScheduled", "False", "Unschedulable", "no node")
READY = condition("Ready", "False", "ContainersNotReady", "not ready")
EVICTED = condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "draining")


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (pod(), None),
        (pod(runs("base")), None),
        (pod(status("base")), None),
        (pod(waits("base", None)), None),
        (pod(waits("base", "PodInitializing")), None),
        (pod(waits("base", "ErrImagePull", "no such image")), ("ErrImagePull", "no such image")),
        (pod(waits("base", "ContainerCreating")), ("ContainerCreating", "")),
        (
            pod(waits("helper", "ErrImagePull", "no such image")),
            ("ErrImagePull", "container helper: no such image"),
        ),
        (
            pod(waits("base", "PodInitializing"), init=[waits("fetch", "CrashLoopBackOff")]),
            ("CrashLoopBackOff", "init container fetch: CrashLoopBackOff"),
        ),
        # One of several may be what the others wait for, wherever it stands.
        (
            pod(waits("base", "ContainerCreating"), waits("helper", "ErrImagePull", "none")),
            ("ErrImagePull", "container helper: none"),
        ),
        (
            pod(waits("base", "ErrImagePull", "none"), waits("helper", "ContainerCreating")),
            ("ErrImagePull", "none"),
        ),
        # The order is that of their start.
        (
            pod(waits("base", "ErrImagePull", "b"), init=[waits("fetch", "ErrImagePull", "a")]),
            ("ErrImagePull", "init container fetch: a"),
        ),
        (pod(conditions=[READY, UNPLACED]), ("Unschedulable", "no node")),
        (pod(conditions=[condition("PodScheduled", "False")]), ("Unschedulable", "")),
        (
            pod(conditions=[condition("PodScheduled", "False", "SchedulingGated")]),
            ("SchedulingGated", ""),
        ),
        (pod(conditions=[condition("PodScheduled", "True")]), None),
        (pod(conditions=[READY]), None),
        (pod(waits("base", "ErrImagePull", "a"), conditions=[UNPLACED]), ("ErrImagePull", "a")),
    ],
)
def test_what_a_pod_waits_for(seen: k8s.V1Pod, found: tuple[str, str] | None) -> None:
    assert failures.waiting_for(seen, "base") == found


@pytest.mark.parametrize(
    ("reason", "message", "line"),
    [
        ("InvalidImageName", "bad", "InvalidImageName: bad (check the image)"),
        (
            "ErrImageNeverPull",
            "",
            "ErrImageNeverPull (load the image onto the node, or change its pull policy)",
        ),
        ("ErrImagePull", "", "ErrImagePull (check the image and its pull secrets)"),
        ("ImagePullBackOff", "", "ImagePullBackOff (check the image and its pull secrets)"),
        (
            "CreateContainerConfigError",
            "",
            "CreateContainerConfigError (check the Secrets and ConfigMaps that the pod names)",
        ),
        ("CreateContainerError", "why", "CreateContainerError: why"),
        (
            "Unschedulable",
            "no node",
            "Unschedulable: no node (check the task's resources, nodeSelector, tolerations and "
            "claim)",
        ),
        ("ContainerCreating", "", "ContainerCreating"),
    ],
)
def test_a_wait_is_told_with_what_to_check(reason: str, message: str, line: str) -> None:
    assert failures.explain_wait(reason, message) == line


def test_waits_that_end_a_try_are_waits_of_containers() -> None:
    assert set(failures.HOPELESS_WAITS) == {"InvalidImageName", "ErrImageNeverPull"}
    assert set(failures.STUCK_WAITS) == {
        "ErrImagePull",
        "ImagePullBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
    }


OOM = "OOMKilled: the container needed more memory than its limit of {} (raise the task's "
OOM += "resources.limits.memory)"
KILLED = "killed by SIGKILL (exit code 137): deleted, or out of memory on the node"
BOTH = [container("base", "4Gi"), container("helper", "1Gi")]
UNLIMITED = k8s.V1Container(name="base", resources=k8s.V1ResourceRequirements())


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (pod(), "its phase is Failed"),
        (pod(runs("base"), status("helper")), "its phase is Failed"),
        (pod(ended("base", 0, "Completed")), "its phase is Failed"),
        (pod(ended("base", 2)), "exit code 2"),
        (pod(ended("base", 2, None)), "exit code 2"),
        (pod(ended("base", 2, "")), "exit code 2"),
        (pod(ended("base", 2, "Completed")), "exit code 2"),
        (pod(ended("base", 128, "StartError")), "StartError, exit code 128"),
        (pod(ended("base", 2, message=" first\n last \n\n")), "exit code 2: last"),
        (
            pod(ended("base", 2, message="ERROR: the first\nERROR: why\nat the end")),
            "exit code 2: ERROR: why",
        ),
        (pod(ended("base", 137)), KILLED),
        (pod(ended("base", 137, "OOMKilled")), OOM.format("4Gi")),
        # Without a limit of its own it was the node's memory.
        (
            pod(ended("base", 137, "OOMKilled"), containers=[container("base")]),
            OOM.format("the node's memory"),
        ),
        (
            pod(ended("base", 137, "OOMKilled"), containers=[UNLIMITED]),
            OOM.format("the node's memory"),
        ),
        # Its own container's end, else the first one's.
        (pod(ended("helper", 3), ended("base", 2), containers=BOTH), "exit code 2"),
        (
            pod(ended("helper", 137, "OOMKilled"), containers=BOTH),
            "container helper: " + OOM.format("1Gi"),
        ),
        (
            pod(
                ended("helper", 3),
                init=[ended("fetch", 137, "OOMKilled")],
                init_containers=[container("fetch", "2Gi")],
            ),
            "init container fetch: " + OOM.format("2Gi"),
        ),
        # Of the pod as a whole, before that of a container.
        (pod(ended("base", 143), reason="Evicted", message="disk"), "Evicted: disk; exit code 143"),
        (pod(reason="DeadlineExceeded"), "DeadlineExceeded"),
        (
            pod(ended("base", 143), conditions=[READY, EVICTED]),
            "it was evicted (EvictionByEvictionAPI: draining); exit code 143",
        ),
        (pod(reason="Evicted", message="disk", conditions=[EVICTED]), "Evicted: disk"),
        (pod(deleted=True), "it was deleted"),
        (
            pod(deleted=True, conditions=[EVICTED]),
            "it was evicted (EvictionByEvictionAPI: draining)",
        ),
        (
            pod(conditions=[condition("DisruptionTarget", "False", "x"), UNPLACED]),
            "Unschedulable: no node (check the task's resources, nodeSelector, tolerations and "
            "claim)",
        ),
        (pod(ended("base", 2), waits("helper", "ErrImagePull")), "exit code 2"),
        (
            pod(waits("base", "ErrImagePull", "none"), deleted=True),
            "it was deleted; ErrImagePull: none (check the image and its pull secrets)",
        ),
    ],
)
def test_why_a_pod_has_failed(seen: k8s.V1Pod, said: str) -> None:
    assert failures.explain_failure(seen, "base") == said


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (None, "it was deleted or evicted, or its node was lost"),
        (pod(), "it was deleted or evicted, or its node was lost"),
        (pod(conditions=[EVICTED]), "it was evicted (EvictionByEvictionAPI: draining)"),
    ],
)
def test_why_a_pod_is_gone(seen: k8s.V1Pod | None, said: str) -> None:
    assert failures.explain_absence(seen) == said


TWO = [container("base"), container("helper")]


@pytest.mark.parametrize(
    ("seen", "succeeded"),
    [
        (pod(ended("base", 0), phase="Running"), True),
        (pod(ended("base", 0), phase="Running", restart_policy="OnFailure"), True),
        (pod(ended("base", 0), phase="Succeeded"), True),
        (pod(ended("base", 0), ended("helper", 0), containers=TWO, phase="Running"), True),
        # The kubelet ends such an init container when the others have ended.
        (pod(ended("base", 0), init=[runs("mesh")], phase="Running"), True),
        (pod(ended("base", 0), conditions=[READY], phase="Running"), True),
        (pod(phase="Running"), False),
        (pod(status("base"), phase="Running"), False),
        (pod(runs("base"), phase="Running"), False),
        (pod(ended("base", 3), phase="Running"), False),
        (pod(ended("base", 0), runs("helper"), containers=TWO, phase="Running"), False),
        (pod(ended("base", 0), ended("helper", 1), containers=TWO, phase="Running"), False),
        # The other one is not reported yet.
        (pod(ended("base", 0), containers=TWO, phase="Running"), False),
        # It is started again.
        (pod(ended("base", 0), phase="Running", restart_policy="Always"), False),
        # Told to end, and left with 0: not by itself.
        (pod(ended("base", 0), phase="Running", deleted=True), False),
        (pod(ended("base", 0), phase="Running", reason="DeadlineExceeded"), False),
        (pod(ended("base", 0), phase="Running", conditions=[EVICTED]), False),
        (pod(ended("base", 0), phase="Failed"), False),
    ],
)
def test_whether_a_pod_has_succeeded(seen: k8s.V1Pod, succeeded: bool) -> None:
    assert failures.has_succeeded(seen) is succeeded


def body(error: Any, text: Any) -> Any:
    error.body = text
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (answer(403, "Forbidden", "not you"), "not you"),
        (body(answer(502, "Bad Gateway"), "<html>"), "502 Bad Gateway"),
        (body(answer(502, "Bad Gateway"), None), "502 Bad Gateway"),
        (body(answer(502, "Bad Gateway"), "{}"), "502 Bad Gateway"),
        (body(answer(502, "Bad Gateway"), "[]"), "502 Bad Gateway"),
        (HTTPError("reset"), "HTTPError: reset"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(error: Any, said: str) -> None:
    assert failures.explain_refusal(error) == said


@pytest.mark.parametrize(
    ("error", "exceeded"),
    [
        (answer(403, "Forbidden", 'pods "a" is forbidden: exceeded quota: team, used: 2'), True),
        (answer(403, "Forbidden", "failed quota: team: must specify limits.cpu"), False),
        (answer(422, "Unprocessable Entity", "exceeded quota"), False),
    ],
)
def test_a_quota_that_is_used_up_is_known(error: Any, exceeded: bool) -> None:
    assert failures.exceeds_quota(error) is exceeded
