"""What Airflow shows of tasks of PodOperator, from the JSON objects that they leave.

* `note` of a result, a line of text, is part of the note of its run, when that has ended; so is why
  a task has failed (the XCom `failure`). What people have written there stays.
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
    """What the note says of tasks, by their names; `left` has their XComs by name and key.

    Of a mapped task its failures only: there may be hundreds.
    """
    lines = {}
    for task in tasks:
        name, said = name_of(task), None
        if task.state == "failed":
            said = f"failed: {left.get((name, FAILURE), 'see its log')}"
        elif task.map_index < 0 and isinstance(result := left.get((name, RESULT)), dict):
            said = result.get("note")
        lines[name] = f"- {name}: {said}" if isinstance(said, str) else ""
    return lines


def with_lines(note: str, lines: dict[str, str]) -> str:
    """The note with these lines, in place of older ones of the same tasks, below all others.

    No character in it, and no length, that a database refuses: that would stop the scheduler.
    """
    old = tuple(f"- {name}: " for name in lines)
    kept = [line for line in note.splitlines() if not line.startswith(old)]
    new = (" ".join(line.split()) for line in lines.values() if line)
    text = "\n".join([*kept, *new])
    return "".join(one for one in text if one.isprintable() or one == "\n")[:NOTE_LENGTH]


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
    """Say in its note, and as metrics, what the tasks of a run that has ended have left."""
    from sqlalchemy.orm import object_session

    try:
        # The scheduler's own session, which holds the run's row; it stores the note with the state.
        session = object_session(run)
        ended = [one for one in run.get_task_instances(session=session) if one.end_date]
        ours = [one for one in ended if one.operator == OPERATOR.__name__]
        if not ours:  # the results of others may be large
            return
        ours.sort(key=lambda one: one.end_date)
        left = {(name, key): value for name, key, value in xcoms(session, run, RESULT, FAILURE)}
        for task in ours:
            if task.state == "success":
                tags = {"dag_id": task.dag_id, "task_id": task.task_id}
                for figure, value in figures(left.get((name_of(task), RESULT))):
                    stats.gauge(FIGURES, value, tags=tags | {"figure": figure})
        # Airflow 3 shows the beginning of a note only, and the last says what the run came to.
        before = run.note or ""
        if (after := with_lines(before, lines_of(ours[::-1], left))) != before:
            run.note = after
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
