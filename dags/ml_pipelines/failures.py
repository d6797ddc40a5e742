"""Why a pod does not start, or has failed, in words for the task log.

Pods are the Kubernetes client's V1Pod, as the API server reports them.
"""

from __future__ import annotations

from kubernetes.client import models as k8s

# Waiting for these is no use: the image reference itself, or the pull policy, has to change.
HOPELESS_WAITS = ("InvalidImageName", "ErrImageNeverPull")

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

    None when the pod does not say what it waits for.
    """
    state = _container_state(pod, container)
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
    state = _container_state(pod, container)
    if state is not None and state.terminated is not None:
        reasons.append(_explain_end(pod, container, state.terminated))
    elif waiting := waiting_for(pod, container):
        reasons.append(explain_wait(*waiting))
    if not reasons:
        reasons.append(f"its phase is {status.phase}")
    return "; ".join(reasons)


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


def _memory_limit(pod: k8s.V1Pod, container: str) -> str:
    for spec in pod.spec.containers if pod.spec else []:
        if spec.name == container and spec.resources and spec.resources.limits:
            return spec.resources.limits.get("memory", "none (the node's memory)")
    return "none (the node's memory)"


def _container_state(pod: k8s.V1Pod, container: str) -> k8s.V1ContainerState | None:
    for status in pod.status.container_statuses or []:
        if status.name == container:
            return status.state
    return None
