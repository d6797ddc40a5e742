"""What the benchmark makes of its figures; that they are right, a run of it shows."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase
from mlctl.release.chart import dependency, program
from mlctl.trials import bench, reference


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
        runs=lambda dag_id, run_ids: [{"dag_run_id": "run", "state": "success"}],
        get=lambda path: {"task_instances": entries},
    )
    phase = Phase("unit")
    found = bench.tasks(airflow, bench.DAG_ID, 1, phase)
    assert (found["queued"], found["work"]) == ([2.0, 1.0], [3.0, 4.0])
    assert found["makespan"] - found["first"] == pytest.approx(9)
    airflow.runs = lambda dag_id, run_ids: [{"dag_run_id": "run", "state": "failed"}]
    with pytest.raises(UserError, match="bench_dag run ended as failed"):
        bench.tasks(airflow, bench.DAG_ID, 1, phase)


def test_the_first_chain_of_a_kind_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = iter([99.0, 11.0, 13.0, 12.0])

    def tasks(*_: Any) -> dict[str, Any]:
        return {"makespan": next(spans), "first": 0.5, "queued": [0.0], "work": [1.5]}

    monkeypatch.setattr(bench, "bare", lambda *_: {"pods": [2.0, 2.5, 1.9], "makespan": 10.0})
    monkeypatch.setattr(bench, "tasks", tasks)
    nobody: Any = object()
    turns = bench.Turns(nobody)
    turns.take_all("one_pod", nobody, bench.DAG_ID, Phase("unit"))
    figures = turns.figures("one_pod")
    assert (figures["bare_pod_s"], figures["task_s"]) == (2.0, {"one_pod": 2.4})
    assert figures["bare_pods"] == {"one_pod": 1.2}
    assert turns.makespans(1) == {"one_pod": 12.0}


def test_what_is_used_is_told_by_component() -> None:
    stats = {
        "memory": {"workingSetBytes": 3 << 20, "time": "2100-01-01T00:00:10Z"},
        "cpu": {"usageNanoCores": 5_000_000},
    }
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
    at = datetime(2100, 1, 1, 0, 0, 10, tzinfo=UTC)
    assert bench.used(stack, at) == {"mib": {"scheduler": 12}, "millicores": {"scheduler": 20}}
    assert bench.used(stack, at + timedelta(seconds=1)) == {}


def way(pod: float, commit: float = 3.0, **seconds: float) -> dict[str, Any]:
    """What is measured of one way to run tasks."""
    return {
        "bare_pod_s": pod,
        "task_s": seconds,
        "bare_pods": {name: s / pod for name, s in seconds.items()},
        "parallel_s": {"5": 10 * pod},
        "bare_parallel_s": {"5": 9 * pod},
        "commit_to_dag_s": commit,
        "idle_mib": {},
        "idle_millicores": {},
    }


def test_a_report_has_all_that_was_measured_on_this_machine() -> None:
    first = bench.together({}, "mine", "airflow2", way(2.0, reference=12.0, airflow2=6.0))
    assert (first["bare_pod_s"], first["parallel_s"]) == (2.0, {"5": 20.0})
    both = bench.together(first, "mine", "one_pod", way(3.0, airflow3=9.0, one_pod=4.5))
    assert both["bare_pods"] == {"reference": 6, "airflow2": 3, "airflow3": 3, "one_pod": 1.5}
    assert (both["bare_pod_s"], both["parallel_s"]) == (2.5, {"5": 30.0})
    again = bench.together(both, "mine", "airflow2", way(2.0, 4.0, reference=12.0, airflow2=4.0))
    assert again["task_s"] == {"reference": 12.0, "airflow2": 4.0, "airflow3": 9.0, "one_pod": 4.5}
    assert (again["parallel_s"], again["commit_to_dag_s"]) == ({"5": 30.0}, 3.0)
    other = bench.together(both, "another", "airflow2", way(2.0, airflow2=4.0))
    assert (list(other["ways"]), other["task_s"]) == (["airflow2"], {"airflow2": 4.0})


def test_a_report_may_lack_what_is_measured_last() -> None:
    begun = way(2.0, one_pod=2.2)
    del begun["commit_to_dag_s"]
    report = bench.together({}, "mine", "one_pod", begun)
    assert (report["task_s"], report["busy"]) == ({"one_pod": 2.2}, {})
    assert "commit_to_dag_s" not in report


def test_the_official_chart_takes_the_reference_s_values() -> None:
    image = {"repository": "localhost/git-sync", "tag": "1", "pullPolicy": "IfNotPresent"}
    ours = {
        "airflowVersion": "2.9.3",
        "defaultAirflowRepository": "localhost/airflow",
        "defaultAirflowTag": "7",
        "images": {"gitSync": image},
        "dags": {"gitSync": {"repo": "git://here/dags", "ref": "main", "subPath": "dags"}},
    }
    words = reference.words({"airflow": ours})
    told = [program(), "template", reference.NAME, str(dependency()), *words]
    render = subprocess.run(told, capture_output=True, text=True, check=True).stdout
    found = {
        (one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(render) if one
    }
    config = found["ConfigMap", f"{reference.NAME}-config"]["data"]
    worker = yaml.safe_load(config["pod_template_file.yaml"])["spec"]
    assert worker["containers"][0]["image"] == "localhost/airflow:7"
    (clone,) = worker["initContainers"]  # as it comes: each worker clones
    assert clone["image"] == "localhost/git-sync:1"
    assert {"name": "GITSYNC_REF", "value": "main"} in clone["env"]
    assert ("Deployment", f"{reference.NAME}-webserver") in found
    compile(reference.dag("image:1", bench.TASKS), "reference.py", "exec")
