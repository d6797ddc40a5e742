"""What the benchmark makes of its figures; that they are right, a run of it shows."""

import json
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


def test_bare_pods_are_chains_as_long_as_those_of_tasks() -> None:
    asked: list[tuple[str, ...]] = []

    def in_scheduler(*words: str, timeout: float) -> str:
        asked.append(words)
        return 'a warning\n{"pods": [2.0], "makespan": 2.1}'

    stack: Any = SimpleNamespace(in_scheduler=in_scheduler, image="image:1")
    assert bench.bare(stack, 3) == {"pods": [2.0], "makespan": 2.1}
    ((python, _, source, _, pod, chains, length),) = asked
    assert (python, chains, length) == ("python", "3", str(len(bench.TASKS)))
    compile(source, "bare_chains.py", "exec")
    assert json.loads(pod)["spec"]["containers"][0]["image"] == "image:1"


def test_a_chain_of_tasks_lasts_from_its_trigger_to_its_last_end() -> None:
    def moment(seconds: int) -> str:
        return f"2100-01-01T00:00:{seconds:02}+00:00"

    entries = [
        {"queued_when": moment(1), "start_date": moment(3), "end_date": moment(6)},
        {"queued_when": moment(7), "start_date": moment(8), "end_date": moment(12)},
    ]
    airflow: Any = SimpleNamespace(
        trigger=lambda dag_id: "run",
        wait_for_run=lambda dag_id, run_id, **more: {"state": "success"},
        get=lambda path: {"task_instances": entries},
    )
    phase: Any = SimpleNamespace(note=print)
    found = bench.tasks(airflow, bench.DAG_ID, 1, phase)
    assert (found["queued"], found["work"]) == ([2.0, 1.0], [3.0, 4.0])
    assert found["makespan"] - found["first"] == pytest.approx(9)
    airflow.wait_for_run = lambda dag_id, run_id, **more: {"state": "failed"}
    with pytest.raises(UserError, match="bench_dag run ended as failed"):
        bench.tasks(airflow, bench.DAG_ID, 1, phase)


def test_what_is_used_at_rest_is_told_by_component() -> None:
    stats = {"memory": {"workingSetBytes": 3 << 20}, "cpu": {"usageNanoCores": 5_000_000}}
    summary = {"pods": [{"podRef": {"name": "a"}, "containers": [stats, stats]}] * 2}
    objects = {
        "pods": [{"metadata": {"name": "a", "labels": {"component": "scheduler"}}}],
        "nodes": [{"metadata": {"name": "node"}}],
    }
    kube = SimpleNamespace(
        items=lambda kind: objects[kind],
        run=lambda *words: SimpleNamespace(stdout=json.dumps(summary)),
    )
    stack: Any = SimpleNamespace(kube=kube)
    assert bench.idle(stack) == {"mib": {"scheduler": 12}, "millicores": {"scheduler": 20}}
