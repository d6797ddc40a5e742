"""What a task has left, and where it comes from: the commit of the DAGs, the image that ran."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from kubernetes.client import models as k8s

# The folder of the DAGs, resolved at import: git-sync may move its link on to another commit.
DIRECTORY = Path(__file__).resolve().parents[1]
GIT_SECONDS = 5
MESSAGE_BYTES = 4096  # where the kubelet cuts a termination message off
FAILURE = "failure"  # XCom with what has ended a task, for the note of its run
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@cache
def dags_commit(directory: Path = DIRECTORY) -> str:
    """Commit of the DAGs that this process runs; '' where nothing says it.

    git-sync and Airflow 3's bundles name a checkout's directory after its commit. In a checkout of
    one's own it is git's HEAD, with `-dirty` when a DAG has changed since.
    """
    for part in reversed(directory.parts):
        if _COMMIT.fullmatch(part):
            return part
    status = ["status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", "."]
    git = ["git", "--no-optional-locks", "-C", str(directory), *status]  # nothing is written
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    # Lines about the branch begin with "#"; those below them are changes.
    found = re.search(rf"^# branch\.oid ({_COMMIT.pattern})(?:\n#.*)*(\n.)?", done.stdout)
    return f"{found[1]}{'-dirty' if found[2] else ''}" if found else ""


def result_of(pod: k8s.V1Pod, container: str, warn: Any) -> Any:
    """The container's termination message, read as JSON; None if it or its pod has failed.

    An object gets `image`, which the pod asked for, and `image_digest` of the one that ran. That is
    the registry's if the node has pulled it from one, else that of its configuration; without one
    it is left out. What is no JSON is told to `warn`. Raises ValueError for what was cut off.
    """
    status = {one.name: one for one in pod.status.container_statuses or []}.get(container)
    ended = status.state.terminated if status else None
    if ended is None or ended.exit_code != 0 or pod.status.phase == "Failed":
        return None
    said = ended.message or "null"
    try:
        result = json.loads(said)
    except json.JSONDecodeError as error:
        if len(said.encode()) >= MESSAGE_BYTES:
            raise ValueError(
                f"the result in /dev/termination-log is longer than the {MESSAGE_BYTES} bytes "
                "that Kubernetes takes: leave it in a file, or set do_xcom_push=True"
            ) from error
        warn("Not a result: the termination message %r", said)
        result = {}
    if result is None or isinstance(result, dict):
        (image,) = (one.image for one in pod.spec.containers if one.name == container)
        result = (result or {}) | {"image": image}
        if digest := _DIGEST.search(status.image_id or ""):
            result["image_digest"] = digest[0]
    return result
