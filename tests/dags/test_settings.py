"""The settings file: defaults, overrides, and one clear message per fault."""

from __future__ import annotations

import json
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

# The example of the chart: every key that it writes.
COMPLETE = {
    "namespace": "ml-pipelines",
    "image": {"reference": "r.example/i@sha256:abc", "pullPolicy": "Never", "pullSecrets": ["a"]},
    "storage": {"claimName": "training-storage"},
    "serviceAccountName": "ml-pipelines-task",
    "registry": {
        "type": "mlflow",
        "modelName": "airflow-pipeline",
        "mlflow": {"trackingUri": "http://ml-pipelines-mlflow:5000", "experiment": "ml-pipelines"},
        "wandb": {
            "project": "",
            "entity": "",
            "baseUrl": "",
            "secretName": "ml-pipelines-wandb",
            "secretKey": "api-key",
        },
    },
    "schedule": {"training_dag": None, "inference_dag": "0 9 * * *"},
    "inferenceOnNewModel": True,
    "defaults": {
        "retries": 2,
        "retryDelaySeconds": 10,
        "startupTimeoutSeconds": 600,
        "stuckTimeoutSeconds": 120,
        "executionTimeoutSeconds": 3600,
        "failedPodTtlSeconds": 900,
        "resources": {},
        "nodeSelector": {},
        "tolerations": [],
        "affinity": {},
        "env": {},
        "envFrom": [],
        "labels": {},
        "annotations": {},
        "priorityClassName": "",
        "runtimeClassName": "",
        "serviceAccountName": "",
        "image": "",
    },
    "tasks": {
        "train_model": {
            "resources": {"requests": {"cpu": 2}, "limits": {"nvidia.com/gpu": "1"}},
            "executionTimeoutSeconds": 7200,
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        }
    },
}


def parse(content: object) -> Settings:
    return parse_settings(content, SOURCE, {})


def test_complete_file_is_read() -> None:
    settings = parse(COMPLETE)
    assert settings.namespace == "ml-pipelines"
    assert settings.image.reference == "r.example/i@sha256:abc"
    assert settings.image.pull_policy == "Never"
    assert settings.image.pull_secrets == ("a",)
    assert settings.claim_name == "training-storage"
    assert settings.registry.type == "mlflow"
    assert settings.registry.mlflow.tracking_uri == "http://ml-pipelines-mlflow:5000"
    assert settings.schedules == {"training_dag": None, "inference_dag": "0 9 * * *"}
    assert settings.inference_on_new_model is True
    assert settings.task("train_model").image == "r.example/i@sha256:abc"


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


def test_file_is_found_by_the_variable(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"namespace": "elsewhere"}))
    assert load_settings({"ML_PIPELINES_SETTINGS": str(path)}).namespace == "elsewhere"


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


FAULTS = [
    ([], "the file is []; allowed: an object"),
    ({"image": "x"}, 'image is "x"; allowed: an object'),
    (
        {"nmespace": "x"},
        "nmespace is not a setting; allowed: image, storage, schedule, tasks, namespace, "
        "serviceAccountName, registry, defaults",
    ),
    (
        {"namespace": "Has Space"},
        "namespace is \"Has Space\"; allowed: a Kubernetes name (lower case letters, digits, '-'; "
        "at most 63 characters)",
    ),
    ({"namespace": ""}, 'namespace is ""; allowed: a Kubernetes name'),
    (
        {"image": {"reference": ""}},
        'image.reference is ""; allowed: repository:tag or repository@digest',
    ),
    (
        {"image": {"pullPolicy": "always"}},
        'image.pullPolicy is "always"; allowed: Always or IfNotPresent or Never',
    ),
    ({"image": {"pullSecrets": "x"}}, 'image.pullSecrets is "x"; allowed: a list'),
    ({"image": {"pullSecrets": [3]}}, "image.pullSecrets[0] is 3; allowed: a Kubernetes name"),
    ({"image": {"tag": "1"}}, "image.tag is not a setting; allowed: reference, pullPolicy, "),
    ({"storage": {"claimName": "a/b"}}, 'storage.claimName is "a/b"; allowed: a Kubernetes name'),
    ({"serviceAccountName": "A"}, 'serviceAccountName is "A"; allowed: a Kubernetes name'),
    ({"registry": {"type": "s3"}}, 'registry.type is "s3"; allowed: mlflow or wandb'),
    (
        {"registry": {"modelName": "a:b"}},
        "registry.modelName is \"a:b\"; allowed: a model name (no space, ':' or '/')",
    ),
    (
        {"registry": {"mlflow": {"trackingUri": "mlflow:5000"}}},
        'registry.mlflow.trackingUri is "mlflow:5000"; allowed: an http:// or https:// address',
    ),
    (
        {"registry": {"mlflow": {"experiment": " "}}},
        'registry.mlflow.experiment is " "; allowed: a name',
    ),
    (
        {"registry": {"wandb": {"baseUrl": "x"}}},
        'registry.wandb.baseUrl is "x"; allowed: an http:// or https:// address, or empty',
    ),
    (
        {"registry": {"wandb": {"secretKey": "a/b"}}},
        'registry.wandb.secretKey is "a/b"; allowed: a key of a Secret',
    ),
    (
        {"registry": {"wandb": {"apiKey": "x"}}},
        "registry.wandb.apiKey is not a setting; allowed: project, entity, baseUrl, ",
    ),
    (
        {"schedule": {"inference_dag": "9 o'clock"}},
        'schedule.inference_dag is "9 o\'clock"; allowed: five cron fields, @daily or alike, or '
        "null (started by hand)",
    ),
    ({"schedule": {"inference": None}}, "schedule.inference is not a setting; allowed: training_"),
    ({"defaults": {"retries": -1}}, "defaults.retries is -1; allowed: a whole number, 0 or more"),
    (
        {"defaults": {"retries": True}},
        "defaults.retries is true; allowed: a whole number, 0 or more",
    ),
    (
        {"tasks": {"load_data": {"executionTimeoutSeconds": 0}}},
        "tasks.load_data.executionTimeoutSeconds is 0; allowed: a whole number, 1 or more",
    ),
    (
        {"defaults": {"startupTimeoutSeconds": "10m"}},
        'defaults.startupTimeoutSeconds is "10m"; allowed: a whole number, 1 or more',
    ),
    (
        {"defaults": {"retryDelaySeconds": 1.5}},
        "defaults.retryDelaySeconds is 1.5; allowed: a whole number, 0 or more",
    ),
    (
        {"tasks": {"train": {}}},
        "tasks.train is not a setting; allowed: clean_storage_before_start, load_data, ",
    ),
    (
        {"tasks": {"train_model": {"memory": "1Gi"}}},
        "tasks.train_model.memory is not a setting; allowed: resources, retries, ",
    ),
    (
        {"tasks": {"train_model": {"resources": {"limits": {"memory": "1 GB"}}}}},
        'tasks.train_model.resources.limits.memory is "1 GB"; allowed: a quantity like 500m, 2 or ',
    ),
    (
        {"defaults": {"resources": {"limits": {"memory": None}}}},
        "defaults.resources.limits.memory is null; allowed: a quantity like 500m, 2 or 4Gi",
    ),
    (
        {"defaults": {"resources": {"memory": "1Gi"}}},
        "defaults.resources.memory is not a setting; allowed: requests, limits",
    ),
    ({"defaults": {"env": {"A": 1}}}, "defaults.env.A is 1; allowed: text in quotes"),
    (
        {"defaults": {"env": {"A": None}}},
        "defaults.env.A is null; allowed: text in quotes, or valueFrom with a secretKeyRef or the ",
    ),
    (
        {"defaults": {"env": {"A": {"secretKeyRef": {"name": "s", "key": "k"}}}}},
        'defaults.env.A is {"secretKeyRef": {"name": "s", "key": "k"}}; allowed: text in ',
    ),
    (
        {"defaults": {"env": {"A": {"valueFrom": {}}}}},
        "defaults.env.A.valueFrom has no reference; allowed: one of secretKeyRef, configMapKeyRef, "
        "fieldRef, resourceFieldRef",
    ),
    (
        {"defaults": {"env": {"A": {"valueFrom": {"secretKeyRef": {"name": "s"}}}}}},
        "defaults.env.A.valueFrom.secretKeyRef.key is null; allowed: a key of a Secret or ",
    ),
    (
        {"defaults": {"env": {"A": {"valueFrom": {"secretRef": {"name": "s"}}}}}},
        "defaults.env.A.valueFrom.secretRef is not a setting; allowed: secretKeyRef, ",
    ),
    (
        {"defaults": {"envFrom": [{"secretRef": {"name": "s"}, "configMapRef": {"name": "m"}}]}},
        "defaults.envFrom[0] has secretRef and configMapRef; allowed: one of secretRef, ",
    ),
    (
        {"defaults": {"envFrom": [{"secretRef": {"name": "s", "optional": "yes"}}]}},
        'defaults.envFrom[0].secretRef.optional is "yes"; allowed: true or false',
    ),
    ({"defaults": {"envFrom": {}}}, "defaults.envFrom is {}; allowed: a list"),
    (
        {"defaults": {"runtimeClassName": "N"}},
        'defaults.runtimeClassName is "N"; allowed: a Kubernetes name',
    ),
    (
        {"tasks": {"train_model": {"image": "an image"}}},
        'tasks.train_model.image is "an image"; allowed: repository:tag or repository@digest',
    ),
    (
        {"inferenceOnNewModel": "yes"},
        'inferenceOnNewModel is "yes"; allowed: true or false',
    ),
    ({"defaults": {"env": {"1A": "x"}}}, "defaults.env.1A is not a name that can be used"),
    (
        {"defaults": {"env": {"WANDB_API_KEY": "x"}}},
        "defaults.env.WANDB_API_KEY: a key has no place here; allowed: a Secret, named by "
        "registry.wandb.secretName",
    ),
    ({"defaults": {"labels": []}}, "defaults.labels is []; allowed: an object"),
    ({"defaults": {"nodeSelector": {"a": True}}}, "defaults.nodeSelector.a is true; allowed: text"),
    (
        {"defaults": {"tolerations": [{"keys": "a"}]}},
        "defaults.tolerations[0].keys is not a setting; allowed: key, operator, value, effect, ",
    ),
    (
        {"defaults": {"affinity": {"podAntiAfinity": {}}}},
        "defaults.affinity.podAntiAfinity is not a setting; allowed: nodeAffinity, podAffinity, ",
    ),
    (
        {"defaults": {"priorityClassName": 1}},
        "defaults.priorityClassName is 1; allowed: a Kubernetes name",
    ),
]


@pytest.mark.parametrize(("content", "message"), FAULTS, ids=[fault[1][:50] for fault in FAULTS])
def test_fault_names_file_key_value_and_what_is_allowed(content: object, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse(content)
    lines = str(error.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{SOURCE}: {message}")


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        parse({"namespace": 1, "image": {"reference": 2}, "tasks": {"x": {}}})
    assert len(str(error.value).splitlines()) == 3


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
    path = settings_file({"image": {"pullPolicy": "Sometimes"}})
    with pytest.raises(SettingsError, match=r"image\.pullPolicy") as error:
        load_dag(name)
    assert str(path) in str(error.value)
