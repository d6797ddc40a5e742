"""The labels of a task's pod, and the directory of a run that is made of them."""

import hashlib
import re

LABEL_CHARACTERS = 63
HASH_CHARACTERS = 9

_UNSAFE = re.compile(r"^[^a-z0-9A-Z]*|[^a-zA-Z0-9_\-.]|[^a-z0-9A-Z]*$")


def label(text: str) -> str:
    """Return the label that a pod carries for the id of a DAG, a task or a run.

    It is Airflow's `make_safe_label_value`. Of an id without a safe character that leaves `-` and a
    hash, which Kubernetes refuses: the chart takes the `-` away.
    """
    safe = _UNSAFE.sub("", text)
    if safe == text and len(safe) <= LABEL_CHARACTERS:
        return safe
    digest = hashlib.md5(text.encode()).hexdigest()[:HASH_CHARACTERS]
    return f"{safe[: LABEL_CHARACTERS - len(digest) - 1]}-{digest}".lstrip("-")


def run_directory(dag_id: str, run_id: str) -> str:
    """Return a run's directory on the training storage, relative to its root."""
    return f"{label(dag_id)}/{label(run_id)}"
