"""The settings file: defaults, overrides, and one clear message per fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_pipelines.settings import (
    TASK_IDS,
    Settings,
    SettingsError,
    load_settings,
    parse_settings,
)

SOURCE = "/etc/settings.json"


def parse(content: object) -> Settings:
    return parse_settings(content, SOURCE, {})


def test_what_the_file_says_is_read() -> None:
    """That the chart writes such files, whole ones, is in tests/chart/test_settings.py."""
    settings = parse(
        {
            "namespace": "ml-pipelines",
            "image": {"reference": "r.example/i:1", "pullPolicy": "Never", "pullSecrets": ["a"]},
            "storage": {"claimName": "claim"},
            "registry": {"type": "mlflow", "mlflow": {"trackingUri": "http://mlflow:5000"}},
            "schedule": {"training_dag": "@daily", "inference_dag": "0 10 * * *"},
            "inferenceOnNewModel": True,
        }
    )
    assert settings.namespace == "ml-pipelines"
    assert settings.image.reference == "r.example/i:1"
    assert settings.image.pull_policy == "Never"
    assert settings.image.pull_secrets == ("a",)
    assert settings.claim_name == "claim"
    assert settings.registry.type == "mlflow"
    assert settings.registry.mlflow.tracking_uri == "http://mlflow:5000"
    assert settings.schedules == {"training_dag": "@daily", "inference_dag": "0 10 * * *"}
    assert settings.inference_on_new_model is True
    assert settings.task("train_model").image == "r.example/i:1"


def test_without_a_file_the_settings_are_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_pipelines.settings.DEFAULT_PATH", "/nowhere/settings.json")
    settings = load_settings({"WANDB_PROJECT": "your-project", "WANDB_API_KEY": "your-key"})
    assert settings.namespace == "default"
    assert settings.image.reference == "ghcr.io/kyryl-opens-ml/classic-example:main"
    assert settings.image.pull_policy == "Always"
    assert settings.claim_name == "training-storage"
    assert settings.registry.type == "wandb"
    assert settings.registry.model_name == "airflow-pipeline"
    assert settings.registry.wandb.project == "your-project"
    assert settings.schedules == {"training_dag": None, "inference_dag": "0 9 * * *"}
    assert settings.inference_on_new_model is False
    assert settings.task("load_data").startup_timeout_seconds == 600
    assert "your-key" not in repr(settings)


def test_null_is_the_default_except_for_schedules() -> None:
    settings = parse({"namespace": None, "image": None, "schedule": {"inference_dag": None}})
    assert settings.namespace == "default"
    assert settings.image.reference == "ghcr.io/kyryl-opens-ml/classic-example:main"
    assert settings.schedules["inference_dag"] is None


def test_task_goes_over_the_defaults_key_by_key() -> None:
    settings = parse(
        {
            "defaults": {
                "retries": 5,
                "env": {"A": "1", "B": "1"},
                "resources": {"limits": {"memory": "8Gi"}},
                "tolerations": [{"key": "a", "operator": "Exists"}],
            },
            "tasks": {
                "train_model": {
                    "retries": 0,
                    "env": {"B": "2"},
                    "resources": {"limits": {"nvidia.com/gpu": 1}},
                    "tolerations": [{"key": "b", "operator": "Exists"}],
                    "serviceAccountName": "trainer",
                }
            },
            "serviceAccountName": "everybody",
        }
    )
    train, load = settings.task("train_model"), settings.task("load_data")

    assert (train.retries, load.retries) == (0, 5)
    assert (train.env, load.env) == ({"A": "1", "B": "2"}, {"A": "1", "B": "1"})
    assert train.resources["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "1"}
    assert load.resources["limits"] == {"memory": "8Gi"}
    assert train.tolerations == [{"key": "b", "operator": "Exists"}]
    assert load.tolerations == [{"key": "a", "operator": "Exists"}]
    assert (train.service_account_name, load.service_account_name) == ("trainer", "everybody")


def test_a_variable_has_one_source_whatever_the_defaults_say() -> None:
    from_secret = {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    from_map = {"valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": True}}}
    settings = parse(
        {
            "defaults": {"env": {"A": from_secret, "B": "text", "C": from_secret}},
            "tasks": {"train_model": {"env": {"A": from_map, "B": from_secret, "C": "text"}}},
        }
    )
    assert settings.task("train_model").env == {"A": from_map, "B": from_secret, "C": "text"}
    assert settings.task("load_data").env == {"A": from_secret, "B": "text", "C": from_secret}


@pytest.mark.parametrize(
    ("quantity", "text"), [(2, "2"), (0.5, "0.5"), ("1", "1"), ("250m", "250m"), ("1Pi", "1Pi")]
)
def test_quantities_are_what_kubernetes_takes(quantity: object, text: str) -> None:
    limits = {"nvidia.com/gpu": quantity, "ephemeral-storage": quantity}
    task = parse({"tasks": {"train_model": {"resources": {"limits": limits}}}}).task("train_model")
    assert task.resources["limits"] == dict.fromkeys(limits, text) | {"memory": "4Gi"}


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_every_task_has_limits_from_the_start(task_id: str) -> None:
    task = parse({}).task(task_id)
    assert task.retries >= 1
    assert task.retry_delay_seconds > 5
    assert 0 < task.startup_timeout_seconds < task.execution_timeout_seconds
    assert set(task.resources["requests"]) == {"cpu", "memory"}
    assert set(task.resources["limits"]) == {"memory"}


def test_unknown_task_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="train is not one of clean_storage_before_start, load_data"):
        parse({}).task("train")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "the file is []"),
        ({"image": "x"}, 'image is "x"'),
        ({"registry": {"mlflow": []}}, "registry.mlflow is []"),
        ({"defaults": 3}, "defaults is 3"),
        ({"tasks": {"train_model": "x"}}, 'tasks.train_model is "x"'),
    ],
)
def test_what_is_no_object_is_named(content: object, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse(content)
    assert str(error.value) == f"{SOURCE}: {told}; allowed: an object"


def test_keys_of_a_newer_chart_stop_no_pipeline() -> None:
    newer = {
        "tasks": {"train_model": {"retries": 1, "cacheSeconds": 5}, "evaluate": {"retries": 0}}
    }
    settings = parse(newer | {"image": {"reference": "a:1", "platform": "arm64"}, "metrics": {}})
    assert settings.task("train_model").retries == 1
    assert settings.task("train_model").image == "a:1"


def test_file_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("namespace: x")
    with pytest.raises(SettingsError, match=r"settings.json: not JSON: .*line 1 column 1"):
        load_settings({"ML_PIPELINES_SETTINGS": str(path)})


def test_file_that_is_named_but_missing(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with pytest.raises(SettingsError, match=r"no such file \(ML_PIPELINES_SETTINGS names it\)"):
        load_settings({"ML_PIPELINES_SETTINGS": str(path)})


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings({"ML_PIPELINES_SETTINGS": str(tmp_path)})


@pytest.mark.parametrize("name", ["training_dag", "inference_dag"])
def test_invalid_file_is_an_import_error_of_the_dag(load_dag, settings_file, name: str) -> None:
    path = settings_file({"image": "sometimes"})
    with pytest.raises(SettingsError, match="image is") as error:
        load_dag(name)
    assert str(path) in str(error.value)
