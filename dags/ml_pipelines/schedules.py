"""What starts inference_dag: the clock, and with `inferenceOnNewModel` each new model too."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ml_pipelines.settings import Registry, Settings

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


def model_dataset(registry: Registry) -> Asset:
    """The dataset (Airflow 3: asset) that a new version of the model is an event of.

    upload_model names it as its outlet whether inference waits for it or not: so the page shows
    when models were registered, and other DAGs can be scheduled on it.
    """
    return Asset(uri=f"ml-pipelines://models/{quote(registry.model_name)}")


def inference_schedule(settings: Settings) -> Any:
    """What the `schedule` of inference_dag is: a cron expression, None, or what a new model adds.

    The expression means the same with and without models: it becomes the timetable that Airflow
    itself makes of it (a data interval on Airflow 2, a trigger on Airflow 3).
    """
    cron = settings.schedules["inference_dag"]
    if not settings.inference_on_new_model:
        return cron
    models = [model_dataset(settings.registry)]
    if cron is None:
        return models
    clock = OnceTimetable() if cron == "@once" else CronTimetable(cron, timezone="UTC")
    return AssetOrTimeSchedule(timetable=clock, **{DATASETS: models})
