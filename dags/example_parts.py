"""What training_dag and inference_dag share: command line, parameters, model."""

from __future__ import annotations

from urllib.parse import quote

from ml_pipelines.settings import load

try:
    from airflow.sdk import Asset, Param
except ImportError:  # Airflow 2
    from airflow.datasets import Dataset as Asset
    from airflow.models.param import Param

CLI = ["python", "classic_example/cli.py"]
# `find` and not `rm -rf /tmp/*`: it also takes hidden files, and finds nothing to complain about
# in an empty directory. The mount point itself stays. The log lists what was removed.
EMPTY_RUN_DIRECTORY = ["sh", "-ceu", "find /tmp -mindepth 1 -print -delete"]
# To the workload they go as one variable, in which Kubernetes finds no $(NAME) to replace.
WITH_PARAMETERS = {"ML_PIPELINES_PARAMS": r"{{ params | tojson | replace('$', '\\u0024') }}"}
# For a choice the page of Airflow 2.9 would send the text "None" in the place of null: a text that
# has to match, with proposals.
DATA_SOURCE = Param(
    None,
    type=["null", "string"],
    pattern="^(auto|glue|bundled)$",
    examples=["auto", "glue", "bundled"],
    title="Data source",
    description="glue: SST-2 from the Hugging Face hub; bundled: the sentences of the image; "
    "auto: glue where it can be reached, else bundled. Empty: as configured.",
)


def model_name() -> str:
    """Name of the model in the registry."""
    return load().get("modelName") or "airflow-pipeline"


def model_dataset() -> Asset:
    """The dataset (Airflow 3: asset) that a new version of the model is an event of.

    Airflow 2 loads every provider, and Flask, for an unknown scheme that does not begin with `x-`.
    """
    return Asset(uri=f"x-ml-pipelines://models/{quote(model_name())}")
