"""What starts inference_dag: the clock, and with `inferenceOnNewModel` each new model too."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ml_pipelines.settings import load

try:
    from airflow.sdk import Asset, AssetOrTimeSchedule
    from airflow.sdk import CronTriggerTimetable as CronTimetable
    from airflow.sdk.definitions.timetables.simple import OnceTimetable

    DATASETS = "assets"
except ImportError:  # Airflow 2
    from airflow.datasets import Dataset as Asset
    from airflow.timetables.datasets import DatasetOrTimeSchedule as AssetOrTimeSchedule
    from airflow.timetables.interval import CronDataIntervalTimetable as CronTimetable
    from airflow.timetables.simple import OnceTimetable

    DATASETS = "datasets"


def model_name() -> str:
    """Name of the model in the registry."""
    return load().get("modelName") or "airflow-pipeline"


def model_dataset() -> Asset:
    """The dataset (Airflow 3: asset) that a new version of the model is an event of.

    Airflow 2 loads every provider, and Flask, for an unknown scheme that does not begin with `x-`.
    """
    return Asset(uri=f"x-ml-pipelines://models/{quote(model_name())}")


def schedule_of(dag_id: str, otherwise: str | None) -> str | None:
    """Cron expression of a DAG in `pipelines.schedule`; `otherwise` if the values say nothing."""
    return load().get("schedule", {}).get(dag_id, otherwise) or None


def inference_schedule() -> Any:
    """The `schedule` of inference_dag: its clock as Airflow makes one of it, or models too."""
    cron, models = schedule_of("inference_dag", "0 9 * * *"), [model_dataset()]
    if not load().get("inferenceOnNewModel"):
        return cron
    if cron is None:
        return models
    clock = OnceTimetable() if cron == "@once" else CronTimetable(cron, timezone="UTC")
    return AssetOrTimeSchedule(timetable=clock, **{DATASETS: models})
