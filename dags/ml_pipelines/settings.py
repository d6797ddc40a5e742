"""The settings file: what the chart's values (`pipelines`, `images` ...) say to the DAGs.

The chart writes it as `settings.json` into a ConfigMap and mounts that, so that an edit reaches the
DAGs without a restart. A key that is left out, or null, takes the value of the source document;
without a file (`airflow standalone` on a laptop) all of them do. A file that is wrong is an import
error of the DAGs which lists every fault: a pipeline must not run with half of its settings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

# Starting values of every task: `pipelines.defaults` in the chart's values changes them.
DEFAULTS: dict[str, Any] = {
    # Two: one for a fault of the cluster (a node that goes away), one for the registry.
    "retries": 2,
    # Longer than the pods' grace period (5 s): two tries never write at the same time.
    "retryDelaySeconds": 10,
    # The source document's.
    "startupTimeoutSeconds": 600,
    # For a registry that is away for a moment; a Secret that is missing does not come by waiting.
    "stuckTimeoutSeconds": 120,
    # From the start of the task to its end, waiting for the pod included.
    "executionTimeoutSeconds": 3600,
    # Long enough for a `kubectl describe` after the message of a failed run.
    "failedPodTtlSeconds": 900,
    # No CPU limit: it would only slow a task down. The memory limit names the task that leaks
    # instead of letting the node choose a victim.
    "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
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

# What differs per task; `pipelines.defaults` and `pipelines.tasks` both go over it.
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "clean_storage_before_start": {
        "executionTimeoutSeconds": 900,
        "resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "128Mi"}},
    },
    "train_model": {
        "executionTimeoutSeconds": 7200,
        "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "4Gi"}},
    },
    "clean_up": {
        "executionTimeoutSeconds": 900,
        "resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "128Mi"}},
    },
}

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*"
_SECRET_KEY = r"[-._a-zA-Z0-9]{1,253}"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?"
_URL = r"https?://[^\s/]+\S*"
_CRON = r"(\S+ +){4}\S+|@(once|hourly|daily|weekly|monthly|quarterly|yearly)"

_LABEL_RULE = "a Kubernetes name (lower case letters, digits, '-'; at most 63 characters)"
_SUBDOMAIN_RULE = "a Kubernetes name (lower case letters, digits, '-' and '.')"
_TOLERATION_KEYS = ("key", "operator", "value", "effect", "tolerationSeconds")
_AFFINITY_KEYS = ("nodeAffinity", "podAffinity", "podAntiAffinity")

_REFERENCE_KEYS = {
    "name": (_SUBDOMAIN, _SUBDOMAIN_RULE),
    "key": (_SECRET_KEY, "a key of a Secret or ConfigMap"),
    "fieldPath": (r"\S+", "a field of the pod like metadata.name"),
    "resource": (r"\S+", "a resource of the container like limits.cpu"),
}
_VALUE_SOURCES = {
    "secretKeyRef": ("name", "key"),
    "configMapKeyRef": ("name", "key"),
    "fieldRef": ("fieldPath",),
    "resourceFieldRef": ("resource",),
}
_ENV_SOURCES = {"secretRef": ("name",), "configMapRef": ("name",)}


class SettingsError(ValueError):
    """The settings file is wrong: one line per fault, with file, key and what is allowed."""


@dataclass(frozen=True)
class Image:
    """The image of the task pods: `reference` is repository:tag or repository@digest.

    A task may have another one; policy and pull secrets hold for that as well.
    """

    reference: str
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    pull_secrets: tuple[str, ...]


@dataclass(frozen=True)
class Mlflow:
    """An MLflow server."""

    tracking_uri: str
    experiment: str


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases; the API key stays in the Secret, only the reference is known here."""

    project: str
    entity: str
    base_url: str
    secret_name: str
    secret_key: str


@dataclass(frozen=True)
class Registry:
    """Where models are kept, and under which name."""

    type: Literal["mlflow", "wandb"]
    model_name: str
    mlflow: Mlflow
    wandb: Wandb


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
    priority_class_name: str
    runtime_class_name: str
    service_account_name: str
    image: str


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
        return TaskSettings(
            retries=merged["retries"],
            retry_delay_seconds=merged["retryDelaySeconds"],
            startup_timeout_seconds=merged["startupTimeoutSeconds"],
            stuck_timeout_seconds=merged["stuckTimeoutSeconds"],
            execution_timeout_seconds=merged["executionTimeoutSeconds"],
            failed_pod_ttl_seconds=merged["failedPodTtlSeconds"],
            resources=merged["resources"],
            node_selector=merged["nodeSelector"],
            tolerations=merged["tolerations"],
            affinity=merged["affinity"],
            env=merged["env"],
            env_from=merged["envFrom"],
            labels=merged["labels"],
            annotations=merged["annotations"],
            priority_class_name=merged["priorityClassName"],
            runtime_class_name=merged["runtimeClassName"],
            service_account_name=merged["serviceAccountName"] or self.service_account_name,
            image=merged["image"] or self.image.reference,
        )


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
    """Check the content of a settings file; `source` is its name in the messages.

    Raises SettingsError with one line per fault.
    """
    faults: list[str] = []
    root = _Section(content, "", faults)

    image = root.section("image")
    storage = root.section("storage")
    schedule = root.section("schedule")
    tasks = root.section("tasks")
    settings = Settings(
        namespace=root.text("namespace", _LABEL, _LABEL_RULE) or "default",
        image=Image(
            reference=image.text("reference", r"\S+", "repository:tag or repository@digest")
            or "ghcr.io/kyryl-opens-ml/classic-example:main",
            # Always: the document's image is a tag that moves.
            pull_policy=image.choice("pullPolicy", ("Always", "IfNotPresent", "Never")) or "Always",
            pull_secrets=tuple(image.names("pullSecrets") or ()),
        ),
        claim_name=storage.text("claimName", _SUBDOMAIN, _SUBDOMAIN_RULE) or "training-storage",
        service_account_name=root.text(
            "serviceAccountName", rf"({_SUBDOMAIN})?", f"{_SUBDOMAIN_RULE} or empty"
        )
        or "",
        registry=_registry(root.section("registry"), environment),
        schedules={
            "training_dag": schedule.cron("training_dag", None),
            "inference_dag": schedule.cron("inference_dag", "0 9 * * *"),
        },
        defaults=_task_values(root.section("defaults")),
        tasks={task_id: _task_values(tasks.section(task_id)) for task_id in TASK_IDS},
        inference_on_new_model=root.boolean("inferenceOnNewModel") or False,
    )
    for section in (image, storage, schedule, tasks, root):
        section.refuse_unknown_keys()
    if faults:
        raise SettingsError("\n".join(f"{source}: {fault}" for fault in faults))
    return settings


def _registry(section: _Section, environment: Mapping[str, str]) -> Registry:
    mlflow = section.section("mlflow")
    wandb = section.section("wandb")
    registry = Registry(
        type=section.choice("type", ("mlflow", "wandb")) or "wandb",
        model_name=section.text("modelName", r"[^\s:/]+", "a model name (no space, ':' or '/')")
        or "airflow-pipeline",
        mlflow=Mlflow(
            tracking_uri=mlflow.text("trackingUri", _URL, "an http:// or https:// address")
            or "http://ml-pipelines-mlflow:5000",
            experiment=mlflow.text("experiment", r".*\S.*", "a name") or "ml-pipelines",
        ),
        wandb=Wandb(
            # The document exports WANDB_PROJECT before it starts Airflow. It also exports
            # WANDB_API_KEY: that one is never read here, the pods take it from the Secret.
            project=wandb.text("project") or environment.get("WANDB_PROJECT", ""),
            entity=wandb.text("entity") or "",
            base_url=wandb.text(
                "baseUrl", rf"({_URL})?", "an http:// or https:// address, or empty"
            )
            or "",
            secret_name=wandb.text("secretName", _SUBDOMAIN, _SUBDOMAIN_RULE)
            or "ml-pipelines-wandb",
            secret_key=wandb.text("secretKey", _SECRET_KEY, "a key of a Secret") or "api-key",
        ),
    )
    for part in (mlflow, wandb, section):
        part.refuse_unknown_keys()
    return registry


def _task_values(section: _Section) -> dict[str, Any]:
    """The valid keys that are there; the rest comes from the layer below."""
    resources = section.section("resources")
    values = {
        "retries": section.integer("retries", 0),
        "retryDelaySeconds": section.integer("retryDelaySeconds", 0),
        "startupTimeoutSeconds": section.integer("startupTimeoutSeconds", 1),
        "stuckTimeoutSeconds": section.integer("stuckTimeoutSeconds", 1),
        "executionTimeoutSeconds": section.integer("executionTimeoutSeconds", 1),
        "failedPodTtlSeconds": section.integer("failedPodTtlSeconds", 0),
        "resources": {
            kind: quantities
            for kind in ("requests", "limits")
            if (quantities := resources.quantities(kind)) is not None
        },
        "nodeSelector": section.texts("nodeSelector"),
        "tolerations": section.objects("tolerations", _TOLERATION_KEYS),
        "affinity": section.mapping("affinity", _AFFINITY_KEYS),
        "env": section.variables("env"),
        "envFrom": section.sources("envFrom"),
        "labels": section.texts("labels"),
        "annotations": section.texts("annotations"),
        "priorityClassName": section.text(
            "priorityClassName", rf"({_SUBDOMAIN})?", f"{_SUBDOMAIN_RULE} or empty"
        ),
        "runtimeClassName": section.text(
            "runtimeClassName", rf"({_SUBDOMAIN})?", f"{_SUBDOMAIN_RULE} or empty"
        ),
        "serviceAccountName": section.text(
            "serviceAccountName", rf"({_SUBDOMAIN})?", f"{_SUBDOMAIN_RULE} or empty"
        ),
        "image": section.text(
            "image", r"\S*", "repository:tag or repository@digest, or empty (the pipelines' own)"
        ),
    }
    resources.refuse_unknown_keys()
    section.refuse_unknown_keys()
    return {key: value for key, value in values.items() if value is not None}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`; objects are merged key by key, everything else is replaced.

    So is `valueFrom` of a variable, which names one source.
    """
    merged = dict(below)
    for key, value in above.items():
        if key != "valueFrom" and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


class _Section:
    """An object of the file. Its readers give None for what is absent, null or faulty.

    Faults are collected with the full path of the key. The keys that were asked for are the keys
    that are allowed.
    """

    def __init__(self, value: object, path: str, faults: list[str]) -> None:
        self._path = path
        self._faults = faults
        self._asked: list[str] = []
        self._values: dict[str, Any] = {}
        if isinstance(value, dict):
            self._values = value
        elif value is not None:
            faults.append(f"{path or 'the file'} is {_shown(value)}; allowed: an object")

    def section(self, key: str) -> _Section:
        return _Section(self._get(key), self._key(key), self._faults)

    def text(self, key: str, pattern: str = r"[\s\S]*", allowed: str = "text") -> str | None:
        return self._text(self._get(key), self._key(key), pattern, allowed)

    def choice(self, key: str, choices: tuple[str, ...]) -> Any:
        value = self._get(key)
        if value is None or value in choices:
            return value
        return self._fault(self._key(key), value, " or ".join(choices))

    def integer(self, key: str, minimum: int) -> int | None:
        value = self._get(key)
        if value is None:
            return None
        # Helm writes large numbers as 1e+06, which JSON reads as a float; a bool is an int too.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and float(value).is_integer() and value >= minimum:
            return int(value)
        return self._fault(self._key(key), value, f"a whole number, {minimum} or more")

    def boolean(self, key: str) -> bool | None:
        value = self._get(key)
        if value is None or isinstance(value, bool):
            return value
        return self._fault(self._key(key), value, "true or false")

    def cron(self, key: str, default: str | None) -> str | None:
        value = self._get(key)
        if key not in self._values:
            return default
        allowed = "five cron fields, @daily or alike, or null (started by hand)"
        return self._text(value, self._key(key), _CRON, allowed)

    def texts(self, key: str) -> dict[str, str] | None:
        return self._map(
            key, r"\S+", lambda item, path: self._some_text(item, path, allowed="text in quotes")
        )

    def quantities(self, key: str) -> dict[str, str] | None:
        return self._map(key, r"\S+", self._quantity)

    def variables(self, key: str) -> dict[str, str | dict[str, Any]] | None:
        values = self._map(key, _VARIABLE, self._variable)
        if values and "WANDB_API_KEY" in values:
            # It would be readable in every pod spec, rendered field and serialized DAG.
            self._faults.append(
                f"{self._key(key)}.WANDB_API_KEY: a key has no place here; "
                "allowed: a Secret, named by registry.wandb.secretName"
            )
        return values

    def names(self, key: str) -> list[str] | None:
        values = self._list(key)
        if values is None:
            return None
        return [
            text
            for index, value in enumerate(values)
            if (
                text := self._text(value, f"{self._key(key)}[{index}]", _SUBDOMAIN, _SUBDOMAIN_RULE)
            )
        ]

    def sources(self, key: str) -> list[dict[str, Any]] | None:
        """What whole environments come from: items of a container's `envFrom`."""
        values = self._list(key)
        if values is None:
            return None
        found = []
        for index, value in enumerate(values):
            section = _Section(value, f"{self._key(key)}[{index}]", self._faults)
            prefix = section.text("prefix", rf"({_VARIABLE})?", "the start of a variable's name")
            source = section._one_of(_ENV_SOURCES)
            found.append(source | ({"prefix": prefix} if prefix else {}))
        return found

    def objects(self, key: str, keys: tuple[str, ...]) -> list[dict[str, Any]] | None:
        values = self._list(key)
        if values is None:
            return None
        return [
            self._object(value, f"{self._key(key)}[{index}]", keys)
            for index, value in enumerate(values)
        ]

    def mapping(self, key: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
        value = self._get(key)
        return None if value is None else self._object(value, self._key(key), keys)

    def refuse_unknown_keys(self) -> None:
        for key in self._values:
            if key not in self._asked:
                allowed = ", ".join(self._asked)
                self._faults.append(f"{self._key(key)} is not a setting; allowed: {allowed}")

    def _get(self, key: str) -> Any:
        self._asked.append(key)
        return self._values.get(key)

    def _key(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _fault(self, path: str, value: object, allowed: str) -> None:
        self._faults.append(f"{path} is {_shown(value)}; allowed: {allowed}")

    def _text(self, value: object, path: str, pattern: str, allowed: str) -> str | None:
        if value is None:
            return None
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        return self._fault(path, value, allowed)

    def _list(self, key: str) -> list[Any] | None:
        value = self._get(key)
        if value is None or isinstance(value, list):
            return value
        return self._fault(self._key(key), value, "a list")

    def _object(self, value: object, path: str, keys: tuple[str, ...]) -> dict[str, Any]:
        section = _Section(value, path, self._faults)
        found = {key: section._get(key) for key in keys}
        section.refuse_unknown_keys()
        return {key: value for key, value in found.items() if value is not None}

    def _map(
        self, key: str, name_pattern: str, read: Callable[[object, str], Any]
    ) -> dict[str, Any] | None:
        """An object whose values `read` takes; it gives None for one that is faulty."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            return self._fault(self._key(key), value, "an object")
        found = {}
        for name, item in value.items():
            path = f"{self._key(key)}.{name}"
            if not re.fullmatch(name_pattern, name):
                self._faults.append(f"{path} is not a name that can be used; allowed: no spaces")
            elif (taken := read(item, path)) is not None:
                found[name] = taken
        return found

    def _some_text(
        self, value: object, path: str, pattern: str = r"[\s\S]*", allowed: str = "text"
    ) -> str | None:
        if value is None:
            return self._fault(path, None, allowed)
        return self._text(value, path, pattern, allowed)

    def _quantity(self, value: object, path: str) -> str | None:
        # A quantity of 2 or 0.5 is a number in YAML and in JSON; Kubernetes takes it too.
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        return self._some_text(value, path, _QUANTITY, "a quantity like 500m, 2 or 4Gi")

    def _variable(self, value: object, path: str) -> str | dict[str, Any] | None:
        if isinstance(value, dict) and set(value) == {"valueFrom"}:
            source = _Section(value["valueFrom"], f"{path}.valueFrom", self._faults)
            return {"valueFrom": source._one_of(_VALUE_SOURCES)}
        allowed = "text in quotes, or valueFrom with a secretKeyRef or the like"
        return self._some_text(value, path, allowed=allowed)

    def _one_of(self, kinds: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        """The reference that is there, with its keys. There must be one, and no unknown key."""
        found: dict[str, Any] = {}
        for kind, keys in kinds.items():
            section = self.section(kind)
            if not section._values:
                continue
            found[kind] = {
                key: section._some_text(section._get(key), section._key(key), *_REFERENCE_KEYS[key])
                for key in keys
            }
            if "name" in keys and (optional := section.boolean("optional")) is not None:
                found[kind]["optional"] = optional
            section.refuse_unknown_keys()
        self.refuse_unknown_keys()
        if len(found) != 1 and set(self._values) <= set(self._asked):
            there = " and ".join(found) or "no reference"
            self._faults.append(f"{self._path} has {there}; allowed: one of {', '.join(kinds)}")
        return found


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
