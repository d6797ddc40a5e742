"""The pods that the tasks ask for: whole specifications, for a fixed run id."""

from __future__ import annotations

import copy

import pytest

from ml_pipelines.lineage import dags_commit
from tests.helpers.pipelines import EVERY_TASK

RUN_ID = "manual__2026-11-23T09:00:00+00:00"
RUN_DIRECTORY = "manual__2026-11-23T09-00-00-00-00-476cf0ba3706"

SETTINGS = {
    "namespace": "ml-pipelines",
    "image": {
        "reference": "registry.example/classic-example:1",
        "pullPolicy": "IfNotPresent",
        "pullSecrets": ["registry-login"],
    },
    "storage": {"claimName": "training-storage"},
    "serviceAccountName": "ml-pipelines-task",
    "registry": {"type": "mlflow", "mlflow": {"trackingUri": "http://ml-pipelines-mlflow:5000"}},
}

WANDB_SETTINGS = {
    **SETTINGS,
    "registry": {
        "type": "wandb",
        "wandb": {"project": "sentiment", "entity": "team", "secretName": "ml-pipelines-wandb"},
    },
}

MLFLOW_ENV = [
    {"name": "REGISTRY", "value": "mlflow"},
    {"name": "MLFLOW_TRACKING_URI", "value": "http://ml-pipelines-mlflow:5000"},
    {"name": "MLFLOW_EXPERIMENT_NAME", "value": "ml-pipelines"},
]

WANDB_ENV = [
    {"name": "REGISTRY", "value": "wandb"},
    {"name": "WANDB_PROJECT", "value": "sentiment"},
    {"name": "WANDB_ENTITY", "value": "team"},
    {
        "name": "WANDB_API_KEY",
        "valueFrom": {
            "secretKeyRef": {"name": "ml-pipelines-wandb", "key": "api-key", "optional": True}
        },
    },
]

EMPTY = ["sh", "-ceu", "find /tmp -mindepth 1 -print -delete"]
CLI = ["python", "classic_example/cli.py"]

COMMANDS = {
    ("training_dag", "clean_storage_before_start"): EMPTY,
    ("training_dag", "load_data"): [*CLI, "load-sst2-data", "/tmp/data/"],
    ("training_dag", "train_model"): [*CLI, "train", "tests/data/test_config.json"],
    ("training_dag", "upload_model"): [
        *CLI,
        "upload-to-registry",
        "airflow-pipeline",
        "/tmp/results",
    ],
    ("training_dag", "clean_up"): EMPTY,
    ("inference_dag", "clean_storage_before_start"): EMPTY,
    ("inference_dag", "load_data"): [*CLI, "load-sst2-data", "/tmp/data/"],
    ("inference_dag", "load_model"): [
        *CLI,
        "load-from-registry",
        "airflow-pipeline:latest",
        "/tmp/results/",
    ],
    ("inference_dag", "run_inference"): [
        *CLI,
        "run-inference-on-dataframe",
        "/tmp/data/test.csv",
        "/tmp/results/",
        "/tmp/pred.csv",
    ],
}

CLEANING = {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}}
WORK = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}
TRAINING = {"requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
RESOURCES = {
    "clean_storage_before_start": CLEANING,
    "load_data": WORK,
    "train_model": TRAINING,
    "upload_model": WORK,
    "load_model": WORK,
    "run_inference": WORK,
    "clean_up": CLEANING,
}
DEADLINES = {"clean_storage_before_start": 960, "train_model": 7260, "clean_up": 960}
REGISTRY_TASKS = {"upload_model", "load_model"}
# What a task is told of one before it; nothing here, as nothing has run.
OF_BEFORE = {
    ("training_dag", "upload_model"): "ML_PIPELINES_TRAINING_IMAGE_DIGEST",
    ("inference_dag", "clean_up"): "ML_PIPELINES_INFERENCE_IMAGE_DIGEST",
}


def expected_spec(dag_id: str, task_id: str, registry_env: list[dict]) -> dict:
    of_before = OF_BEFORE.get((dag_id, task_id))
    directory = f"{dag_id}/{RUN_DIRECTORY}"
    return {
        "activeDeadlineSeconds": DEADLINES.get(task_id, 3660),
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "base",
                "image": "registry.example/classic-example:1",
                "imagePullPolicy": "IfNotPresent",
                "command": COMMANDS.get((dag_id, task_id)),
                "env": [
                    {"name": "ML_PIPELINES_DAG_ID", "value": dag_id},
                    {"name": "ML_PIPELINES_RUN_ID", "value": RUN_ID},
                    {"name": "ML_PIPELINES_RUN_DIRECTORY", "value": directory},
                    {"name": "ML_PIPELINES_IMAGE", "value": "registry.example/classic-example:1"},
                    {"name": "ML_PIPELINES_DAGS_COMMIT", "value": dags_commit()},
                    *(registry_env if task_id in REGISTRY_TASKS else []),
                    *([{"name": of_before, "value": ""}] if of_before else []),
                ],
                "resources": RESOURCES[task_id],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "training-storage", "mountPath": "/tmp", "subPath": directory}
                ],
            }
        ],
        "enableServiceLinks": False,
        "imagePullSecrets": [{"name": "registry-login"}],
        "restartPolicy": "Never",
        "securityContext": {
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsGroup": 10001,
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "serviceAccountName": "ml-pipelines-task",
        "terminationGracePeriodSeconds": 5,
        "volumes": [
            {
                "name": "training-storage",
                "persistentVolumeClaim": {"claimName": "training-storage"},
            }
        ],
    }


def without_empty(value: object) -> object:
    """Providers differ in which empty fields they send; to the API server it is all the same."""
    if isinstance(value, dict):
        return {k: c for k, v in value.items() if (c := without_empty(v)) not in ({}, [], None)}
    if isinstance(value, list):
        return [without_empty(item) for item in value]
    return value


@pytest.mark.parametrize("registry", ["mlflow", "wandb"])
@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_pod(load_dag, settings_file, render_pod, dag_id: str, task_id: str, registry: str) -> None:
    settings_file(SETTINGS if registry == "mlflow" else WANDB_SETTINGS)
    pod = render_pod(load_dag(dag_id).get_task(task_id), RUN_ID)

    spec = without_empty(pod["spec"])
    spec.pop("hostNetwork", None)
    expected = expected_spec(dag_id, task_id, MLFLOW_ENV if registry == "mlflow" else WANDB_ENV)
    if (dag_id, task_id) == ("inference_dag", "clean_up"):  # see test_cleaning.py
        script = spec["containers"][0]["command"][-1]
        expected["containers"][0]["command"] = ["sh", "-ceu", script]
    assert spec == expected

    name, _, suffix = pod["metadata"]["name"].rpartition("-")
    assert (name, len(suffix)) == (task_id.replace("_", "-"), 8)
    assert pod["metadata"]["namespace"] == "ml-pipelines"
    labels = pod["metadata"]["labels"]
    assert labels["dag_id"] == dag_id
    assert labels["task_id"] == task_id
    assert labels["app.kubernetes.io/name"] == "ml-pipelines"
    assert labels["app.kubernetes.io/component"] == "task"


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_pod_holds_for_the_documents_settings(
    load_dag, render_pod, dag_id: str, task_id: str
) -> None:
    """Without a settings file, as under `airflow standalone`."""
    pod = render_pod(load_dag(dag_id).get_task(task_id), RUN_ID)
    container = pod["spec"]["containers"][0]

    assert pod["metadata"]["namespace"] == "default"
    assert container["image"] == "ghcr.io/kyryl-opens-ml/classic-example:main"
    assert container["imagePullPolicy"] == "Always"
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "training-storage"}
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    if task_id in REGISTRY_TASKS:
        assert env["REGISTRY"] == "wandb"
        assert env["WANDB_PROJECT"] == "planted-project"
        assert env["WANDB_API_KEY"] is None
    else:
        assert {name for name in env if not name.startswith("ML_PIPELINES_")} == set()


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_two_runs_in_one_process_get_directories_of_their_own(
    load_dag, render_pod, dag_id: str, task_id: str
) -> None:
    def sub_path(pod: dict) -> str:
        return pod["spec"]["containers"][0]["volumeMounts"][0]["subPath"]

    task = load_dag(dag_id).get_task(task_id)
    # The worker renders a copy of the task, the copies share nothing that rendering writes to.
    first = render_pod(copy.deepcopy(task), "a:b")
    second = render_pod(copy.deepcopy(task), "a+b")
    assert sub_path(first) != sub_path(second)
    assert sub_path(first).startswith(f"{dag_id}/a-b-")
    assert sub_path(second).startswith(f"{dag_id}/a-b-")
