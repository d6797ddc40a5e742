"""The Python of the pages for people with DAGs of their own, and what `make new-dag` writes."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlctl.commands import new_dag
from tests.dags.conftest import CHART_SETTINGS
from tests.helpers import pages
from tools import dags_page

POD_FILE = "/opt/airflow/ml-pipelines/pod.yaml"
# What a page does not repeat in each of its blocks.
AROUND = """
from datetime import UTC, datetime
from airflow import DAG
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from ml_pipelines import PodOperator
with DAG("documented", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
"""


def blocks() -> list[Any]:
    """The blocks of the pages, each with the page's name and its line."""
    return [
        pytest.param(block.text, id=f"{page}:{block.line}")
        for page in ("add-a-pipeline.md", "bring-your-dags.md")
        for block in pages.blocks(f"docs/{page}", "python")
    ]


@pytest.mark.parametrize("block", blocks())
def test_python_of_the_pages_makes_tasks_with_pods(
    block: str, settings_file, render_pod, tmp_path: Path
) -> None:
    pod_file = tmp_path / "pod.yaml"
    pod_file.write_text(yaml.safe_dump(CHART_SETTINGS["pod"]))
    presets = CHART_SETTINGS["presets"] | {"gpu": {}}
    settings_file(CHART_SETTINGS | {"presets": presets})
    code = block.replace(POD_FILE, str(pod_file))
    if "DAG(" not in code:
        code = AROUND + "".join(f"    {line}\n" for line in code.splitlines())
    if "Operator(" not in block:  # an import alone
        code += '    KubernetesPodOperator(task_id="train", image="i")\n'
    file = tmp_path / "documented.py"
    file.write_text(code)
    made = runpy.run_path(str(file))
    dag = made["dag"] if "dag" in made else made["train"].dag
    dag.user_defined_macros = {"ds": "2024-01-01"}
    assert dag.tasks
    for task in dag.tasks:
        (container,) = render_pod(task, "manual__1")["spec"]["containers"]
        assert container["name"] == "base"
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == "/tmp"


def test_the_page_of_the_dags_is_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_PIPELINES_SETTINGS", "")  # it sets its own
    stale = "docs/dags.md is stale: tools/python -m mlctl dags-page"
    assert dags_page.PAGE.read_text() == dags_page.page(), stale


def test_what_new_dag_writes_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in {"ROOT": tmp_path, "DAGS": tmp_path, "TESTS": tmp_path}.items():
        monkeypatch.setattr(new_dag, name, path)
    new_dag.new_dag("churn")
    written = runpy.run_path(str(tmp_path / "test_churn.py"))
    tests = [test for name, test in written.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0](lambda name: runpy.run_path(str(tmp_path / f"{name}.py"))["dag"])
