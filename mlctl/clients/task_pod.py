"""One command of the workload, in a pod like those of the tasks, that belongs to no run."""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from ml_pipelines.settings import merge
from mlctl.base.errors import UserError
from mlctl.base.waiting import until
from mlctl.clients.kube import Kube
from mlctl.clients.pods import is_stuck, state

SECONDS = 120
CLI = ["python", "classic_example/cli.py"]


def run_in_task_pod(
    kube: Kube, settings: dict[str, Any], preset: str, command: Sequence[str]
) -> dict[str, Any]:
    """Return the result of a command of the workload, with a preset of the settings.

    Raises UserError when it fails, with its own words, when the pod cannot start, and after
    SECONDS.
    """
    pod = manifest(settings, preset, command)
    name = pod["metadata"]["name"]
    seen: dict[str, Any] = {"metadata": {}}

    def ended() -> bool:
        nonlocal seen
        seen = kube.get("pod", name) or {"metadata": {}}
        if is_stuck(seen):
            raise UserError(f"the pod {name} cannot start: {state(seen)}")
        return seen.get("status", {}).get("phase") in {"Succeeded", "Failed"}

    kube.apply(pod)
    try:
        until(SECONDS, ended, lambda: f"the pod {name}: {state(seen)}", poll=0.2)
        log = kube.logs(name, "base", 1).strip()
        if seen["status"]["phase"] == "Failed":
            raise UserError(log.removeprefix("ERROR: ") or state(seen))
        return json.loads(log.removeprefix("RESULT "))
    finally:
        kube.run("delete", "pod", name, "--wait=false", "--ignore-not-found")


def manifest(settings: dict[str, Any], preset: str, command: Sequence[str]) -> dict[str, Any]:
    """Return the Pod: the tasks' own, with an empty volume in place of a run's directory."""
    own = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{command[0]}-{secrets.token_hex(4)}"},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": SECONDS,
            "containers": [
                {
                    "name": "base",
                    "command": [*CLI, *command],
                    "volumeMounts": [{"name": "training-storage", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "training-storage", "emptyDir": {}}],
        },
    }
    of_preset = settings["presets"][preset].get("pod", {})
    return merge(merge(settings["pod"], of_preset), own)
