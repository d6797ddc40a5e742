"""A trial leaves nothing of its own DAG behind, and touches nothing else."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from mlctl.base.labels import label
from mlctl.trials import own_dag

DAG_ID = "Поезд"


def test_it_removes_what_its_runs_have_left() -> None:
    asked: list[tuple[str, ...]] = []

    def run(*words: str) -> None:
        asked.append(words)

    @contextmanager
    def volume(*, read_only: bool) -> Any:
        assert not read_only
        yield SimpleNamespace(run=run)

    stack: Any = SimpleNamespace(kube=SimpleNamespace(run=run), volume=volume, in_scheduler=run)
    airflow: Any = SimpleNamespace(request=lambda *words, good: asked.append(words))
    own_dag.remove(stack, airflow, DAG_ID)
    assert asked == [
        ("delete", "pods", "--selector", f"dag_id={label(DAG_ID)}"),
        ("rm", "-rf", f"/volume/{label(DAG_ID)}"),
        ("sh", "-c", 'rm -rf "$AIRFLOW_HOME/logs/dag_id=$0"', DAG_ID),
        ("DELETE", f"dags/{DAG_ID}"),
    ]
