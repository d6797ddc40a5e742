"""What `make run` says and writes, and how it takes its variables."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlctl.__main__ import main
from mlctl.base.errors import UserError
from mlctl.base.labels import run_directory
from mlctl.clients.airflow import Task
from mlctl.commands.telling import dag_report, tell_change, tell_failed_cleaning
from mlctl.stack import _first_error

ENDED = {
    "dag_run_id": "r",
    "state": "success",
    "start_date": "2026-11-23T16:46:13+00:00",
    "end_date": "2026-11-23T16:46:53.500000+00:00",
}


def test_entry_of_a_training_run() -> None:
    results: dict[str, dict[str, Any]] = {
        "train_model": {"accuracy": 0.82, "baseline_accuracy": 0.78, "f1": 0.8},
        "upload_model": {"version": "3", "name": "airflow-pipeline"},
        "gate_model": {"decision": "refused", "reason": "too bad"},
    }
    assert dag_report("training_dag", ENDED, results) == {
        "state": "success",
        "run_id": "r",
        "seconds": 40.5,
        "accuracy": 0.82,
        "baseline_accuracy": 0.78,
        "model_version": "3",
        "gate": "refused: too bad",
    }


@pytest.mark.parametrize("task_id", ["run_inference", "join_predictions"])
def test_entry_of_an_inference_run(task_id: str) -> None:
    assert dag_report("inference_dag", ENDED, {task_id: {"rows": 7}}) == {
        "state": "success",
        "run_id": "r",
        "seconds": 40.5,
        "rows": 7,
        "predictions": None,
    }


def test_entry_of_a_run_that_failed_has_all_its_keys() -> None:
    entry = dag_report("training_dag", ENDED | {"state": "failed"}, {"load_data": {}})
    assert entry["state"] == "failed"
    assert entry["accuracy"] is None
    assert entry["model_version"] is entry["gate"] is None


@pytest.mark.parametrize("text", ["0", "-1", "five", "101", "1.5"])
def test_a_wrong_number_of_runs_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("N", text)
    monkeypatch.setattr(sys, "argv", ["mlctl", "train"])
    with pytest.raises(UserError, match=f"'--n'.*{text}"):
        main()


def test_changes_of_a_task_in_words() -> None:
    told: list[str] = []
    for task in (
        Task("a", "none", 0, None),
        Task("a", "scheduled", 0, None),
        Task("a", "queued", 0, None),
        Task("a", "running", 1, 0.0),
        Task("a", "up_for_retry", 1, 2.0),
        Task("a", "running", 2, 0.0),
        Task("a", "failed", 2, 3.25),
        Task("b", "success", 1, 2.0),
        Task("c", "upstream_failed", 0, None),
        Task("d", "deferred", 1, 0.0),
    ):
        tell_change(told.append, task)
    assert told == [
        "a started",
        "a failed, will be tried again",
        "a started (try 2)",
        "a FAILED in 3.2 s",
        "b succeeded in 2.0 s",
        "c not started: a task before it failed",
        "d started",
    ]


class TasksOnly:
    """Stands in for Airflow where only the states of a run's tasks are asked for."""

    def __init__(self, **states: str) -> None:
        self.states = states

    def tasks(self, dag_id: str, run_id: str) -> list[Task]:
        return [Task(name, state, 1, 1.0) for name, state in self.states.items()]


def test_a_failed_cleaning_is_told_with_the_place_and_the_way_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    airflow: Any = TasksOnly(run_inference="success", clean_up="failed")
    tell_failed_cleaning(airflow, "inference_dag", "a+b")
    told = capsys.readouterr().out
    assert "the run succeeded, but clean_up failed" in told
    assert run_directory("inference_dag", "a+b") in told
    assert "clear clean_up of a+b" in told


def test_a_good_run_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    airflow: Any = TasksOnly(run_inference="success", clean_up="success")
    tell_failed_cleaning(airflow, "inference_dag", "a+b")
    assert capsys.readouterr().out == ""


def test_the_first_error_of_two_parts_is_told_while_the_other_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    go_on = threading.Event()

    def fail() -> None:
        raise UserError("no [disk]")

    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(go_on.wait, 10), pool.submit(fail)]
        with pytest.raises(UserError, match=r"no \[disk\]"):
            _first_error(parts)
        assert "no [disk]" in capsys.readouterr().out
        assert not parts[0].done()
        go_on.set()


def test_without_an_error_both_parts_are_awaited() -> None:
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(int, "1"), pool.submit(int, "2")]
        _first_error(parts)
        assert [part.result() for part in parts] == [1, 2]
