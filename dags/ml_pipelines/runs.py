"""Where a run keeps its files on the training storage.

Each run owns one directory of the claim, `<dag id>/<run directory>`, and every pod of the run
mounts it at /tmp: runs at the same time cannot meet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from ml_pipelines.lineage import dags_commit

# The mount path of the source document: its command lines name /tmp/data/, /tmp/results/ ...
MOUNT_PATH = "/tmp"

SLUG_LENGTH = 80  # characters; with the digest well below the 255 bytes of a file name

RUN_DIRECTORY_TEMPLATE = "{{ dag.dag_id }}/{{ run_directory(run_id) }}"


def run_directory(run_id: str) -> str:
    """Name of the directory of a run: a readable part of the run id and a digest of all of it.

    The digest keeps apart run ids that read the same after cleaning (`a+b`, `a:b`), and ids that
    differ beyond the readable part. The name is one path segment of at most 93 ASCII characters
    that starts with a letter or a digit, so `..`, `/` or a hidden file cannot come out of any id.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id)[:SLUG_LENGTH].strip("-._") or "run"
    digest = hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{slug}-{digest}"


# For `user_defined_macros` of a DAG: the templates of its pods need them. Both are called by the
# worker that runs the task, so that a DAG is stored alike whatever commit it comes from.
MACROS: dict[str, Callable[..., str]] = {
    "run_directory": run_directory,
    "dags_commit": dags_commit,
}
