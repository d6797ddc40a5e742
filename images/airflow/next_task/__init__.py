"""Lets a worker of KubernetesExecutor run the next task of its run. Part of the Airflow 2.9 image.

A worker's start is half of what a task costs: its container, and Airflow's imports. A worker that
has run its task waits for some seconds (pipelines.workerIdleSeconds of the values) for another one
of the same run, which begins in a process of its own from the same imports.

* worker.py: the program of a worker's container.
* executor.py: what of the executor is changed for it, and why.

The two speak by the worker's pod. A worker that takes another task has the label OPEN, with a value
of its own each time. The executor gives it one when the database knows the end of the present one:
it changes OPEN, and writes labels, annotations and command of the next task. A worker that does not
wait any longer removes OPEN, and ends. The API server lets only one of them do so. What goes by a
worker's labels and annotations (its end, its adoption by another scheduler, its log) finds the task
that it runs now.
"""

from typing import Any

OPEN = "ml-pipelines/open"
"""Label of a worker that takes another task."""
FIRST = "ML_PIPELINES_WORKER_OPEN"
"""Variable of a worker that may go on: OPEN's value when it was made."""
SECONDS = "ML_PIPELINES_WORKER_IDLE_SECONDS"
"""Variable of such a worker: how long it waits."""
IDLE = "ml-pipelines/idle"
"""Label of a worker that waits for one: its place among those that may run at once is free."""
COMMAND = "ml-pipelines/command"
"""Annotation of a worker that was given a task: JSON of OPEN's value then, and the command."""


def path(label: str) -> str:
    """Return where a JSON patch (RFC 6902) finds a label."""
    return f"/metadata/labels/{label.replace('/', '~1')}"


def only_if(value: str) -> dict[str, Any]:
    """Return the operation with which a JSON patch fails unless OPEN has this value."""
    return {"op": "test", "path": path(OPEN), "value": value}
