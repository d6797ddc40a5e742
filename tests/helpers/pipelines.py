"""The tasks of the pipelines in the order of the document, and a DAG as Airflow stores it."""

from __future__ import annotations

import json

# With the chart's values; without a chart the document's do, and nothing is behind upload_model.
WORK = {
    "training_dag": [
        *("clean_storage_before_start", "load_data", "train_model", "upload_model"),
        "gate_model",
    ],
    "inference_dag": ["clean_storage_before_start", "load_data", "load_model", "run_inference"],
}
EVERY_WORK_TASK = [(dag_id, task_id) for dag_id in WORK for task_id in WORK[dag_id]]
EVERY_TASK = [(dag_id, task_id) for dag_id in WORK for task_id in [*WORK[dag_id], "clean_up"]]

CLI = ["python", "classic_example/cli.py"]
# Of the workload, as in the document, word for word.
COMMANDS = {
    ("training_dag", "load_data"): [*CLI, "load-sst2-data", "/tmp/data/"],
    ("training_dag", "train_model"): [*CLI, "train", "tests/data/test_config.json"],
    ("training_dag", "upload_model"): [
        *CLI,
        "upload-to-registry",
        "airflow-pipeline",
        "/tmp/results",
    ],
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


def stored(dag: object) -> str:
    """Return a DAG as the scheduler has it, in JSON."""
    try:
        from airflow.serialization.serialized_objects import DagSerialization as Serialization
    except ImportError:  # Airflow 2
        from airflow.serialization.serialized_objects import SerializedDAG as Serialization

    return json.dumps(Serialization.to_dict(dag), default=str)
