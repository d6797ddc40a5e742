"""What Airflow shows of tasks of PodOperator, from the JSON objects that they leave.

* `note` of a result, a line of text, is part of the note of its run, when that has ended; so is why
  a task has failed (the XCom `failure`), which its own note says, too. What people have written
  there stays.
* Each number of a result is a metric then, a gauge called FIGURES.
* `run_url`, `version_url` and `predictions` of a result are links of its task, and so is its pod.

A plugin of both Airflows. The scheduler writes the notes and sends the metrics, the web server
makes the links.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

try:
    from airflow.observability import stats
    from airflow.sdk import BaseOperatorLink
except ImportError:  # Airflow 2
    from airflow.models.baseoperatorlink import BaseOperatorLink
    from airflow.stats import Stats as stats

# As JSON: addresses inside the cluster, and those at which people open the same pages.
PAGES = "ML_PIPELINES_PAGES"
# The address of the page of a pod, with {namespace} and {pod} in it.
POD_PAGE = "ML_PIPELINES_POD_PAGE"
NOTE_LENGTH = 1000  # of the database's column
RESULT, FAILURE = "return_value", "failure"
FIGURES = "ml_pipelines.result"  # with the tags dag_id, task_id and figure
# Airflow compares names: the web server does not import the operator.
OPERATOR = type("PodOperator", (), {"__module__": "ml_pipelines.operator"})

log = logging.getLogger(__name__)


def xcoms(session: Any, of: Any, *keys: str) -> Iterator[tuple[str, str, Any]]:
    """Yield name (of a mapped one `task[0]`), key and value of XComs of a run's tasks.

    `of` has `dag_id` and `run_id`, and those of one task `task_id` and `map_index`.
    """
    from sqlalchemy import select

    try:
        from airflow.models.xcom import XComModel as XCom
    except ImportError:  # Airflow 2
        from airflow.models.xcom import XCom

    found = select(XCom.task_id, XCom.map_index, XCom.key, XCom.value)
    for name in ("dag_id", "run_id", "task_id", "map_index"):
        if hasattr(of, name):
            found = found.where(getattr(XCom, name) == getattr(of, name))
    for row in session.execute(found.where(XCom.key.in_(keys))):
        yield name_of(row), row.key, XCom.deserialize_value(row)


def name_of(task: Any) -> str:
    """A task of a run, as people read it."""
    return f"{task.task_id}[{task.map_index}]" if task.map_index >= 0 else task.task_id


def lines_of(tasks: list[Any], left: dict[tuple[str, str], Any]) -> dict[str, str]:
    """What the note of a run says of tasks, by the beginning of the line.

    `left` has their XComs by name and key. Of a mapped task its failures only: there may be
    hundreds.
    """
    lines = {}
    for task in tasks:
        name, said = name_of(task), None
        if task.state == "failed":
            said = f"failed: {reason_of(task, left)}"
        elif task.map_index < 0 and isinstance(result := left.get((name, RESULT)), dict):
            said = result.get("note")
        lines[f"- {name}: "] = said if isinstance(said, str) else ""
    return lines


def reason_of(task: Any, left: dict[tuple[str, str], Any]) -> str:
    """Why a task has failed."""
    return left.get((name_of(task), FAILURE), "see its log")


def write_note(of: Any, lines: dict[str, str]) -> None:
    """Put these lines into the note of a run or a task, below all others.

    They take the place of older ones with the same beginning; where there are neither, the note is
    left as it is. No character in it, and no length, that a database refuses: that would stop the
    scheduler.
    """
    before = (of.note or "").splitlines()
    kept = [line for line in before if not line.startswith(tuple(lines))]
    new = [begin + " ".join(line.split()) for begin, line in lines.items() if line]
    if new or kept != before:
        text = "\n".join([*kept, *new])
        of.note = "".join(one for one in text if one.isprintable() or one == "\n")[:NOTE_LENGTH]


def figures(result: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a result by their keys; one of an object in it is called outer.inner."""
    if isinstance(result, dict):
        for key, value in result.items():
            if re.fullmatch(r"[\w-]+", str(key), re.ASCII):
                yield from figures(value, f"{name}.{key}" if name else str(key))
    # No bool, no NaN, and none that is too large for a float.
    elif name and type(result) in (int, float) and abs(result) <= sys.float_info.max:
        yield name, float(result)


def tell(run: Any) -> None:
    """Say in notes, and as metrics, what the tasks of a run that has ended have left."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select
    from sqlalchemy.orm import object_session, selectinload

    try:
        # The scheduler's own session, which holds the run's row; it stores the note with the state.
        session = object_session(run)
        ours = session.scalars(
            select(TaskInstance)
            .where(TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id)
            .where(TaskInstance.operator == OPERATOR.__name__, TaskInstance.end_date.is_not(None))
            .order_by(TaskInstance.end_date)
            .options(selectinload(TaskInstance.task_instance_note))
        ).all()
        if not ours:  # the results of others may be large
            return
        left = {(name, key): value for name, key, value in xcoms(session, run, RESULT, FAILURE)}
        for task in ours:
            write_note(task, {"failed: ": reason_of(task, left) if task.state == "failed" else ""})
            if task.state == "success":
                tags = {"dag_id": task.dag_id, "task_id": task.task_id}
                for figure, value in figures(left.get((name_of(task), RESULT))):
                    stats.gauge(FIGURES, value, tags=tags | {"figure": figure})
        # Airflow 3 shows the beginning of a note only, and the last says what the run came to.
        write_note(run, lines_of(ours[::-1], left))
    except Exception:  # the scheduler of Airflow 2 would end
        log.exception("What the tasks of %s have left cannot be told", run.run_id)


@hookimpl
def on_dag_run_success(dag_run: Any) -> None:
    """Tell what it has left."""
    tell(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any) -> None:
    """Tell what it has left."""
    tell(dag_run)


class TaskLink(BaseOperatorLink):
    """A link of a task, made of XComs that it has left."""

    operators = [OPERATOR]
    keys = (RESULT,)

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address at which people open it, '' where there is none."""
        from airflow.utils.session import create_session

        with create_session() as session:
            left = {key: value for _, key, value in xcoms(session, ti_key, *self.keys)}
        return self.address(*(left.get(key) for key in self.keys))


class ResultLink(TaskLink):
    """A link whose address is in a task's result, as `key`."""

    key = ""

    def address(self, result: Any) -> str:
        """The address at which people open it, '' where the result has none."""
        return address_for_people(result.get(self.key)) if isinstance(result, dict) else ""


class RunLink(ResultLink):
    """To the run of MLflow or W&B."""

    name, key = "Run in the registry", "run_url"


class VersionLink(ResultLink):
    """To the version of the model."""

    name, key = "Model version", "version_url"


class PredictionsLink(ResultLink):
    """To the predictions, where a storage has pages."""

    name, key = "Predictions", "predictions"


class PodLink(TaskLink):
    """To the task's pod and its events, in the cluster's console."""

    name, keys = "Pod", ("pod_namespace", "pod_name")

    def address(self, namespace: Any, pod: Any) -> str:
        """The address of the pod's page, '' where the cluster has none, or the task no pod yet."""
        page = os.environ.get(POD_PAGE, "") if pod else ""
        return page.replace("{namespace}", str(namespace)).replace("{pod}", str(pod))


def address_for_people(url: Any) -> str:
    """The address as a browser outside of the cluster opens it, '' for what is no web page."""
    url = str(url)
    pages = json.loads(os.environ.get(PAGES) or "{}")
    for inside, outside in sorted(pages.items(), reverse=True):  # a folder before its storage
        if url == inside or url.startswith(f"{inside}/"):
            return outside.rstrip("/") + url.removeprefix(inside)
    return url if url.startswith(("http://", "https://")) else ""


class Pages(AirflowPlugin):
    """Notes, metrics and links."""

    name = "ml_pipelines_pages"
    listeners = [sys.modules[__name__]]
    operator_extra_links = [RunLink(), VersionLink(), PredictionsLink(), PodLink()]
