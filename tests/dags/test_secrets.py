"""No key in a pod, a rendered field or the serialized DAG.

conftest.py plants one in the environment, as the source document does (`export WANDB_API_KEY=...`),
before Airflow and the DAGs are imported.
"""

from __future__ import annotations

import json
import os

import pytest
from kubernetes.client import models as k8s

from tests.helpers.pipelines import stored

KEY = os.environ["WANDB_API_KEY"]
DAG_TASKS = [
    ("training_dag", "upload_model"),
    ("training_dag", "train_model"),
    ("training_dag", "gate_model"),
    ("inference_dag", "load_model"),
    ("inference_dag", "run_inference"),
]


@pytest.fixture
def dag_with_wandb(load_dag, chart_settings):
    return load_dag


@pytest.mark.parametrize("dag_id", ["training_dag", "inference_dag"])
def test_no_key_in_the_serialized_dag(dag_with_wandb, dag_id: str) -> None:
    text = stored(dag_with_wandb(dag_id))
    assert KEY not in text
    # The search works: what is not secret is there.
    assert "classic_example/cli.py" in text


@pytest.mark.parametrize(("dag_id", "task_id"), DAG_TASKS)
def test_no_key_in_rendered_fields_and_the_pod(
    dag_with_wandb, render_pod, dag_id: str, task_id: str
) -> None:
    task = dag_with_wandb(dag_id).get_task(task_id)
    pod = json.dumps(render_pod(task, "run", {"upload_model": {"version": "v3"}}))
    fields = " ".join(str(getattr(task, field)) for field in task.template_fields)
    assert KEY not in pod + fields
    # The reference goes where the registry is used, and nowhere else.
    uses_registry = task_id != "run_inference"
    assert ("visible-project" in pod) is uses_registry
    assert ("secretKeyRef" in pod) is uses_registry


def test_the_key_is_planted_and_the_search_would_find_it(load_dag, render_pod) -> None:
    """The document's way, `env_vars` from the environment, shows in both places."""
    dag = load_dag("training_dag")
    task = dag.get_task("upload_model")
    task.env_vars = [k8s.V1EnvVar(name="WANDB_API_KEY", value=KEY)]
    assert KEY in stored(dag)
    assert KEY in json.dumps(render_pod(task, "run"))
