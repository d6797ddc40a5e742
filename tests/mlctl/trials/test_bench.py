"""The DAG of the benchmark."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.trials import bench


def test_a_cluster_of_somebody_else_is_refused_before_anything_is_measured() -> None:
    stack: Any = SimpleNamespace(cluster=SimpleNamespace(kind="existing"))
    with pytest.raises(UserError, match="existing"):
        bench.main(stack)


def test_its_tasks_are_its_own() -> None:
    assert all(name in bench.DAG for name in bench.TASKS)
    compile(bench.DAG, "bench_dag.py", "exec")
