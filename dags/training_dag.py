"""
### Training

Cleans the run's directory, loads the sentences, trains the classifier, puts the model into the
registry (Weights & Biases or MLflow) and removes the run's files. Started by hand:
`airflow dags trigger training_dag`.

* Each run works in a directory of its own on the claim; runs at the same time do not meet.
* A failing step fails the run. `clean_up` runs in any case, after every other task has stopped; its
  own failure is shown on the task but does not fail a run whose model is in the registry.
* To repeat a run, clear all of its tasks: the files of a finished run are gone, and a single task
  that needs them says so.
* The figures of a step (accuracy, model version ...) are its XCom `return_value`.
* The registered version says what made it: run, commit of the DAGs, image digest, data, metrics.
* The W&B key is read from a Secret:
  `kubectl create secret generic ml-pipelines-wandb --from-literal=api-key=...`
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow import DAG

from ml_pipelines.commands import EMPTY_RUN_DIRECTORY, cli
from ml_pipelines.lineage import image_digest_of
from ml_pipelines.pods import pod_task
from ml_pipelines.runs import MACROS
from ml_pipelines.schedules import model_dataset
from ml_pipelines.settings import load_settings

SETTINGS = load_settings()

with DAG(
    dag_id="training_dag",
    description="Load data, train, register the model",
    doc_md=__doc__,
    schedule=SETTINGS.schedules["training_dag"],
    start_date=datetime(2021, 1, 1, tzinfo=UTC),
    catchup=False,
    # The document starts five runs at once; further ones wait for their turn.
    max_active_runs=5,
    default_args={"owner": "ml-pipelines"},
    tags=["ml-pipelines", "training"],
    user_defined_macros=MACROS,
) as dag:
    clean_storage_before_start = pod_task(
        "clean_storage_before_start", EMPTY_RUN_DIRECTORY, SETTINGS
    )
    load_data = pod_task("load_data", cli("load-sst2-data", "/tmp/data/"), SETTINGS)
    train_model = pod_task("train_model", cli("train", "tests/data/test_config.json"), SETTINGS)
    upload_model = pod_task(
        "upload_model",
        cli("upload-to-registry", SETTINGS.registry.model_name, "/tmp/results"),
        SETTINGS,
        registry=True,
        # The version carries the image that has trained it.
        env={"ML_PIPELINES_TRAINING_IMAGE_DIGEST": image_digest_of("train_model")},
        outlets=[model_dataset(SETTINGS.registry)],
    )
    clean_up = pod_task("clean_up", EMPTY_RUN_DIRECTORY, SETTINGS)

    work = [clean_storage_before_start, load_data, train_model, upload_model]
    clean_storage_before_start >> load_data >> train_model >> upload_model

    # A teardown, not `trigger_rule="all_done"`: as the only leaf that one turns a failed run into a
    # success. Without setups: with one, a failing first task would skip the cleaning. After every
    # task, not only the last: else it starts as soon as one branch has failed, under the others.
    work >> clean_up.as_teardown()
