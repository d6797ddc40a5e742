"""What the many runs are compared by."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase
from mlctl.clients.airflow import Task
from mlctl.trials.soak import (
    INFERENCE,
    MAPPED,
    MAPPED_DAG,
    TRAINING,
    Checked,
    _look_at_files,
    _look_at_model,
    _look_at_predictions,
    _look_at_sum,
    _look_at_tasks,
    compare,
    new_run_ids,
    start,
    wait,
)


def trained(number: int, **changes: Any) -> Checked:
    one = Checked(TRAINING, f"t{number}", "success", 100.0, weights="w", accuracy=0.8)
    return replace(one, **{"model_version": f"v{number}"} | changes)


def predicted(number: int, **changes: Any) -> Checked:
    one = Checked(INFERENCE, f"i{number}", "success", 50.0, weights="w", predictions="p", rows=7)
    return replace(one, **{"model_version": "v1"} | changes)


def faults(*runs: Checked) -> list[str]:
    compare(runs, [predicted(0)])
    return [fault for run in runs for fault in run.faults]


def test_equal_runs_have_no_faults() -> None:
    assert faults(trained(1), trained(2), predicted(1), predicted(2)) == []


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        (trained(3, weights="x"), "other weights than 2 runs of the same seed"),
        (predicted(3, predictions="q"), "other predictions than those of a run alone"),
        (predicted(3, weights="x"), "no run alone has used the weights of v1"),
    ],
)
def test_a_run_that_differs_is_named(odd: Checked, fault: str) -> None:
    assert faults(trained(1), trained(2), predicted(1), odd) == [fault]


def test_a_version_of_two_runs_is_a_fault_of_both() -> None:
    found = faults(trained(1), trained(2, model_version="v1"))
    assert found == ["v1 is registered for several runs"] * 2


class Server:
    """Stands in for Airflow and for MLflow."""

    def __init__(self, tasks: list[Task] = (), trained_by: str = "", runs: Any = None) -> None:
        self._tasks, self._trained_by, self._runs = tasks, trained_by, runs
        self.triggered: list[tuple[str, str]] = []

    def tasks(self, *_: str) -> list[Task]:
        return self._tasks

    def version(self, name: str, version: str) -> dict[str, Any]:
        return {"source": "models:/m-1", "tags": {"model_sha256": "w"}}

    def get(self, path: str, /, **_: str) -> Any:
        assert path.endswith("/logged-models/m-1/artifacts/files")
        return type("Answer", (), {"json": lambda _: {"run_id": self._trained_by}})()

    def unpause(self, dag_id: str) -> None:
        pass

    def trigger(self, dag_id: str, *, run_id: str) -> None:
        self.triggered.append((dag_id, run_id))

    def runs(self, dag_id: str, run_ids: list[str]) -> list[dict[str, Any]]:
        return self._runs(run_ids)


def looked(look: Callable[[Checked], None], dag_id: str = INFERENCE) -> Checked:
    one = Checked(dag_id, "r", "success", 1.0)
    look(one)
    return one


def test_tasks_are_counted_and_their_failures_named() -> None:
    tasks = [Task("a", "success", 3, 1.0), Task("clean_up", "failed", 1, 1.0)]
    server: Any = Server([*tasks, Task("square", "failed", 1, 1.0, map_index=7)])
    one = looked(lambda one: _look_at_tasks(server, one))
    assert (one.retries, one.faults) == (2, ["clean_up is failed", "square[7] is failed"])


@pytest.mark.parametrize(("dag_id", "left"), [(INFERENCE, []), (TRAINING, ["pred.csv"])])
def test_only_what_the_dag_keeps_may_stay(dag_id: str, left: list[str]) -> None:
    files = ["d/r/pred.csv", "d/r2/data/train.csv"]
    one = looked(lambda one: _look_at_files("d/r", files, one), dag_id)
    assert one.faults == [f"left behind: {name}" for name in left]


def test_a_model_that_another_run_has_trained_is_found() -> None:
    trained, uploaded = {"accuracy": 0.8}, {"name": "m", "version": "v1"}
    own: Any = Server(trained_by="r")
    other: Any = Server(trained_by="s")
    one = looked(lambda one: _look_at_model(own, trained, uploaded, one), TRAINING)
    assert (one.accuracy, one.model_version, one.weights, one.faults) == (0.8, "v1", "w", [])
    one = looked(lambda one: _look_at_model(other, trained, uploaded, one), TRAINING)
    assert one.faults == ["v1 was trained by the run s"]
    one = looked(lambda one: _look_at_model(own, trained, {}, one), TRAINING)
    assert one.faults == ["no model was registered"]


def test_predictions_are_those_of_the_run_and_described() -> None:
    about = {
        "model": {"version": "v1", "tags": {"model_sha256": "w"}},
        "predictions": {"sha256": "p"},
        "made_by": {"run_id": "r"},
    }
    found = {"sha256": "p", "rows": 7, "about": about}
    one = looked(lambda one: _look_at_predictions(found, one))
    assert (one.model_version, one.weights, one.predictions, one.rows, one.faults) == (
        *("v1", "w", "p", 7),
        [],
    )
    other = found | {"sha256": "q", "about": about | {"made_by": {"run_id": "s"}}}
    assert looked(lambda one: _look_at_predictions(other, one)).faults == [
        "pred.json describes other predictions",
        "the predictions are those of the run s",
    ]
    assert looked(lambda one: _look_at_predictions(None, one)).faults == [
        "there are no predictions"
    ]


def test_every_square_must_be_there() -> None:
    compile(MAPPED_DAG, "soak_mapped.py", "exec")
    assert looked(lambda one: _look_at_sum({"total": 2870}, one), MAPPED).faults == []
    for result in ({"total": 2869}, {}):
        one = looked(lambda one, result=result: _look_at_sum(result, one), MAPPED)
        assert one.faults == [f"the squares add up to {result.get('total')}, not 2870"]


def test_the_dags_are_triggered_in_turn() -> None:
    server: Any = Server()
    start(server, {"x": ["1", "2"], "y": ["1"]})
    assert server.triggered == [("x", "1"), ("y", "1"), ("x", "2")]


def test_waiting_tells_each_end_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlctl.trials.soak.POLL_SECONDS", 0)
    states = iter(["queued", "running", "success"])

    def runs(run_ids: list[str]) -> list[dict[str, Any]]:
        return [
            {"dag_run_id": "1", "state": "failed"},
            {"dag_run_id": "2", "state": next(states)},
        ]

    server: Any = Server(runs=runs)
    wait(server, {"x": ["1", "2"]}, 60, Phase("many"))
    told = capsys.readouterr().out
    assert told.count("x 1: failed") == 1
    assert told.count("x 2: success") == 1


def test_waiting_too_long_names_the_states() -> None:
    server: Any = Server(runs=lambda _: [{"dag_run_id": "1", "state": "queued"}])
    with pytest.raises(UserError, match="after 0 s: not ended: x: 1 queued"):
        wait(server, {"x": ["1"]}, 0, Phase("many"))


def test_new_ids_are_apart() -> None:
    ids = new_run_ids("soak", 20)
    assert len(set(ids)) == 20
    assert all(one.startswith("soak__") for one in ids)
