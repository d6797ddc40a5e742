"""The fault drill's own logic: what counts as good, what is told, what is compared."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kubernetes.client import models as k8s

from ml_pipelines.failures import explain_absence, explain_failure
from mlctl.base.errors import UserError
from mlctl.base.progress import show_table
from mlctl.trials.drill.drill import reason
from mlctl.trials.drill.evidence import Snapshot, hashes, lost
from mlctl.trials.drill.faults import FAULTS, chosen
from mlctl.trials.drill.report import COLUMNS, Row, cells

GOOD = Row("oom", "success", 1, 31.5, shown="train_model: OOMKilled: the container needed more")
BEFORE = Snapshot(
    versions={"1": "run1"},
    model_files={"1/model.safetensors": "aa"},
    predictions={"run/pred.csv": "bb"},
    runs={"training_dag run1": "success"},
)
AFTER = Snapshot(
    versions={"1": "run1", "2": "run2"},
    model_files={"1/model.safetensors": "aa", "2/model.safetensors": "cc"},
    predictions={"run/pred.csv": "bb"},
    runs={"training_dag run1": "success", "training_dag run2": "success"},
)


@pytest.mark.parametrize(
    "change",
    [
        {"dag_state": "failed"},
        {"retries": 2},
        {"data_lost": ["model version 1 is gone"]},
        {"leftovers": ["pod train-model-x"]},
        {"without_effect": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_fault_of_a_row_makes_it_bad(change: dict) -> None:
    row = Row(**{**vars(GOOD), **change})
    assert not row.ok
    assert "NOT OK" in cells(row)


def test_report_is_a_list_with_the_agreed_keys() -> None:
    rows = [GOOD, Row("node", "failed", 3, 200.0, ["run x is gone"], ["pod y"])]
    assert [row.entry() for row in rows] == [
        {
            "fault": "oom",
            "dag_state": "success",
            "retries": 1,
            "seconds_lost": 31.5,
            "data_lost": [],
            "leftovers": [],
            "ok": True,
        },
        {
            "fault": "node",
            "dag_state": "failed",
            "retries": 3,
            "seconds_lost": 200.0,
            "data_lost": ["run x is gone"],
            "leftovers": ["pod y"],
            "ok": False,
        },
    ]


def test_table_has_a_line_for_each_row_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    bad = Row("api-server", "failed", 0, -1.2, ["run [x] is gone", "run y is gone"])
    show_table(COLUMNS, map(cells, [GOOD, bad]))
    heading, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:7] == ["oom", "success", "1", "32", "none", "none", "ok"]
    assert "run [x] is gone; run y is gone" in second
    for name, cell in (("run", "success"), ("data lost", "none"), ("Airflow said", "train_model")):
        assert heading.index(name) == first.index(cell)


def test_table_says_that_a_fault_met_nothing() -> None:
    row = Row("oom", "success", 0, 0.0, without_effect=True)
    assert "the fault met nothing" in cells(row)


def test_nothing_is_lost_when_only_the_run_s_own_model_came() -> None:
    assert lost(BEFORE, AFTER, "run2", "success") == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"versions": {"2": "run2"}}, "model version 1 is gone"),
        ({"model_files": {"2/model.safetensors": "cc"}}, "model file 1/model.safetensors is gone"),
        (
            {"model_files": {**AFTER.model_files, "1/model.safetensors": "dd"}},
            "model file 1/model.safetensors has changed",
        ),
        ({"predictions": {}}, "prediction run/pred.csv is gone"),
        ({"predictions": {"run/pred.csv": "b"}}, "prediction run/pred.csv has changed"),
        ({"runs": {"training_dag run2": "success"}}, "run training_dag run1 is gone"),
        ({"runs": {"training_dag run1": "failed"}}, "run training_dag run1 has changed"),
        ({"versions": {"1": "run1"}}, "the run's model was registered 0 times"),
        (
            {"versions": {"1": "run1", "2": "run2", "3": "run2"}},
            "the run's model was registered 2 times",
        ),
    ],
)
def test_whatever_is_lost_is_named(change: dict, problem: str) -> None:
    assert lost(BEFORE, Snapshot(**{**vars(AFTER), **change}), "run2", "success") == [problem]


@pytest.mark.parametrize("versions", [{"1": "run1"}, {"1": "run1", "2": "run2"}])
def test_failed_run_may_have_registered_its_model_or_not(versions: dict) -> None:
    assert lost(BEFORE, Snapshot(**{**vars(AFTER), "versions": versions}), "run2", "failed") == []


def test_files_are_compared_by_content(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pred.csv").write_text("a")
    (tmp_path / "run" / "data.csv").write_text("b")
    assert list(hashes(tmp_path)) == ["run/data.csv", "run/pred.csv"]
    before = hashes(tmp_path, ["pred.csv"])
    assert list(before) == ["run/pred.csv"]
    (tmp_path / "run" / "pred.csv").write_text("c")
    assert hashes(tmp_path, ["pred.csv"]) != before
    assert hashes(tmp_path / "missing") == {}


def test_names_choose_faults_in_their_order() -> None:
    assert [fault.name for fault in chosen("oom, node", "worker")] == ["oom", "node"]
    assert [fault.name for fault in chosen(" node oom ", "triggerer")] == ["node", "oom"]
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"FAULT=oops, x is no fault of .*there are .*oom, api-ser"):
        chosen("oops,oom,x", "worker")


@pytest.mark.parametrize(
    ("launch", "theirs"),
    [("worker", {"worker-pod", "worker-image"}), ("triggerer", {"triggerer-pod"})],
)
def test_each_part_that_follows_tasks_is_broken_where_it_does(launch: str, theirs: set) -> None:
    for_both = {fault.name for fault in FAULTS if not fault.launch}
    assert {fault.name for fault in chosen("", launch)} == for_both | theirs
    other = {"worker": "triggerer-pod", "triggerer": "worker-image"}[launch]
    with pytest.raises(UserError, match=f"{other} is no fault of tasks that a {launch} runs"):
        chosen(other, launch)


def going_pod(*conditions: k8s.V1PodCondition) -> k8s.V1Pod:
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="train", deletion_timestamp=datetime.now(UTC)),
        status=k8s.V1PodStatus(phase="Failed", conditions=list(conditions)),
    )


EVICTED = k8s.V1PodCondition(
    type="DisruptionTarget", status="True", reason="EvictionByEvictionAPI", message="by the API"
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("task-pod", explain_failure(going_pod(), "base")),
        ("task-pod", explain_absence(None)),
        ("eviction", explain_failure(going_pod(EVICTED), "base")),
        ("eviction", explain_absence(going_pod(EVICTED))),
        ("eviction", explain_absence(None)),
    ],
)
def test_a_pod_that_was_taken_away_is_known_by_each_wording(name: str, said: str) -> None:
    # Which one it is depends on whether the pod is still there when its log has ended.
    (fault,) = chosen(name, "worker")
    assert re.search(fault.said, said)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            "airflow.exceptions.AirflowException: Pod p returned a failure.\n"
            "[t] {x.py:2} ERROR - Failed to execute job 42 for task train_model "
            "(Pod p failed: OOMKilled: more (raise it); 83)\n[t] {x.py:3} INFO - bye",
            "Pod p failed: OOMKilled: more (raise it)",
        ),
        ("[t] {s.py:1} ERROR - Detected zombie job: {...}", "its worker gave no sign of life"),
        ("[t] {s.py:1} ERROR - The executor reported that ...", "its worker did not start"),
        ("[t] {s.py:1} INFO - hello", "no reason in its log"),
    ],
)
def test_reason_of_a_lost_try_comes_from_its_log(log: str, told: str) -> None:
    assert reason(log).startswith(told)
