"""Every DAG file imports, with little else, and is what the document says: id, schedule, order."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.dags.conftest import CHART_SETTINGS

DAGS = Path(__file__).parents[2] / "dags"
# Every DAG that is there, also one of `make new-dag`, and the two of the document.
# What is no DAG is named by .airflowignore.
HELPERS = {"approval", "example_parts"}
DAG_FILES = sorted({file.stem for file in DAGS.glob("*.py")} - HELPERS)
OURS = ["inference_dag", "training_dag"]

ORDER = {
    "training_dag": {
        ("clean_storage_before_start", "load_data"),
        ("load_data", "train_model"),
        ("train_model", "upload_model"),
        # The teardown waits for every task, so that it never runs under one of them.
        ("clean_storage_before_start", "clean_up"),
        ("load_data", "clean_up"),
        ("train_model", "clean_up"),
        ("upload_model", "clean_up"),
    },
    "inference_dag": {
        ("clean_storage_before_start", "load_data"),
        ("clean_storage_before_start", "load_model"),
        ("load_data", "run_inference"),
        ("load_model", "run_inference"),
        ("clean_storage_before_start", "clean_up"),
        ("load_data", "clean_up"),
        ("load_model", "clean_up"),
        ("run_inference", "clean_up"),
    },
}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_airflow_finds_the_dags_and_nothing_else() -> None:
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 2
        from airflow.models.dagbag import DagBag

    bag = DagBag(dag_folder=str(DAGS))

    assert bag.import_errors == {}
    assert set(bag.dags) >= set(OURS)
    # Helpers are not parsed as DAG files: .airflowignore names them.
    assert sorted({Path(dag.fileloc).stem for dag in bag.dags.values()}) == DAG_FILES
    assert sorted(Path(stat.file).stem for stat in bag.dagbag_stats) == DAG_FILES


@pytest.mark.parametrize("name", OURS)
def test_tasks_run_in_the_order_of_the_document(load_dag, name: str) -> None:
    dag = load_dag(name)
    edges = {(task.task_id, below) for task in dag.tasks for below in task.downstream_task_ids}
    assert edges == ORDER[name]


@pytest.mark.parametrize(("name", "cron"), [("training_dag", None), ("inference_dag", "0 9 * * *")])
def test_schedule_is_the_documents(load_dag, name: str, cron: str | None) -> None:
    dag = load_dag(name)
    expression = getattr(dag.timetable, "_expression", None) or getattr(
        dag.timetable, "expression", None
    )
    assert expression == cron
    assert dag.timetable.can_be_scheduled is (cron is not None)
    assert dag.start_date == datetime(2021, 1, 1, tzinfo=UTC)
    assert dag.catchup is False


@pytest.mark.parametrize("name", OURS)
def test_dag_says_what_it_is_and_takes_five_runs_at_once(load_dag, name: str) -> None:
    dag = load_dag(name)
    assert dag.dag_id == name
    assert dag.default_args["owner"] == "ml-pipelines"
    assert {task.owner for task in dag.tasks} == {"ml-pipelines"}
    assert "ml-pipelines" in dag.tags
    assert f"airflow dags trigger {name}" in dag.doc_md
    assert dag.max_active_runs >= 5


@pytest.mark.parametrize("name", OURS)
def test_the_page_of_each_task_says_what_it_does_and_what_to_do(
    load_dag, settings_file, name: str
) -> None:
    """Of those too that only other values bring."""
    model = CHART_SETTINGS["model"] | {"approval": True}
    inference = CHART_SETTINGS["inference"] | {"shards": 2, "retrainOnDrift": 0.2}
    settings_file(CHART_SETTINGS | {"model": model, "inference": inference})
    for task in load_dag(name).tasks:
        text = getattr(task, "partial_kwargs", vars(task))["doc_md"]
        told = [line for line in text.splitlines() if line]
        assert [line.partition("**: ")[0] for line in told[1:]] == [
            "* **Takes",
            "* **Leaves",
            "* **When it fails",
        ], task.task_id


def test_parsing_imports_nothing_but_the_dags_own_modules() -> None:
    """In a fresh process that has what every Airflow process has: each parse pays for the rest.

    Airflow 2 takes jsonschema, and what that needs, to look at the value of a Param.
    """
    script = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(DAGS)!r})\n"
        "from airflow import DAG\n"
        "from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator\n"
        "try:\n"
        "    from airflow.sdk import Param\n"
        "except ImportError:\n"
        "    from airflow.models.param import Param\n"
        "Param(None, type='null').resolve()\n"
        "before = set(sys.modules)\n"
        f"for name in {OURS!r}:\n"
        "    __import__(name)\n"
        "modules = {module.split('.')[0] for module in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    # Airflow 3 takes croniter for a DAG with a schedule, Airflow 2 the others for a dataset; for
    # one whose scheme it does not know it takes every provider, and Flask.
    airflows = {"airflow", "croniter", "attrs", "packaging"}
    assert modules - airflows == {"ml_pipelines", "example_parts", *OURS}
