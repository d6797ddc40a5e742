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

from ml_pipelines import PodOperator
from ml_pipelines.lineage import image_digest_of
from ml_pipelines.schedules import model_dataset, model_name, schedule_of

CLI = ["python", "classic_example/cli.py"]
# `find` and not `rm -rf /tmp/*`: it also takes hidden files, and finds nothing to complain about
# in an empty directory. The mount point itself stays. The log lists what was removed.
EMPTY_RUN_DIRECTORY = ["sh", "-ceu", "find /tmp -mindepth 1 -print -delete"]

with DAG(
    dag_id="training_dag",
    description="Load data, train, register the model",
    doc_md=__doc__,
    schedule=schedule_of("training_dag", None),
    start_date=datetime(2021, 1, 1, tzinfo=UTC),
    catchup=False,
    # The document starts five runs at once; further ones wait for their turn.
    max_active_runs=5,
    default_args={"owner": "ml-pipelines"},
    tags=["ml-pipelines", "training"],
) as dag:
    clean_storage_before_start = PodOperator(
        task_id="clean_storage_before_start", cmds=EMPTY_RUN_DIRECTORY
    )
    load_data = PodOperator(task_id="load_data", cmds=[*CLI, "load-sst2-data", "/tmp/data/"])
    train_model = PodOperator(
        task_id="train_model", cmds=[*CLI, "train", "tests/data/test_config.json"]
    )
    upload_model = PodOperator(
        task_id="upload_model",
        cmds=[*CLI, "upload-to-registry", model_name(), "/tmp/results"],
        presets=["registry"],
        # The version carries the image that has trained it.
        env_vars={"ML_PIPELINES_TRAINING_IMAGE_DIGEST": image_digest_of("train_model")},
        outlets=[model_dataset()],
    )
    clean_up = PodOperator(task_id="clean_up", cmds=EMPTY_RUN_DIRECTORY)

    work = [clean_storage_before_start, load_data, train_model, upload_model]
    clean_storage_before_start >> load_data >> train_model >> upload_model

    # A teardown, not `trigger_rule="all_done"`: as the only leaf that one turns a failed run into a
    # success. Without setups: with one, a failing first task would skip the cleaning. After every
    # task, not only the last: else it starts as soon as one branch has failed, under the others.
    work >> clean_up.as_teardown()
