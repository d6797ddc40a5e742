"""What the commands and tests ask a cluster for, through kubectl."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.wheels import kubectl

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


class KubectlError(UserError):
    """kubectl ended with an error; the text is what it printed."""


class Kube:
    """One namespace of one cluster."""

    def __init__(self, kubeconfig: Path | str, namespace: str) -> None:
        self.kubeconfig = Path(kubeconfig)
        self.namespace = namespace

    def command(self, *words: str) -> list[str]:
        """Return the kubectl command line for this cluster and namespace."""
        config = ["--kubeconfig", str(self.kubeconfig)] if str(self.kubeconfig) != "." else []
        return [str(kubectl()), *config, "--namespace", self.namespace, *words]

    def run(
        self, *words: str, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return the finished process.

        Raises KubectlError when it fails (unless ``check`` is False) or takes longer than
        ``timeout`` seconds.
        """
        # Without an input of its own kubectl would read the terminal's.
        feed: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        try:
            result = subprocess.run(
                self.command(*words),
                **feed,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {words[0]} gave no answer in {timeout:.0f} s") from None
        if check and result.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(words[:4])}: {result.stderr.strip()}")
        return result

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return one object, or None when there is none."""
        result = self.run("get", kind, name, "--output", "json", "--ignore-not-found")
        return json.loads(result.stdout) if result.stdout.strip() else None

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind in the namespace."""
        only = ["--selector", selector] if selector else []
        return json.loads(self.run("get", kind, "--output", "json", *only).stdout)["items"]

    def secret(self, name: str, key: str) -> str:
        """Return one value of a Secret. Raises KubectlError when there is none."""
        template = f'{{{{index .data "{key}" | base64decode}}}}'
        return self.run("get", "secret", name, "--output", f"go-template={template}").stdout

    def logs(self, pod: str, container: str, lines: int, *, previous: bool = False) -> str:
        """Return the last lines of a container's log; an unreadable log is described."""
        earlier = ["--previous"] if previous else []
        result = self.run(
            "logs", pod, "--container", container, f"--tail={lines}", *earlier, check=False
        )
        return result.stdout if result.returncode == 0 else result.stderr

    def apply(self, manifest: dict[str, Any]) -> None:
        """Create the object or bring it up to date."""
        self.run("apply", "--filename", "-", stdin=json.dumps(manifest))


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
