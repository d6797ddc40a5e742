"""Where a result comes from: the commit of the DAGs, and the image that a task really ran."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

# The folder of the DAGs. Resolved while this file is imported: git-sync may move its link on to
# another commit, but this process goes on with what it has read.
DIRECTORY = Path(__file__).resolve().parents[1]
GIT_SECONDS = 5

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@cache
def dags_commit(directory: Path = DIRECTORY) -> str:
    """Commit of the DAGs that this process runs; '' where nothing says it.

    git-sync and the git bundles of Airflow 3 name a checkout's directory after its commit. In a
    checkout of one's own it is git's HEAD, with `-dirty` when a DAG has changed since.
    """
    for part in reversed(directory.parts):
        if _COMMIT.fullmatch(part):
            return part
    status = ["status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", "."]
    try:
        done = subprocess.run(
            # Without locks: nothing is written to the checkout.
            ["git", "--no-optional-locks", "-C", str(directory), *status],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(rf"^# branch\.oid ({_COMMIT.pattern})$", done.stdout, re.MULTILINE)
    changed = re.search(r"^[^#]", done.stdout, re.MULTILINE)
    return f"{found[1]}{'-dirty' if changed else ''}" if found else ""


def digest_in(image_id: str | None) -> str:
    """The `sha256:...` in the image id of a container's status; '' when there is none.

    It is the digest that the registry knows when the node has pulled the image from one, else the
    id of the image (the digest of its configuration).
    """
    found = _DIGEST.search(image_id or "")
    return found[0] if found else ""


def image_digest_of(task_id: str) -> str:
    """Template for the digest of the image that a task of the same run ran; '' if it did not."""
    return f"{{{{ (ti.xcom_pull(task_ids='{task_id}') or {{}}).get('image_digest', '') }}}}"
