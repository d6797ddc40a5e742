"""The DAG of the benchmark."""

from mlctl.trials import bench


def test_its_tasks_are_its_own() -> None:
    assert all(name in bench.DAG for name in bench.TASKS)
    compile(bench.DAG, "bench_dag.py", "exec")
