"""
### Inference

Cleans the run's directory, loads the data and, at the same time, the latest model from the
registry, predicts, and removes the data and the model. Every day at 09:00 UTC, by hand
(`airflow dags trigger inference_dag`), and with `pipelines.inferenceOnNewModel` for each new model.

* The predictions stay on the claim: `inference_dag/<run>/pred.csv`, with what made them (model
  version and its origin, this run, image ...) in `pred.json` beside it. The log of `clean_up` has
  the whole path.
* Each run works in a directory of its own; runs at the same time do not meet.
* A failing step fails the run. `clean_up` runs in any case, after every other task has stopped; its
  own failure is shown on the task but does not fail a run that has made its predictions.
* To repeat a run, clear all of its tasks: the files of a finished run are gone, and a single task
  that needs them says so.
* Before the first training run there is no model: `load_model` fails and says so.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow import DAG

from ml_pipelines.commands import EMPTY_RUN_DIRECTORY, KEEP_PREDICTIONS, cli
from ml_pipelines.lineage import image_digest_of
from ml_pipelines.pods import pod_task
from ml_pipelines.runs import MACROS
from ml_pipelines.schedules import inference_schedule
from ml_pipelines.settings import load_settings

SETTINGS = load_settings()

with DAG(
    dag_id="inference_dag",
    description="Predict with the latest model",
    doc_md=__doc__,
    schedule=inference_schedule(SETTINGS),
    start_date=datetime(2021, 1, 1, tzinfo=UTC),
    catchup=False,
    # As for training: five at once, further ones wait for their turn.
    max_active_runs=5,
    default_args={"owner": "ml-pipelines"},
    tags=["ml-pipelines", "inference"],
    user_defined_macros=MACROS,
) as dag:
    clean_storage_before_start = pod_task(
        "clean_storage_before_start", EMPTY_RUN_DIRECTORY, SETTINGS
    )
    load_data = pod_task("load_data", cli("load-sst2-data", "/tmp/data/"), SETTINGS)
    load_model = pod_task(
        "load_model",
        cli("load-from-registry", f"{SETTINGS.registry.model_name}:latest", "/tmp/results/"),
        SETTINGS,
        registry=True,
    )
    run_inference = pod_task(
        "run_inference",
        cli("run-inference-on-dataframe", "/tmp/data/test.csv", "/tmp/results/", "/tmp/pred.csv"),
        SETTINGS,
    )
    clean_up = pod_task(
        "clean_up",
        KEEP_PREDICTIONS,
        SETTINGS,
        # Known when the pod has started, so that the pod itself could not write it.
        env={"ML_PIPELINES_INFERENCE_IMAGE_DIGEST": image_digest_of("run_inference")},
    )

    work = [clean_storage_before_start, load_data, load_model, run_inference]
    clean_storage_before_start >> [load_data, load_model] >> run_inference

    # A teardown after every task: it starts when all have stopped, and decides no run's state.
    work >> clean_up.as_teardown()
