"""Everybody's DAGs, as they come: a newcomer's, plain Airflow's, the course's own, in any script.

They are in a clone of the checkout, with the files of `dags/` beside this one, and reach the
cluster by the commands of docs/add-a-pipeline.md.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlctl.base.progress import Phase
from mlctl.clients.airflow import Airflow
from mlctl.clients.kube import Kube
from mlctl.publishing import publish
from mlctl.stack import Stack
from tests.e2e.conftest import Aloud, FollowRun
from tests.helpers.checkouts import clone_of_the_checkout

DAGS = Path(__file__).parent / "dags"
OURS = ["churn", "plain", "поезд", "training_dag"]
SECONDS = 1200


def make(clone: Path, target: str, **variables: str) -> str:
    """Return what a make target prints in the clone, which must succeed."""
    command = ["make", target, *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(command, cwd=clone, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def published(
    inference_run,
    stack: Stack,
    client: Airflow,
    tmp_path_factory: pytest.TempPathFactory,
    aloud: Aloud,
) -> Iterator[Path]:
    """The clone: files of this project but for the course's, of others, and a new one."""
    if stack.cluster.kind != "embedded":
        pytest.skip("only the embedded cluster serves a checkout")
    clone = clone_of_the_checkout(tmp_path_factory.mktemp("served"))
    shutil.copytree(DAGS, clone / "dags", dirs_exist_ok=True)
    (clone / "dags" / "course.py").rename(clone / "dags" / "training_dag.py")
    make(clone, "new-dag", NAME="weather")
    with aloud("`make sync` of everybody's DAGs"):
        make(clone, "sync")
    assert client.import_errors() == []
    yield clone
    publish(stack, Phase("publish the checkout again"))


@pytest.fixture(scope="module")
def runs(published, start, follow_run: FollowRun) -> dict:
    """A run of each, side by side."""
    run_ids = {dag_id: start(dag_id) for dag_id in OURS}
    return {dag_id: follow_run(dag_id, run_id, SECONDS) for dag_id, run_id in run_ids.items()}


def test_a_new_dag_runs_by_the_commands_of_the_docs(published: Path) -> None:
    told = make(published, "trigger", DAG="weather")
    assert "weather" in told
    assert "success" in told


def test_a_newcomers_dag_runs_with_results_that_are_mapped_over(runs) -> None:
    run = runs["churn"]
    assert run.state == "success", run.told()
    assert {name: task.state for name, task in run.tasks.items()} == {
        "fetch": "success",
        "nothing_new": "skipped",
        "score[0]": "success",
        "score[1]": "success",
    }


def test_plain_airflow_runs_as_it_comes(runs, airflow: Airflow) -> None:
    run = runs["plain"]
    assert run.state == "success", run.told()
    path = f"dags/plain/dagRuns/{run.run_id}/taskInstances/add/xcomEntries/return_value"
    assert airflow.get(path)["value"] == "12"
    assert run.results["with_result"] == {"rows": 3}
    assert run.results["with_value"] == {"rows": 5}
    assert "in a pod of its own" in run.logs["in_a_pod"]
    assert "while nobody waits" in run.logs["deferred"]


def test_names_in_any_script_run(runs) -> None:
    run = runs["поезд"]
    assert run.state == "success", run.told()
    assert "готово" in run.logs["数据"]


def test_the_course_runs_with_only_its_image_changed(runs, stack: Stack) -> None:
    """Up to W&B, which nobody reaches from here; the pods are in the namespace that it names."""
    run = runs["training_dag"]
    states = {name: task.state for name, task in run.tasks.items()}
    assert states["train_model"] == "success", run.told()
    assert states["clean_up"] == "success"
    assert states["upload_model"] == "failed"
    assert "ERROR: " in run.logs["upload_model"]


def test_nothing_runs_any_more(runs, stack: Stack) -> None:
    for namespace in (stack.kube.namespace, "default"):
        kube = Kube(stack.kube.kubeconfig, namespace)
        going = [
            pod["metadata"]["name"]
            for pod in kube.items("pods", "kubernetes_pod_operator=True")
            if pod["status"]["phase"] not in ("Succeeded", "Failed")
        ]
        assert going == []
