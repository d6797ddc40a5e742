"""The settings file: what the chart's values (`pipelines`, `images` ...) say to the DAGs.

The chart writes it as `settings.json` into a ConfigMap and mounts that, so that an edit reaches the
DAGs without a restart. What it may hold is in the chart's values.schema.json, which Helm holds the
values against; there is no second schema here, and a key that is not known is one of a newer chart.
A key that is left out, or null, takes the value of the source document; without a file (`airflow
standalone` on a laptop) all of them do. A file that cannot be read is an import error of the DAGs:
a pipeline must not run with half of its settings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

PATH_VARIABLE = "ML_PIPELINES_SETTINGS"
DEFAULT_PATH = "/opt/airflow/ml-pipelines/settings.json"

# Label of a failed pod that is kept: the second (Unix time) from which on it may be deleted.
KEPT_UNTIL = "ml-pipelines/kept-until"

DAG_IDS = ("training_dag", "inference_dag")
TASK_IDS = (
    "clean_storage_before_start",
    "load_data",
    "train_model",
    "upload_model",
    "load_model",
    "run_inference",
    "clean_up",
)

# `pipelines.defaults` of the chart's values, for who has no chart; the reasons stand there.
DEFAULTS: dict[str, Any] = {
    "retries": 2,
    "retryDelaySeconds": 10,
    "startupTimeoutSeconds": 600,
    "stuckTimeoutSeconds": 120,
    "executionTimeoutSeconds": 3600,
    "failedPodTtlSeconds": 900,
    "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
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
}

# The same of `pipelines.tasks`.
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "clean_storage_before_start": {
        "executionTimeoutSeconds": 900,
        "resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "128Mi"}},
    },
    "train_model": {
        "executionTimeoutSeconds": 7200,
        "resources": {"requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
    },
    "clean_up": {
        "executionTimeoutSeconds": 900,
        "resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "128Mi"}},
    },
}


class SettingsError(ValueError):
    """The settings file cannot be read; the text names the file, and the key where it can."""


@dataclass(frozen=True)
class Image:
    """The image of the task pods: `reference` is repository:tag or repository@digest.

    A task may have another one; policy and pull secrets hold for that as well.
    """

    reference: str = "ghcr.io/kyryl-opens-ml/classic-example:main"
    # Always: the document's image is a tag that moves.
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "Always"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mlflow:
    """An MLflow server."""

    tracking_uri: str = "http://ml-pipelines-mlflow:5000"
    experiment: str = "ml-pipelines"


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases; the API key stays in the Secret, only the reference is known here."""

    project: str = ""
    entity: str = ""
    base_url: str = ""
    secret_name: str = "ml-pipelines-wandb"
    secret_key: str = "api-key"


@dataclass(frozen=True)
class Registry:
    """Where models are kept, and under which name."""

    mlflow: Mlflow
    wandb: Wandb
    type: Literal["mlflow", "wandb"] = "wandb"
    model_name: str = "airflow-pipeline"


@dataclass(frozen=True)
class TaskSettings:
    """How the pod of one task is run. Mappings and lists are as in the Kubernetes API."""

    retries: int
    retry_delay_seconds: int
    startup_timeout_seconds: int
    stuck_timeout_seconds: int
    execution_timeout_seconds: int
    failed_pod_ttl_seconds: int
    resources: dict[str, dict[str, str]]
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    affinity: dict[str, Any]
    env: dict[str, str | dict[str, Any]]
    env_from: list[dict[str, Any]]
    labels: dict[str, str]
    annotations: dict[str, str]
    image: str
    service_account_name: str = ""
    priority_class_name: str = ""
    runtime_class_name: str = ""


@dataclass(frozen=True)
class Settings:
    """All settings; `task()` gives those of one task."""

    namespace: str
    image: Image
    claim_name: str
    service_account_name: str
    registry: Registry
    schedules: dict[str, str | None]
    inference_on_new_model: bool
    defaults: dict[str, Any]
    tasks: dict[str, dict[str, Any]]

    def task(self, task_id: str) -> TaskSettings:
        """Settings of a task: what it says itself over the defaults of all tasks.

        Raises KeyError for a task that no pipeline has (see TASK_IDS).
        """
        if task_id not in TASK_IDS:
            raise KeyError(f"{task_id} is not one of {', '.join(TASK_IDS)}")
        merged = DEFAULTS
        for layer in (TASK_DEFAULTS.get(task_id, {}), self.defaults, self.tasks.get(task_id, {})):
            merged = _merge(merged, layer)
        # Helm writes large numbers as 1e+06, and a quantity of 2 is a number in YAML.
        merged |= {key: int(value) for key, value in merged.items() if isinstance(value, float)}
        merged["resources"] = {
            kind: {name: str(quantity) for name, quantity in quantities.items()}
            for kind, quantities in merged["resources"].items()
        }
        own = {"serviceAccountName": self.service_account_name, "image": self.image.reference}
        return _made(TaskSettings, own | _given(merged))


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the file named by ML_PIPELINES_SETTINGS, else the one at the chart's mount path.

    Without either, the settings are the source document's. Raises SettingsError when the variable
    names a file that does not exist, or when the file is not valid.
    """
    named = environment.get(PATH_VARIABLE)
    path = Path(named or DEFAULT_PATH)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if named:
            raise SettingsError(f"{path}: no such file ({PATH_VARIABLE} names it)") from error
        return parse_settings({}, DEFAULT_PATH, environment)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path}: not JSON: {error}") from error
    return parse_settings(content, str(path), environment)


def parse_settings(
    content: object, source: str, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings that a file holds; `source` is its name in the messages.

    Raises SettingsError for something that is no object where one belongs.
    """

    def section(*keys: str) -> dict[str, Any]:
        value: Any = content
        for key in keys:
            value = (value if value is not None else {}).get(key)
        if value is None or isinstance(value, dict):
            return value or {}
        where = ".".join(keys) or "the file"
        raise SettingsError(f"{source}: {where} is {json.dumps(value)}; allowed: an object")

    root, image, schedule = section(), section("image"), section("schedule")
    # The document exports WANDB_PROJECT before it starts Airflow. It also exports WANDB_API_KEY:
    # that one is never read here, the pods take it from the Secret.
    wandb = {"project": environment.get("WANDB_PROJECT", "")} | _given(section("registry", "wandb"))
    return Settings(
        namespace=root.get("namespace") or "default",
        image=_made(Image, image | {"pullSecrets": tuple(image.get("pullSecrets") or ())}),
        claim_name=section("storage").get("claimName") or "training-storage",
        service_account_name=root.get("serviceAccountName") or "",
        registry=_made(
            Registry,
            section("registry")
            | {
                "mlflow": _made(Mlflow, section("registry", "mlflow")),
                "wandb": _made(Wandb, wandb),
            },
        ),
        schedules={
            "training_dag": schedule.get("training_dag"),
            "inference_dag": schedule.get("inference_dag", "0 9 * * *"),
        },
        inference_on_new_model=root.get("inferenceOnNewModel") or False,
        defaults=section("defaults"),
        tasks={task_id: section("tasks", task_id) for task_id in section("tasks")},
    )


def _made(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a `kind` of the keys that it has; a key that it has not is one of a newer chart."""
    known = {field.name for field in fields(kind)}
    named = {re.sub("[A-Z]", lambda c: f"_{c[0].lower()}", k): v for k, v in values.items()}
    return kind(**{name: value for name, value in _given(named).items() if name in known})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is there: null is the default, and so is an empty text."""
    return {key: value for key, value in values.items() if value not in (None, "")}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`; objects are merged key by key, everything else is replaced.

    So is `valueFrom` of a variable, which names one source. What is null changes nothing.
    """
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            continue
        if key != "valueFrom" and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged
