"""A whole training run: every step, the model in the registry, nothing left behind.

In its middle the API server, Postgres and the scheduler are taken away, one after the other.
"""

import json
import re
from pathlib import Path

import pytest

from mlctl.base.paths import IMAGES_LOCK
from mlctl.clients.airflow import Airflow, container_lines
from mlctl.clients.volume import Volume
from mlctl.stack import Stack

ORDER = [
    *("clean_storage_before_start", "load_data", "train_model", "upload_model", "gate_model"),
    "clean_up",
]
AUDIT = ("gate_decision", "gate_reason", "gate_accuracy", "promoted_by", "promotion_reason")
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = pytest.mark.usefixtures("inference_started")


def test_every_task_succeeds_at_the_first_try(training_run) -> None:
    assert training_run.state == "success", training_run.told()
    assert {
        name: (task.state, task.try_number) for name, task in training_run.tasks.items()
    } == dict.fromkeys(ORDER, ("success", 1)), training_run.told()
    assert list(training_run.tasks) == ORDER


def test_the_model_is_better_than_the_baseline(training_run) -> None:
    trained = training_run.results["train_model"]
    assert trained["accuracy"] >= 0.80
    assert trained["accuracy"] > trained["baseline_accuracy"]


def test_the_data_is_real(training_run) -> None:
    loaded = training_run.results["load_data"]
    assert set(loaded["rows"]) == {"train", "val", "test", "gold"}
    assert sum(loaded["rows"].values()) > 10_000
    assert re.fullmatch(r"[0-9a-f]{64}", loaded["sha256"])


def test_the_model_is_registered_once_with_its_metrics(training_run, mlflow) -> None:
    uploaded = training_run.results["upload_model"]
    assert (uploaded["registry"], uploaded["name"]) == ("mlflow", "airflow-pipeline")
    made = [one["tags"]["run_id"] for one in mlflow.versions(uploaded["name"])]
    assert made.count(training_run.run_id) == 1
    version = mlflow.version(uploaded["name"], uploaded["version"])
    run = mlflow.get("api/2.0/mlflow/runs/get", run_id=version["run_id"]).json()["run"]
    metrics = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    trained = training_run.results["train_model"]
    assert abs(metrics["accuracy"] - trained["accuracy"]) < 1e-5
    assert abs(metrics["baseline_accuracy"] - trained["baseline_accuracy"]) < 1e-5


def test_the_page_of_the_run_says_what_it_came_to(training_run, airflow: Airflow) -> None:
    """In a note, and with links to MLflow as people open it."""
    path = f"dags/training_dag/dagRuns/{training_run.run_id}"
    uploaded, gate = (training_run.results[task] for task in ("upload_model", "gate_model"))
    note = airflow.get(path)["note"].splitlines()
    assert f"- train_model: {training_run.results['train_model']['note']}" in note
    assert f"- gate_model: {uploaded['version']} is promoted: {gate['reason']}" in note
    answer = airflow.get(f"{path}/taskInstances/upload_model/links")
    links = answer.get("extra_links", answer)
    pages, view = "http://localhost:5000/#", "?workflowType=machine_learning"
    assert links["Run in the registry"].startswith(f"{pages}/experiments/")
    assert links["Run in the registry"].endswith(view)
    version = uploaded["version"].removeprefix("v")
    assert links["Model version"] == f"{pages}/models/{uploaded['name']}/versions/{version}{view}"


def test_the_version_says_what_made_it(training_run, commit: str, mlflow, stack: Stack) -> None:
    uploaded = training_run.results["upload_model"]
    version = mlflow.version(uploaded["name"], uploaded["version"])
    loaded, trained = (training_run.results[task] for task in ("load_data", "train_model"))
    made = dict(version["tags"])
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", trained["image_digest"])
    assert re.fullmatch(r"[0-9a-f]{64}", made.pop("model_sha256"))
    gate = training_run.results["gate_model"]
    audit = {name: made.pop(name) for name in AUDIT}
    assert audit["gate_decision"] == gate["decision"] == "promoted"
    assert audit["gate_reason"] == gate["reason"]
    assert audit["promoted_by"] == f"gate training_dag {training_run.run_id}"
    assert made.pop("promoted_at")
    assert made == {
        "dag_id": "training_dag",
        "run_id": training_run.run_id,
        "dags_commit": commit,
        "image": stack.image,
        "image_digest": trained["image_digest"],
        "data_source": loaded["source"],
        "data_sha256": loaded["sha256"],
        "device": trained["device"],
    }
    # First on the page of the version; the run's page has the same tags.
    assert f"held-out accuracy {trained['accuracy']:.4f}" in version["description"]
    assert loaded["source"] in version["description"]
    run = mlflow.get("api/2.0/mlflow/runs/get", run_id=version["run_id"]).json()["run"]
    assert made.items() <= {tag["key"]: tag["value"] for tag in run["data"]["tags"]}.items()


def test_every_task_says_which_image_it_ran(training_run, stack: Stack) -> None:
    ran = {
        (result.get("image"), result.get("image_digest"))
        for result in training_run.results.values()
    }
    assert len(training_run.results) == len(ORDER)
    digest = training_run.results["train_model"]["image_digest"]
    assert ran == {(stack.image, digest)}
    if stack.cluster.kind == "embedded":
        # Imported and not pulled: the node knows it by the digest of its configuration.
        built = json.loads(IMAGES_LOCK.read_text())["classic-example"]
        assert digest == configuration_digest(Path(built["layout"]))


def configuration_digest(layout: Path) -> str:
    """Return the digest of the configuration of the one image in an OCI image layout."""

    def document(path: str):
        return json.loads((layout / path).read_text())

    (manifest,) = document("index.json")["manifests"]
    return document(f"blobs/{manifest['digest'].replace(':', '/')}")["config"]["digest"]


def test_the_plots_are_in_the_registry(training_run, mlflow) -> None:
    uploaded = training_run.results["upload_model"]
    version = mlflow.version(uploaded["name"], uploaded["version"])
    files = list(artifacts(mlflow, version["run_id"]))
    plots = [path for path in files if path.endswith(".png")]
    assert any("confusion" in path for path in plots), files
    for path in plots:
        content = mlflow.get("get-artifact", run_id=version["run_id"], path=path).content
        assert content.startswith(PNG), path
        assert len(content) > 2000, path


def artifacts(mlflow, run_id: str, path: str = ""):
    found = mlflow.get("api/2.0/mlflow/artifacts/list", run_id=run_id, path=path).json()
    for entry in found.get("files", []):
        if entry["is_dir"]:
            yield from artifacts(mlflow, run_id, entry["path"])
        else:
            yield entry["path"]


def test_the_directory_of_the_run_is_empty(training_run, stack: Stack, volume: Volume) -> None:
    assert volume.files(stack.run_path("training_dag", training_run.run_id)) == []


def test_logs_outlive_their_pods(training_run, stack: Stack, airflow: Airflow) -> None:
    selector = "dag_id=training_dag"
    stack.kube.run("wait", "pods", "--for=delete", "--selector", selector, "--timeout=60s")
    assert stack.kube.items("pods", selector) == []
    for name in ORDER:
        log = airflow.log("training_dag", training_run.run_id, name)
        assert "Marking task as SUCCESS" in log, name
    results = [
        line
        for line in container_lines(airflow.log("training_dag", training_run.run_id, "train_model"))
        if line.startswith("RESULT ")
    ]
    assert len(results) == 1
