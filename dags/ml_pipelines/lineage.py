"""Where a result comes from: the commit of the DAGs, and the image that a task really ran."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

from kubernetes.client import models as k8s

# The folder of the DAGs, resolved at import: git-sync may move its link on to another commit.
DIRECTORY = Path(__file__).resolve().parents[1]
GIT_SECONDS = 5
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
    # Without locks: nothing is written to the checkout.
    git = ["git", "--no-optional-locks", "-C", str(directory), *status]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(rf"^# branch\.oid ({_COMMIT.pattern})$", done.stdout, re.MULTILINE)
    changed = re.search(r"^[^#]", done.stdout, re.MULTILINE)
    return f"{found[1]}{'-dirty' if changed else ''}" if found else ""


def image_of(pod: k8s.V1Pod, container: str) -> dict[str, str]:
    """`image`, which the pod asked for, and `image_digest` of the one that its node ran.

    The digest is the registry's if the node has pulled the image from one, else that of the image's
    configuration; without one it is left out.
    """
    found = {one.name: {"image": one.image} for one in pod.spec.containers}.get(container, {})
    for status in pod.status.container_statuses or []:
        if status.name == container and (digest := _DIGEST.search(status.image_id or "")):
            found["image_digest"] = digest[0]
    return found


def image_digest_of(task_id: str) -> str:
    """Template for the digest of the image that a task (mapped: its first pod) ran, or ''."""
    return (
        f"{{% set result = ti.xcom_pull(task_ids='{task_id}') %}}"
        "{% set one = result if result is mapping else (result or [{}])|first %}"
        "{{ one.get('image_digest', '') }}"
    )
