"""What the trial of growth makes of its figures; that they are right, a run of it shows."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.trials import growth


def test_a_cluster_of_somebody_else_is_refused_before_anything_is_measured() -> None:
    stack: Any = SimpleNamespace(cluster=SimpleNamespace(kind="existing"))
    with pytest.raises(UserError, match="existing"):
        growth.main(stack)


def test_its_dags_are_its_own() -> None:
    compile(growth.DAG, "growth_chain.py", "exec")
    compile(growth.ONE_OF_MANY.format(growth.name_of(7)), "growth_0007.py", "exec")
    compile(growth.WAIT_DAG, "growth_wait.py", "exec")
    texts = growth.DAG + growth.WAIT_DAG
    for name in (growth.CHAIN, growth.QUEUE, growth.WAIT):
        assert texts.count(f'DAG("{name}"') == 1


def test_files_are_committed_at_once_and_another_commit_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = iter([0, 1, 3])
    committed: list[dict[str, str]] = []
    asked: list[dict[str, Any]] = []

    def get(path: str, **params: Any) -> dict[str, int]:
        asked.append(params)
        return {"total_entries": next(there)}

    monkeypatch.setattr(growth.bench, "commit", lambda *given: 2.512)
    monkeypatch.setattr(growth, "use", lambda *given: {"mib": {"scheduler": 300}})
    stack: Any = object()
    airflow: Any = SimpleNamespace(get=get)
    dag: Any = SimpleNamespace(commit_all=committed.append)
    found = growth.files(stack, airflow, dag, 3, SimpleNamespace(note=print))  # type: ignore[arg-type]
    assert [sorted(files) for files in committed] == [["growth_0000", "growth_0001", "growth_0002"]]
    assert {one["tags"] for one in asked} == {"growth"}
    assert (found["files"], found["commit_to_dag_s"]) == (3, 2.51)
    assert found["use"] == {"mib": {"scheduler": 300}}


def test_queued_runs_end_before_the_one_that_they_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []
    ids = iter("abc")
    airflow: Any = SimpleNamespace(
        trigger=lambda dag_id: next(ids),
        fail=lambda dag_id, run_id: ended.append(run_id),
    )
    monkeypatch.setattr(growth.bench, "tasks", lambda *given: {"makespan": 20.0})
    phase: Any = SimpleNamespace(note=print)
    assert growth.queued(airflow, 2, phase) == {"runs": 2, "task_s": 4.0}
    assert ended == ["c", "b", "a"]


def test_runs_fail_where_the_measurement_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[str, ...]] = []
    airflow: Any = SimpleNamespace(
        trigger=lambda dag_id: "a",
        fail=lambda *run: ended.append(run),
        get=lambda path, **params: {"total_entries": 3},
        dag=lambda dag_id: {"dag_id": dag_id},
        unpause=lambda dag_id: None,
    )
    monkeypatch.setattr(growth, "SECONDS", 0)
    stack: Any = object()
    dag: Any = SimpleNamespace(commit=print)
    phase: Any = SimpleNamespace(note=print, detail="3 of 1000")
    with pytest.raises(UserError, match="there are only 3 of 1000"):
        growth.waiting(stack, airflow, dag, phase)
    assert ended == [(growth.WAIT, "a")]
