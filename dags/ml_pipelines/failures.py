"""How a pod ends: whether it has succeeded, else what is wrong, in words for the task log."""

import json
from contextlib import suppress

from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException

# What a pod waits for, and what to check. Waiting for these is no use: the image reference itself,
# or the pull policy, has to change.
HOPELESS_WAITS = {
    "InvalidImageName": "check the image",
    "ErrImageNeverPull": "load the image onto the node, or change its pull policy",
}
# These end when somebody does something: makes the Secret, mends the registry.
STUCK_WAITS = {
    "ErrImagePull": "check the image and its pull secrets",
    "ImagePullBackOff": "check the image and its pull secrets",
    "CreateContainerConfigError": "check the Secrets and ConfigMaps that the pod names",
    "CreateContainerError": "",
}
UNPLACED = {"Unschedulable": "check the task's resources, nodeSelector, tolerations and claim"}


def waiting_for(pod: k8s.V1Pod, container: str) -> tuple[str, str] | None:
    """Reason and message of a pod that has not started; None if it does not say why."""
    found = []
    for who, status in _containers(pod, container):
        waits = status.state.waiting if status.state else None
        if waits is not None and waits.reason not in (None, "PodInitializing"):
            found.append((waits.reason, who + (waits.message or (waits.reason if who else ""))))
    if found:
        # One of several containers may be what the others wait for.
        return min(found, key=lambda one: one[0] == "ContainerCreating")
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return condition.reason or "Unschedulable", condition.message or ""
    return None


def explain_wait(reason: str, message: str) -> str:
    """One line for what `waiting_for` found, with what to check where that is known."""
    hint = (HOPELESS_WAITS | STUCK_WAITS | UNPLACED).get(reason)
    return _said(reason, message) + (f" ({hint})" if hint else "")


def has_succeeded(pod: k8s.V1Pod) -> bool:
    """Whether all containers of a pod have ended well, and nothing has ended it as a whole.

    Its phase says so a second later, when the kubelet has looked at the containers once more
    (pkg/kubelet/kubelet_pods.go, generateAPIPodStatus: one that may still have some is Running).
    """
    ended = [one.state.terminated for one in pod.status.container_statuses or [] if one.state]
    return (
        bool(ended)
        and pod.status.phase != "Failed"
        and pod.spec.restart_policy != "Always"
        and len(ended) == len(pod.spec.containers)
        and all(one is not None and one.exit_code == 0 for one in ended)
        and _whole(pod) is None
    )


def explain_failure(pod: k8s.V1Pod, container: str) -> str:
    """Why a pod that did not succeed ended, or what it is waiting for."""
    whole, ends = _whole(pod), {}
    for who, one in _containers(pod, container):
        if one.state and one.state.terminated and one.state.terminated.exit_code != 0:
            ends[who] = who + _explain_end(pod, one.name, one.state.terminated)
    part = ends.get("") or next(iter(ends.values()), None)  # its own container's, else the first's
    if part is None and (waiting := waiting_for(pod, container)):
        part = explain_wait(*waiting)
    return "; ".join(filter(None, (whole, part))) or f"its phase is {pod.status.phase}"


def explain_absence(last_seen: k8s.V1Pod | None) -> str:
    """Why a pod does not exist any more, from how it was seen last."""
    eviction = _eviction(last_seen) if last_seen else None
    return eviction or "it was deleted or evicted, or its node was lost"


def explain_refusal(error: Exception) -> str:
    """A failed request in a few words, those of the API server if it has answered with some."""
    if not isinstance(error, ApiException):
        return f"{type(error).__name__}: {error}"
    with suppress(TypeError, ValueError, KeyError):
        return json.loads(error.body)["message"] or error.reason
    return f"{error.status} {error.reason}"


def exceeds_quota(error: ApiException) -> bool:
    """Whether a pod was refused as a ResourceQuota has no room for it now."""
    return error.status == 403 and "exceeded quota" in explain_refusal(error)


def _said(what: str, more: str | None) -> str:
    return f"{what}: {more}" if more else what


def _whole(pod: k8s.V1Pod) -> str | None:
    """What has ended the pod as a whole: Evicted, DeadlineExceeded ...; None if nothing has."""
    if pod.status.reason:
        return _said(pod.status.reason, pod.status.message)
    return _eviction(pod) or ("it was deleted" if pod.metadata.deletion_timestamp else None)


def _eviction(pod: k8s.V1Pod) -> str | None:
    """Who ended the pod and why, if it was evicted, preempted or ended with its node."""
    for condition in pod.status.conditions or []:
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return f"it was evicted ({_said(condition.reason, condition.message)})"
    return None


def _explain_end(pod: k8s.V1Pod, container: str, ended: k8s.V1ContainerStateTerminated) -> str:
    if ended.reason == "OOMKilled":
        containers = [*pod.spec.containers, *(pod.spec.init_containers or [])]
        (limits,) = [one.resources.limits for one in containers if one.name == container]
        limit = (limits or {}).get("memory", "the node's memory")
        needed = f"the container needed more memory than its limit of {limit}"
        return f"OOMKilled: {needed} (raise the task's resources.limits.memory)"
    if ended.exit_code == 137:
        return "killed by SIGKILL (exit code 137): deleted, or out of memory on the node"
    code = f"exit code {ended.exit_code}"
    if ended.reason not in (None, "", "Error", "Completed"):
        code = f"{ended.reason}, {code}"
    # The workload's own `ERROR: ...` line, else the last line that is not blank.
    lines = [line.strip() for line in (ended.message or "").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return _said(code, (errors or lines or [""])[-1])


def _containers(pod: k8s.V1Pod, own: str) -> list[tuple[str, k8s.V1ContainerStatus]]:
    """The containers that have been reported, in the order of their start; '' names the own one."""
    init = [("init container", one) for one in pod.status.init_container_statuses or []]
    found = init + [("container", one) for one in pod.status.container_statuses or []]
    return [("" if one.name == own else f"{what} {one.name}: ", one) for what, one in found]
