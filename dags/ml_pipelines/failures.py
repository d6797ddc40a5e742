"""Why a pod does not start, or has failed, in words for the task log.

Pods are the Kubernetes client's V1Pod, as the API server reports them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity

# Waiting for these is no use: the image reference itself, or the pull policy, has to change.
HOPELESS_WAITS = ("InvalidImageName", "ErrImageNeverPull")
# These end when somebody does something: makes the Secret, mends the registry.
STUCK_WAITS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
)

_WAIT_HINTS = {
    "ErrImagePull": "check the image and its pull secrets",
    "ImagePullBackOff": "check the image and its pull secrets",
    "InvalidImageName": "check the image",
    "ErrImageNeverPull": "load the image onto the node, or change its pull policy",
    "CreateContainerConfigError": "check the Secrets and ConfigMaps that the pod names",
    "Unschedulable": "check the task's resources, nodeSelector and tolerations, and the claim",
}


def waiting_for(pod: k8s.V1Pod, container: str) -> tuple[str, str] | None:
    """Reason and message of a pod that has not started, e.g. ("ErrImagePull", "not found ...").

    An init container that cannot start comes before the container that waits for it. None when the
    pod does not say what it waits for.
    """
    for status in _init_statuses(pod):
        waits = status.state.waiting if status.state else None
        if waits is not None and waits.reason not in (None, "PodInitializing"):
            return waits.reason, f"init container {status.name}: {waits.message or waits.reason}"
    state = container_state(pod, container)
    if state is not None and state.waiting is not None and state.waiting.reason:
        return state.waiting.reason, state.waiting.message or ""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return condition.reason or "Unschedulable", condition.message or ""
    return None


def explain_wait(reason: str, message: str) -> str:
    """One line for what `waiting_for` found, with what to check where that is known."""
    text = f"{reason}: {message}" if message else reason
    hint = _WAIT_HINTS.get(reason)
    return f"{text} ({hint})" if hint else text


def explain_failure(pod: k8s.V1Pod, container: str) -> str:
    """Why a pod that did not succeed ended, or what it is waiting for."""
    status = pod.status
    reasons = []
    if status.reason:  # Evicted, DeadlineExceeded, NodeLost ...: said of the pod as a whole
        reasons.append(f"{status.reason}: {status.message}" if status.message else status.reason)
    elif eviction := _eviction(pod):
        reasons.append(eviction)
    elif pod.metadata and pod.metadata.deletion_timestamp:
        reasons.append("it was deleted")
    state = container_state(pod, container)
    if state is not None and state.terminated is not None:
        reasons.append(_explain_end(pod, container, state.terminated))
    elif broken := _broken_init(pod):
        name, ended = broken
        reasons.append(f"init container {name}: {_explain_end(pod, name, ended)}")
    elif waiting := waiting_for(pod, container):
        reasons.append(explain_wait(*waiting))
    if not reasons:
        reasons.append(f"its phase is {status.phase}")
    return "; ".join(reasons)


def explain_absence(last_seen: k8s.V1Pod | None) -> str:
    """Why a pod does not exist any more, from how it was seen last."""
    eviction = _eviction(last_seen) if last_seen else None
    return eviction or "it was deleted or evicted, or its node was lost"


def explain_refusal(error: ApiException) -> str:
    """The API server's own words on a request that it refused."""
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = ""
    return message or f"{error.status} {error.reason}"


@dataclass(frozen=True)
class Quota:
    """A ResourceQuota that has no room for a pod; `hopeless` if it never has."""

    hopeless: bool


def quota_in_the_way(error: ApiException) -> Quota | None:
    """The ResourceQuota that refused a pod, None when the refusal has another reason."""
    message = explain_refusal(error)
    if error.status != 403 or "exceeded quota" not in message:
        return None
    amounts = {
        kind: dict(re.findall(r"([\w./-]+)=([\w.]+)", text))
        for kind, text in re.findall(r"(requested|limited): ([^:]*?)(?:, [a-z]+(?=:)|$)", message)
    }
    requested, limited = amounts.get("requested", {}), amounts.get("limited", {})
    return Quota(
        hopeless=any(
            parse_quantity(requested[name]) > parse_quantity(limited[name])
            for name in requested.keys() & limited.keys()
        )
    )


def _eviction(pod: k8s.V1Pod) -> str | None:
    """Who ended the pod and why, if it was evicted, preempted or ended with its node."""
    for condition in (pod.status.conditions if pod.status else None) or []:
        if condition.type == "DisruptionTarget" and condition.status == "True":
            said = (
                f"{condition.reason}: {condition.message}"
                if condition.message
                else (condition.reason)
            )
            return f"it was evicted ({said})"
    return None


def _explain_end(pod: k8s.V1Pod, container: str, ended: k8s.V1ContainerStateTerminated) -> str:
    if ended.reason == "OOMKilled":
        limit = _memory_limit(pod, container)
        return (
            f"OOMKilled: the container needed more memory than its limit of {limit}"
            " (raise the task's resources.limits.memory)"
        )
    if ended.exit_code == 137:
        return "killed by SIGKILL (exit code 137): deleted, or out of memory on the node"
    code = f"exit code {ended.exit_code}"
    if ended.reason not in (None, "", "Error", "Completed"):
        code = f"{ended.reason}, {code}"
    said = _last_words(ended.message or "")
    return f"{code}: {said}" if said else code


def _last_words(message: str) -> str:
    """The workload's own `ERROR: ...` line, else the last line that is not blank."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1]


def _init_statuses(pod: k8s.V1Pod) -> list[k8s.V1ContainerStatus]:
    return pod.status.init_container_statuses or []


def _broken_init(pod: k8s.V1Pod) -> tuple[str, k8s.V1ContainerStateTerminated] | None:
    """The init container that has failed, and how it ended."""
    for status in _init_statuses(pod):
        ended = status.state.terminated if status.state else None
        if ended is not None and ended.exit_code != 0:
            return status.name, ended
    return None


def _memory_limit(pod: k8s.V1Pod, container: str) -> str:
    specs = [*pod.spec.containers, *(pod.spec.init_containers or [])] if pod.spec else []
    for spec in specs:
        if spec.name == container and spec.resources and spec.resources.limits:
            return spec.resources.limits.get("memory", "none (the node's memory)")
    return "none (the node's memory)"


def container_state(pod: k8s.V1Pod, container: str) -> k8s.V1ContainerState | None:
    """The state of a container; None as long as the kubelet has not reported it."""
    for status in pod.status.container_statuses or []:
        if status.name == container:
            return status.state
    return None
