"""The plugin of the Airflow images, as scheduler and web server use it, on a (SQLite) database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.listeners.listener import get_listener_manager

from tests.dags.cluster import Log
from tests.dags.conftest import AIRFLOW_2

INSIDE = "http://ml-pipelines-mlflow.ml:5000"


def as_shown(dag: Any) -> Any:
    """The DAG as the web server has it."""
    if AIRFLOW_2:
        from airflow.serialization.serialized_objects import SerializedDAG

        return SerializedDAG.from_dict(SerializedDAG.to_dict(dag))
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def result(**values: Any) -> dict[str, Any]:
    return {"return_value": values}


def test_a_run_has_a_note_of_what_its_tasks_have_left(ended) -> None:
    run = ended(
        {
            "train": ("success", result(note="accuracy 0.83", accuracy=0.83)),
            "clean": ("success", {}),
            "upload": ("success", result(note="iris v3")),
        }
    )
    assert (run.state, run.note) == ("success", "- upload: iris v3\n- train: accuracy 0.83")


def test_the_note_of_a_failed_run_says_why(ended) -> None:
    run = ended(
        {
            "train": ("failed", {"failure": "Pod train-1 failed:\n OOMKilled: more", **result()}),
            "upload": ("upstream_failed", result(note="of the try before")),
            "clean": ("failed", {}),
        }
    )
    assert run.state == "failed"
    assert run.note.splitlines() == [
        "- clean: failed: see its log",
        "- upload: of the try before",
        "- train: failed: Pod train-1 failed: OOMKilled: more",
    ]


def test_the_note_of_a_failed_task_says_why(ended, session) -> None:
    notes = {"train": "for ann", "gate": "failed: of the time before\nlook at it", "load": "\ta\n"}
    tasks = {
        "train": ("failed", {"failure": "Pod train-1 failed:\n OOMKilled"}),
        "gate": ("success", result(note="fine")),
        "load": ("success", {}),
        "clean": ("success", {}),
    }
    run = ended(tasks, notes=notes)
    left = {one.task_id: one.note for one in run.get_task_instances(session=session)}
    assert left == {
        "train": "for ann\nfailed: Pod train-1 failed: OOMKilled",
        "gate": "look at it",
        "load": "\ta\n",
        "clean": None,
    }


def test_what_people_have_written_stays_and_older_lines_go(ended) -> None:
    before = "for ann\n- train: failed: a quota\n- look at it"
    run = ended({"train": ("success", result(note="fine"))}, note=before)
    assert run.note == "for ann\n- look at it\n- train: fine"


@pytest.mark.parametrize(
    "value", [{"rows": 3}, {"note": 3}, ["note"], None], ids=["none", "number", "list", "nothing"]
)
def test_a_run_without_a_word_has_no_note(ended, value: Any) -> None:
    assert ended({"train": ("success", {"return_value": value})}).note is None


def test_a_note_is_one_that_the_database_takes(ended) -> None:
    long = "a\tb \x1b[31m" + "x" * 2000
    run = ended({"train": ("success", result(note=long))})
    assert run.note.startswith("- train: a b [31mxxx")
    assert len(run.note) == 1000


def test_a_fault_of_the_plugin_does_not_end_the_scheduler(ended, monkeypatch) -> None:
    listeners, log = get_listener_manager().pm.get_plugins(), Log()
    # Airflow may have loaded the file more than once: for the scheduler, and for tasks.
    for pages in (one for one in listeners if one.__name__ == "ml_pipelines_pages"):
        monkeypatch.setattr(pages, "log", log)
        monkeypatch.setattr(pages, "lines_of", lambda *_: 1 / 0)
    run = ended({"train": ("success", result(note="fine"))})
    assert run.state == "success"
    assert ("exception", f"What the tasks of {run.run_id} have left cannot be told") in log.lines


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"{INSIDE}/#/experiments/1/runs/a", "http://localhost:5000/#/experiments/1/runs/a"),
        (f"{INSIDE}1/x", f"{INSIDE}1/x"),
        ("https://wandb.ai/team/runs/a", "https://wandb.ai/team/runs/a"),
        ("s3://bucket/2024/pred.parquet", "https://s3.example.com/ui/bucket/2024/pred.parquet"),
        ("s3://bucket/open/pred.csv", "https://open.example.com/pred.csv"),
        ("s3://another/pred.csv", ""),
        ("/tmp/pred.csv", ""),
        ("javascript:alert(1)", ""),
        (None, ""),
    ],
)
def test_links_lead_where_people_open_the_pages(
    ended, session, monkeypatch, url: str, shown: str
) -> None:
    pages = {
        INSIDE: "http://localhost:5000/",
        "s3://bucket": "https://s3.example.com/ui/bucket",
        "s3://bucket/open": "https://open.example.com",
    }
    monkeypatch.setenv("ML_PIPELINES_PAGES", json.dumps(pages))
    run = ended({"train": ("success", result(run_url=url, version_url=url, predictions=url))})
    (instance,) = run.get_task_instances(session=session)
    task = as_shown(run.written).get_task("train")
    links = {"Run in the registry", "Model version", "Predictions"}
    assert links <= {*task.extra_links}
    for name in links:
        assert task.get_extra_links(instance, name) == shown


POD = {"pod_name": "train-1", "pod_namespace": "team"}


@pytest.mark.parametrize(
    ("page", "left", "shown"),
    [
        ("https://c.example.com/{namespace}/{pod}", POD, "https://c.example.com/team/train-1"),
        ("https://c.example.com/{namespace}/{pod}", {}, ""),
        ("", POD, ""),
    ],
    ids=["pod", "none yet", "no page"],
)
def test_a_link_leads_to_the_pod(
    ended, session, monkeypatch, page: str, left: dict[str, str], shown: str
) -> None:
    monkeypatch.setenv("ML_PIPELINES_POD_PAGE", page)
    run = ended({"train": ("success", left)})
    (instance,) = run.get_task_instances(session=session)
    task = as_shown(run.written).get_task("train")
    assert task.get_extra_links(instance, "Pod") == shown
