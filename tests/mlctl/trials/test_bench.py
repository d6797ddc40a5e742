"""The benchmark leaves nothing of its own DAG behind, and touches nothing else."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from mlctl.trials import bench


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
    bench.remove(stack, airflow)
    assert asked == [
        ("delete", "pods", "--selector", "dag_id=bench_dag"),
        ("rm", "-rf", "/volume/bench_dag"),
        ("sh", "-c", 'rm -rf "$AIRFLOW_HOME/logs/dag_id=$0"', "bench_dag"),
        ("DELETE", "dags/bench_dag"),
    ]


def test_its_tasks_are_its_own() -> None:
    assert all(name in bench.DAG for name in bench.TASKS)
    compile(bench.DAG, "bench_dag.py", "exec")
