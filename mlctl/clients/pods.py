"""What the objects of pods say: ready, stuck, restarted, and why."""

from collections.abc import Iterator, Sequence
from typing import Any

from mlctl.clients.kube import Kube

# Reasons of a waiting container that time alone does not mend.
STUCK = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
}
MANY_RESTARTS = 3

CHECKED = "already_checked"
"""Label of a failed pod whose task has told its end: it stays for a look, until the janitor."""


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the statuses of a pod's containers, init containers first."""
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses", [])
    yield from status.get("containerStatuses", [])


def restarts(pod: dict[str, Any]) -> int:
    """Return how often the pod's containers were restarted, all together."""
    return sum(container["restartCount"] for container in containers(pod))


def is_ready(pod: dict[str, Any]) -> bool:
    """Say whether the pod serves, or has finished its work."""
    status = pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return True
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))


def state(pod: dict[str, Any]) -> str:
    """Return in a few words what the pod is doing, the way `kubectl get pods` does."""
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for container in containers(pod):
        now = container.get("state", {})
        waiting, ended = now.get("waiting"), now.get("terminated")
        if waiting and waiting.get("reason") not in {None, "PodInitializing"}:
            return f"{container['name']}: {waiting['reason']}"
        if ended and ended.get("exitCode"):
            return f"{container['name']}: ended with status {ended['exitCode']}"
        if now.get("running") and not container.get("ready"):
            return f"{container['name']}: running, not ready"
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"not scheduled: {condition.get('message', condition.get('reason', ''))}"
    return pod.get("status", {}).get("phase", "Unknown")


def is_stuck(pod: dict[str, Any]) -> bool:
    """Say whether a container waits for something that time alone does not mend."""
    return any(
        container.get("state", {}).get("waiting", {}).get("reason") in STUCK
        # Between two tries it looks well; so many tries say that it is not.
        or (container["restartCount"] >= MANY_RESTARTS and not container.get("ready"))
        for container in containers(pod)
    )


def component(pod: dict[str, Any]) -> str:
    """Return the part of the release that a pod belongs to, its name when it has no such label."""
    labels = pod["metadata"].get("labels", {})
    for key in ("app.kubernetes.io/component", "component"):
        if labels.get(key):
            return labels[key]
    return pod["metadata"]["name"]


def not_ready(pods: Sequence[dict[str, Any]]) -> str:
    """Return the pods that are not ready and why, in one line ('' when all are)."""
    words = []
    for pod in pods:
        if not is_ready(pod):
            times = f", {restarts(pod)} restarts" if restarts(pod) else ""
            words.append(f"{component(pod)} ({state(pod)}{times})")
    return ", ".join(words)


def last_words(kube: Kube, pods: Sequence[dict[str, Any]]) -> str:
    """Return ``: "last log line"`` of the first container that was restarted and is not well."""
    for pod in pods:
        for container in containers(pod):
            if container["restartCount"] and not container.get("ready"):
                lines = kube.logs(pod["metadata"]["name"], container["name"], 1).strip()
                return f': "{lines}"' if lines else ""
    return ""


def describe_trouble(kube: Kube, *, lines: int = 15) -> str:
    """Return why the namespace is not healthy: its unready pods, their logs, its warnings."""
    text: list[str] = []
    for pod in kube.items("pods"):
        if is_ready(pod) and not restarts(pod):
            continue
        name = pod["metadata"]["name"]
        text.append(f"pod {name}: {state(pod)}, {restarts(pod)} restarts")
        for container in containers(pod):
            now, before = container.get("state", {}), container.get("lastState", {})
            if container.get("ready") and not before.get("terminated"):
                continue
            if now.get("terminated", {}).get("exitCode") == 0:
                continue
            started = now.get("running") or now.get("terminated")
            ended = before.get("terminated")
            if not started and not ended:
                message = now.get("waiting", {}).get("message")
                text += [f"  {container['name']}: {message}"] if message else []
                continue
            if ended:
                why, when = ended.get("reason"), ended.get("finishedAt")
                status = f"status {ended.get('exitCode')}"
                text.append(f"  {container['name']} ended with {status} ({why}) at {when}")
            # What is well again says nothing of what had ended it.
            earlier = not started or bool(container.get("ready"))
            text.append(f"  {container['name']}, last lines of {'that' if earlier else 'the'} log:")
            log = kube.logs(name, container["name"], lines, previous=earlier)
            text += [f"    {line}" for line in log.splitlines()]
    warnings = [e for e in kube.items("events") if e.get("type") == "Warning"]
    warnings.sort(key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
    if warnings:
        text.append("warnings of the namespace, newest last:")
    for event in warnings[-8:]:
        about = event["involvedObject"]
        message = " ".join(event.get("message", "").split())[:300]
        text.append(f"  {about['kind']} {about.get('name', '')}: {event.get('reason')}: {message}")
    return "\n".join(text)
