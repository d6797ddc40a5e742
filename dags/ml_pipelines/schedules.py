"""When a DAG starts, and the model that the two DAGs of the document share."""

from __future__ import annotations

from urllib.parse import quote

from ml_pipelines.settings import load

try:
    from airflow.sdk import Asset
except ImportError:  # Airflow 2
    from airflow.datasets import Dataset as Asset


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
