"""What the registries share: references, packages, the choice by environment."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from classic_example.errors import WorkloadError
from classic_example.registry import registry_from_environment
from classic_example.registry.base import (
    ModelRef,
    Package,
    load_from_registry,
    upload_to_registry,
)
from workload_helpers import DirectoryRegistry, Ended, everything_below

VARIABLES = ("REGISTRY", "MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL")


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "name", "alias", "version"),
    [
        ("airflow-pipeline", "airflow-pipeline", "latest", None),
        ("airflow-pipeline:latest", "airflow-pipeline", "latest", None),
        ("m:v3", "m", "v3", 3),
        ("m:12", "m", "12", 12),
        ("m:champion", "m", "champion", None),
        ("models:/m@champion", "m", "champion", None),
        ("models:/m/12", "m", "12", 12),
    ],
)
def test_reference_is_parsed(text: str, name: str, alias: str, version: int | None):
    ref = ModelRef.parse(text)
    assert (ref.name, ref.alias, ref.version) == (name, alias, version)


@pytest.mark.parametrize(
    "text", ["", ":latest", "a b", "a/b:latest", "a:b:c", "models:/", "m:'x", "../m"]
)
def test_odd_reference_is_refused(text: str):
    with pytest.raises(WorkloadError, match="is not a model reference"):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "no model registry is configured"),
        ({"REGISTRY": "sagemaker"}, "REGISTRY='sagemaker' is not known; allowed: wandb, mlflow"),
        ({"REGISTRY": "mlflow"}, "MLFLOW_TRACKING_URI= is not an http://"),
        ({"REGISTRY": "mlflow", "MLFLOW_TRACKING_URI": "sqlite:///x"}, "is not an http://"),
        ({"REGISTRY": "wandb"}, "WANDB_API_KEY is not set"),
    ],
)
def test_incomplete_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorkloadError, match=message):
        registry_from_environment()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"MLFLOW_TRACKING_URI": "http://m:5000"}, "mlflow"),
        ({"WANDB_API_KEY": "x"}, "wandb"),
        ({"WANDB_API_KEY": "x", "MLFLOW_TRACKING_URI": "http://m:5000"}, "wandb"),
        (
            {"REGISTRY": "MLflow", "WANDB_API_KEY": "x", "MLFLOW_TRACKING_URI": "http://m:5000"},
            "mlflow",
        ),
    ],
)
def test_registry_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert registry_from_environment().name == name


def test_package_holds_everything_but_the_mark_of_an_earlier_load(
    trained: tuple[Ended, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = shutil.copytree(trained[1], tmp_path / "model")
    (model / "registry.json").write_text("{}")
    monkeypatch.setenv("ML_PIPELINES_RUN_ID", "manual__2")
    packed = Package(model)
    assert {path.name for path in packed.files} == {p.name for p in trained[1].iterdir()}
    assert {path.name for path in packed.plots} == {"confusion_matrix.png", "training_curve.png"}
    assert packed.params["learning_rate"] == 0.005
    assert packed.history[0]["step"] == 5
    weights = (model / "model.safetensors").read_bytes()
    assert packed.tags["model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(packed.tags["data_sha256"]) == 64


def test_package_says_what_made_the_model_and_not_what_uploads_it(
    trained: tuple[Ended, Path], monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "ML_PIPELINES_DAG_ID": "training_dag",
        "ML_PIPELINES_RUN_ID": "manual__2",
        "ML_PIPELINES_DAGS_COMMIT": "another",
        "ML_PIPELINES_IMAGE": "registry.example/uploader:1",
        "ML_PIPELINES_TRAINING_IMAGE_DIGEST": "sha256:1a",
    }.items():
        monkeypatch.setenv(name, value)
    tags = Package(trained[1]).tags
    assert (tags["dag_id"], tags["run_id"]) == ("training_dag", "manual__2")
    assert (tags["dags_commit"], tags["image"]) == ("c0ffee", "registry.example/trainer:1")
    assert tags["image_digest"] == "sha256:1a"


def test_package_of_a_model_that_was_trained_by_hand(
    trained: tuple[Ended, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = shutil.copytree(trained[1], tmp_path / "model")
    (model / "lineage.json").write_text(json.dumps({"data_source": "files", "data_sha256": "0"}))
    monkeypatch.setenv("ML_PIPELINES_TRAINING_IMAGE_DIGEST", "")
    tags = Package(model).tags
    assert tags.pop("model_sha256")
    assert tags == {"data_source": "files", "data_sha256": "0"}


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        (["model.safetensors"], r"\*.safetensors"),
        (["config.json"], "config.json"),
        (["tokenizer.json", "vocab.txt"], "tokenizer file"),
    ],
)
def test_incomplete_model_is_not_uploaded(
    trained: tuple[Ended, Path], tmp_path: Path, gone: list[str], missing: str
):
    model = shutil.copytree(trained[1], tmp_path / "model")
    for name in gone:
        (model / name).unlink(missing_ok=True)
    with pytest.raises(WorkloadError, match=f"is not a trained model: it has no {missing}"):
        upload_to_registry(DirectoryRegistry(model, {}), "m", model)


def test_model_without_reports_and_with_files_in_directories_is_whole(
    trained: tuple[Ended, Path], tmp_path: Path
):
    model = tmp_path / "model"
    (model / "onnx").mkdir(parents=True)
    (model / "onnx" / "model.onnx").write_text("x")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(trained[1] / name, model / name)
    (model / "spiece.model").write_text("x")
    shutil.copyfile(model / "model.safetensors", model / "model-2.safetensors")
    packed = Package(model)
    assert {str(path.relative_to(model)) for path in packed.files} == everything_below(model)
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    lines = f"{digest}  model-2.safetensors\n{digest}  model.safetensors\n"
    assert packed.tags["model_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    registry = DirectoryRegistry(model, packed.tags)
    assert load_from_registry(registry, "m", tmp_path / "results")["version"] == "v1"
    (model / "model-2.safetensors").write_text("another")
    with pytest.raises(WorkloadError, match="damaged: its weights have changed"):
        load_from_registry(registry, "m", tmp_path / "results")


def test_upload_takes_no_alias(trained: tuple[Ended, Path]):
    with pytest.raises(WorkloadError, match="upload takes a plain model name"):
        upload_to_registry(DirectoryRegistry(trained[1], {}), "m:latest", trained[1])


def test_loaded_model_replaces_an_older_one_and_says_what_it_is(
    trained: tuple[Ended, Path], tmp_path: Path
):
    target = tmp_path / "results"
    target.mkdir()
    (target / "stale").write_text("x")
    tags = {"run_id": "r", "promoted_at": "2026-01-01T00:00:00+00:00"}
    result = load_from_registry(DirectoryRegistry(trained[1], tags), "m", target)
    assert result == {
        "registry": "directory",
        "name": "m",
        "version": "v1",
        "version_url": "",
        "path": str(target),
        "accuracy": trained[0].result["accuracy"],
        "promoted_seconds": 1767225600.0,
    }
    assert not (target / "stale").exists()
    mark = json.loads((target / "registry.json").read_text())
    assert mark["version"] == "v1"
    assert mark["reference"] == "m:latest"
    assert mark["metrics"] == json.loads((trained[1] / "metrics.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("fault", ["damaged", "incomplete"])
def test_broken_download_leaves_the_older_model(
    trained: tuple[Ended, Path], tmp_path: Path, fault: str
):
    source = shutil.copytree(trained[1], tmp_path / "server")
    tags = {"model_sha256": "0" * 64} if fault == "damaged" else {}
    if fault == "incomplete":
        (source / "model.safetensors").unlink()
    target = tmp_path / "results"
    target.mkdir()
    (target / "old").write_text("kept")
    with pytest.raises(WorkloadError, match=fault):
        load_from_registry(DirectoryRegistry(source, tags), "m", target)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "server"]
