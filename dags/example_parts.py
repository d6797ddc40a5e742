"""What training_dag and inference_dag share: command line, parameters, model, approval."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from ml_pipelines.settings import load

try:
    from airflow.sdk import Asset, Param
except ImportError:  # Airflow 2
    from airflow.datasets import Dataset as Asset
    from airflow.models.param import Param

APPROVAL_TIME = timedelta(days=7)
# Airflow 2 does not tell a task who has marked another.
APPROVER = (
    "{% set answer = ti.xcom_pull(task_ids='approve_model') or {} %}"
    "{{ (answer.get('responded_by_user') or {}).get('name', 'somebody in Airflow') }}"
)
LATEST = "latest"
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
    pattern=r"^(auto|glue|bundled|(file|s3|gs|abfss|https?)://\S+)$",
    examples=["auto", "glue", "bundled", "s3://bucket/reviews/*.parquet"],
    title="Data source",
    description="glue: SST-2 from the Hugging Face hub; bundled: the sentences of the image; "
    "auto: glue where it can be reached, else bundled; or the address of CSV or Parquet files. "
    "Empty: as configured.",
)
DATA_VARIABLES = {
    "source": "DATA_SOURCE",
    "textColumn": "DATA_TEXT_COLUMN",
    "labelColumn": "DATA_LABEL_COLUMN",
    "onBadRow": "DATA_ON_BAD_ROW",
}


def documented(does: str, takes: str, leaves: str, fails: str) -> str:
    """What the page of a task says about it, in Markdown."""
    return f"{does}\n\n* **Takes**: {takes}\n* **Leaves**: {leaves}\n* **When it fails**: {fails}\n"


CLEAN_DOC = documented(
    "Empties the directory of this run on the training storage: a run that was cleared repeats "
    "itself from the start.",
    "nothing",
    "the empty directory, which the tasks of the run have as `/tmp`",
    "its log names the file, or what its pod waits for: a claim that is not bound, a quota, an "
    "image. Mend that and clear the run.",
)
LOAD_DOC = documented(
    "Fetches the sentences and splits them; rows that are in several splits count once.",
    "the data source of the run (`data_source`), else of the values (`pipelines.data`)",
    "`/tmp/data/`: `train.csv`, `val.csv`, `test.csv`, and `gold.csv` of labelled rows that take "
    "part in no training; how many rows each has is the XCom `return_value`",
    "the last line says which file, column or row is meant. An address that cannot be reached is "
    "tried again; data with odd rows can go on without them (`pipelines.data.onBadRow: skip`).",
)


def which_data() -> dict[str, str]:
    """Variables of load_data: the run's parameters, and `pipelines.data` with its templates."""
    said = load().get("data", {})
    variables = {name: said[key] for key, name in DATA_VARIABLES.items() if key in said}
    return WITH_PARAMETERS | variables


def model_name() -> str:
    """Name of the model in the registry."""
    return _model().get("name") or "airflow-pipeline"


def model_alias() -> str:
    """The version that inference loads: an alias, or LATEST, as the document has it."""
    return _model().get("alias") or LATEST


def wants_approval() -> bool:
    """Whether a person has to approve a version that has passed the gate."""
    return bool(_model().get("approval"))


def gate_rules() -> dict[str, str]:
    """The rules of the gate, as its command reads them from its environment."""
    rules = {**_model().get("gate", {}), "alias": model_alias(), "approval": wants_approval()}
    return {"GATE": json.dumps(rules)}


def image_digest_of(task_id: str) -> str:
    """Template for the digest of the image that a task (mapped: its first pod) ran, or ''."""
    return (
        f"{{% set result = ti.xcom_pull(task_ids='{task_id}') %}}"
        "{% set one = result if result is mapping else (result or [{}])|first %}"
        "{{ one.get('image_digest', '') }}"
    )


def approval(version: str) -> Any:
    """The task `approve_model`, which waits for a person; who rejects skips what follows."""
    try:
        from airflow.providers.standard.operators.hitl import ApprovalOperator
    except ImportError:  # Airflow 2
        from approval import ApprovalOperator

    return ApprovalOperator(
        task_id="approve_model",
        subject=f"Shall inference load {version}?",
        body="{{ ti.xcom_pull(task_ids='gate_model') | tojson(indent=2) }}",
        doc_md=documented(
            "Waits for a person, who looks at what the gate has found. The files of the run stay.",
            "the result of `gate_model`",
            "who has answered, where Airflow knows it (Airflow 3)",
            "it was rejected, by marking it as failed. After seven days without an answer what "
            "follows is skipped; train again, or `make promote V=N`.",
        ),
        response_timeout=APPROVAL_TIME,
    )


def _model() -> dict[str, Any]:
    return load().get("model") or {}


def model_dataset() -> Asset:
    """The dataset (Airflow 3: asset) that a new version for inference is an event of.

    Airflow 2 loads every provider, and Flask, for an unknown scheme that does not begin with `x-`.
    """
    return Asset(uri=f"x-ml-pipelines://models/{quote(model_name())}")
