"""What the chart's values say about task pods: arguments of the operator, and Pod templates.

The chart writes one JSON file and mounts it, so that a change reaches the DAGs without a restart:

    {"operator": {...}, "pod": {...},              every task
     "presets": {"registry": {"pod": {...}}},      a task that names the preset
     "tasks": {"train_model": {...},               a task with this id, of any DAG
               "training_dag.train_model": {...}}, a task of one DAG
     "model": {"name": "...", ...},                of the example DAGs
     "triggerer": true, ...}                       whether there is one

`operator` holds arguments of PodOperator (times in seconds), `pod` a Pod as in Kubernetes; the
chart has checked them. Keys that are not known are left alone: chart and DAGs are rolled out apart.
"""

import json
import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

PATH_VARIABLE = "ML_PIPELINES_SETTINGS"
DEFAULT_PATH = "/opt/airflow/ml-pipelines/settings.json"
# The source document's image, claim and registry, for `airflow standalone` on a laptop.
DOCUMENT = Path(__file__).with_name("document.json")
# Arguments that Airflow wants as a timedelta.
DURATIONS = ("retry_delay", "execution_timeout", "max_retry_delay")
# What tells the entries of a list apart, where that is not their `name`.
KEYS = {"volumeMounts": "mountPath", "volumeDevices": "devicePath", "hostAliases": "ip"}
# Lists whose entries are merged; of others the entry with the same key is replaced as a whole: a
# variable has one source, a volume is of one kind.
MERGED = ("containers", "initContainers", "ephemeralContainers")


class SettingsError(ValueError):
    """The settings cannot be used; the text says why."""


def load() -> dict[str, Any]:
    """The file that ML_PIPELINES_SETTINGS names, else the chart's, else DOCUMENT.

    Raises SettingsError.
    """
    there = DEFAULT_PATH if Path(DEFAULT_PATH).exists() else DOCUMENT
    path = Path(os.environ.get(PATH_VARIABLE) or there)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: not a JSON object")
    return content


def of_task(dag_id: str, task_id: str, presets: Iterable[str] = ()) -> tuple[dict, dict]:
    """Arguments of the operator, and the Pod template, of one task.

    Raises SettingsError for a preset that the values do not have.
    """
    settings = load()
    known, tasks = settings.get("presets") or {}, settings.get("tasks") or {}
    if missing := set(presets) - set(known):
        there = ", ".join(sorted(known)) or "none"
        raise SettingsError(f"no preset {', '.join(sorted(missing))} in the values; there: {there}")
    of_id = [tasks.get(key) or {} for key in (task_id, f"{dag_id}.{task_id}")]
    merged: dict[str, Any] = {}
    for layer in (settings, *(known[name] for name in presets), *of_id):
        merged = merge(merged, {key: layer.get(key) or {} for key in ("operator", "pod")})
    arguments = merged["operator"]
    for key, value in arguments.items():
        if isinstance(value, float) and value.is_integer():  # Helm reads a large number as 1e+06
            arguments[key] = int(value)
        if key in DURATIONS:
            arguments[key] = timedelta(seconds=value)
    return arguments, merged["pod"]


def merge(below: Any, above: Any, field: str = "") -> Any:
    """`above` over `below` (which `field` holds), as a strategic merge patch of Kubernetes.

    Objects are merged by key, null takes a key away; lists of named things by their key; all else
    is replaced.
    """
    if isinstance(above, dict):
        below = below if isinstance(below, dict) else {}
        merged = below | {key: merge(below.get(key), value, key) for key, value in above.items()}
        return {key: value for key, value in merged.items() if value is not None}
    if isinstance(below, list) and isinstance(above, list):
        key = KEYS.get(field, "name")
        if all(isinstance(one, dict) and key in one for one in below + above):
            merged = {one[key]: one for one in below}
            for one in above:
                there = merged.get(one[key]) if field in MERGED else None
                merged[one[key]] = merge(there, one)
            return list(merged.values())
    return above
