"""
### Inference

Cleans the run's directory, loads the data and, at the same time, the model from the registry (the
champion, unless the values or a parameter name another version), predicts, and removes the data and
the model. Every day at 09:00 UTC, by hand
(`airflow dags trigger inference_dag`), and with `pipelines.inferenceOnNewModel` for each new
champion.

* The form below, or `--conf '{"sample_size": 100}'`, sets parameters of one run.
* The predictions stay on the claim: `inference_dag/<run>/pred.csv`, with what made them (model
  version and its origin, this run, image ...) in `pred.json` beside it. The log of `clean_up` has
  the whole path. `pipelines.inference.output` names an address that gets both too.
* With `pipelines.inference.shards` above 1, so many pods predict side by side, and
  `join_predictions` makes the same file of what they leave.
* With `pipelines.inference.retrainOnDrift`, texts that differ more than that from those the model
  was trained on start `training_dag`.
* Each run works in a directory of its own; runs at the same time do not meet.
* A failing step fails the run. `clean_up` runs in any case, after every other task has stopped; its
  own failure is shown on the task but does not fail a run that has made its predictions.
* To repeat a run, clear all of its tasks: the files of a finished run are gone, and a single task
  that needs them says so.
* Before the first training run there is no model, and before one has passed the gate no champion:
  `load_model` fails and says so.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow import DAG

from example_parts import (
    CLEAN_DOC,
    CLI,
    DATA_SOURCE,
    EMPTY_RUN_DIRECTORY,
    LOAD_DOC,
    WITH_PARAMETERS,
    documented,
    image_digest_of,
    model_alias,
    model_dataset,
    model_name,
    which_data,
)
from ml_pipelines import PodOperator
from ml_pipelines.settings import load

try:
    from airflow.sdk import AssetOrTimeSchedule, Param
    from airflow.sdk import CronTriggerTimetable as CronTimetable

    DATASETS = "assets"
except ImportError:  # Airflow 2
    from airflow.models.param import Param
    from airflow.timetables.datasets import DatasetOrTimeSchedule as AssetOrTimeSchedule
    from airflow.timetables.interval import CronDataIntervalTimetable as CronTimetable

    DATASETS = "datasets"

# The predictions are what an inference run is for: they stay, the data and the model go. Into the
# space that run_inference leaves for it in pred.json comes the digest of the image it has run.
KEEP_PREDICTIONS = r"""
find /tmp -mindepth 1 -maxdepth 1 ! -name pred.csv ! -name pred.json -print -exec rm -rf {} +
if [ -e /tmp/pred.csv ]; then
  echo "predictions kept on the training storage: $ML_PIPELINES_RUN_DIRECTORY/pred.csv"
fi
if [ -e /tmp/pred.json ]; then
  sed -i 's/^  "image_digest": ""/  "image_digest": "'"$ML_PIPELINES_INFERENCE_IMAGE_DIGEST"'"/' \
    /tmp/pred.json
fi"""
# See training_dag.py.
PARAMETERS = {
    "model_name": Param(
        None,
        type=["null", "string"],
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        maxLength=128,
        title="Model name",
        description="Name in the registry: at most 128 letters, digits, '.', '_' and '-'. "
        f"Empty: {model_name()}.",
    ),
    "model_version": Param(
        None,
        type=["null", "string"],
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        maxLength=128,
        title="Model version",
        description="latest, a version such as v3, or an alias of the registry: at most 128 "
        f"letters, digits, '.', '_' and '-'. Empty: {model_alias()}.",
    ),
    "sample_size": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=1_000_000,
        title="Sample size",
        description="Predict the first rows only, 1 to 1000000. Empty: all.",
    ),
    "data_source": DATA_SOURCE,
}

INFERENCE = load().get("inference") or {}
SHARDS = int(INFERENCE.get("shards") or 1)
RETRAIN_ON_DRIFT = INFERENCE.get("retrainOnDrift")
PREDICTIONS = "/tmp/pred.csv"
PREDICT = [*CLI, "run-inference-on-dataframe", "/tmp/data/test.csv", "/tmp/results/", PREDICTIONS]
# Of what the values say; what they do not say is the workload's own default.
SAID = {"PREDICT_ON_BAD_ROW": "onBadRow", "PREDICT_OUTPUT": "output"}
PREDICT_ENV = {name: INFERENCE[key] for name, key in SAID.items() if INFERENCE.get(key)}
PREDICT_ENV |= WITH_PARAMETERS
PREDICT_DOC = documented(
    "Adds what the model says to each row.",
    "`/tmp/data/test.csv` and `/tmp/results/`; `sample_size` of the run",
    "`/tmp/pred.csv`, and `pred.json` with what made it, both at `pipelines.inference.output` too "
    "where that is set; counts, positive rows and drift are the XCom `return_value`",
    "`OOMKilled`: more memory in `pipelines.tasks.run_inference.resources`. A bad row: the last "
    "line names it, `pipelines.inference.onBadRow: skip` leaves such rows out. A try that was "
    "killed leaves its rows to the next.",
)
# Arguments of each shard, as the result of the first task: mapped tasks take them from there, so
# that the number can be a parameter of the run.
TELL_SHARDS = r"""
printf '%s' '[{% for number in range(params.shards) %}{{ ", " if number }}
["--shard", "{{ number }}/{{ params.shards }}"]{% endfor %}]' > /dev/termination-log"""
if SHARDS > 1:
    PARAMETERS["shards"] = Param(
        SHARDS,
        type="integer",
        minimum=1,
        maximum=100,
        title="Shards",
        description="Pods that predict side by side, 1 to 100.",
    )


def has_drifted(result: dict[str, Any]) -> bool:
    """Whether a PSI of the texts that were predicted is above the threshold of the values."""
    figures = {k: v for k, v in (result.get("drift") or {}).items() if k.startswith("psi_")}
    return max(figures.values(), default=0) > RETRAIN_ON_DRIFT


# pipelines.dags of the values may name another one.
SCHEDULE: Any = "0 9 * * *"
if load().get("inferenceOnNewModel"):
    CLOCK = CronTimetable(SCHEDULE, timezone="UTC")
    SCHEDULE = AssetOrTimeSchedule(timetable=CLOCK, **{DATASETS: [model_dataset()]})

with DAG(
    dag_id="inference_dag",
    description="Predict with the model that training has promoted",
    doc_md=__doc__,
    schedule=SCHEDULE,
    start_date=datetime(2021, 1, 1, tzinfo=UTC),
    catchup=False,
    # As for training: five at once, further ones wait for their turn.
    max_active_runs=5,
    default_args={"owner": "ml-pipelines"},
    params=PARAMETERS,
    tags=["ml-pipelines", "inference"],
) as dag:
    shell, options, emptying = EMPTY_RUN_DIRECTORY
    clean_storage_before_start = PodOperator(
        task_id="clean_storage_before_start",
        cmds=[shell, options, emptying if SHARDS == 1 else emptying + TELL_SHARDS],
        doc_md=CLEAN_DOC,
    )
    load_data = PodOperator(
        task_id="load_data",
        cmds=[*CLI, "load-sst2-data", "/tmp/data/"],
        env_vars=which_data(),
        doc_md=LOAD_DOC,
    )
    load_model = PodOperator(
        task_id="load_model",
        cmds=[
            *CLI,
            "load-from-registry",
            f"{{{{ params.model_name or {model_name()!r} }}}}:"
            f"{{{{ params.model_version or {model_alias()!r} }}}}",
            "/tmp/results/",
        ],
        presets=["registry"],
        env_vars=WITH_PARAMETERS,
        doc_md=documented(
            "Fetches a version of the model from the registry and checks its weights.",
            f"the version that the run names, else `{model_alias()}` of `{model_name()}`",
            "`/tmp/results/`; name, version and accuracy are the XCom `return_value`",
            "there is no such version or alias: the last line lists those that exist. There is no "
            "champion before a training has passed the gate: train, or `make promote V=N`.",
        ),
    )
    if SHARDS == 1:
        run_inference = PodOperator(
            task_id="run_inference", cmds=PREDICT, env_vars=PREDICT_ENV, doc_md=PREDICT_DOC
        )
        predicted = [run_inference]
    else:
        run_inference = PodOperator.partial(
            task_id="run_inference", cmds=PREDICT, env_vars=PREDICT_ENV, doc_md=PREDICT_DOC
        ).expand(arguments=clean_storage_before_start.output)
        join_predictions = PodOperator(
            task_id="join_predictions",
            cmds=[*CLI, "join-predictions", "/tmp/results/", PREDICTIONS, "{{ params.shards }}"],
            env_vars=PREDICT_ENV,
            doc_md=documented(
                "Makes one file of what the shards have predicted.",
                "what each pod of `run_inference` has left",
                "what `run_inference` leaves in one piece",
                "a shard is missing: clear all tasks of the run.",
            ),
        )
        run_inference >> join_predictions
        predicted = [run_inference, join_predictions]
    clean_up = PodOperator(
        task_id="clean_up",
        cmds=["sh", "-ceu", KEEP_PREDICTIONS],
        # Known when the pod has started, so that the pod itself could not write it.
        env_vars={"ML_PIPELINES_INFERENCE_IMAGE_DIGEST": image_digest_of("run_inference")},
        doc_md=documented(
            "Removes data and model when all other tasks have stopped, whatever their states.",
            "the directory of the run",
            "`pred.csv` and `pred.json`, which says what made them, on the training storage; its "
            "log has the whole path",
            "the run keeps its own result, and the files stay. Clear this task to try again; else "
            "the janitor takes them in some days.",
        ),
    )

    work = [clean_storage_before_start, load_data, load_model, *predicted]
    clean_storage_before_start >> [load_data, load_model] >> run_inference

    # A teardown after every task: it starts when all have stopped, and decides no run's state.
    work >> clean_up.as_teardown()

    if RETRAIN_ON_DRIFT is not None:
        try:
            from airflow.providers.standard.operators.python import ShortCircuitOperator
            from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
        except ImportError:  # Airflow 2
            from airflow.operators.python import ShortCircuitOperator
            from airflow.operators.trigger_dagrun import TriggerDagRunOperator

        drifted = ShortCircuitOperator(
            task_id="has_drifted",
            python_callable=has_drifted,
            op_args=[predicted[-1].output],
            doc_md=documented(
                "Asks whether the texts differ from those that the model was trained on by more "
                "than `pipelines.inference.retrainOnDrift`; if not, `retrain` is skipped.",
                "the PSI figures in the result of the prediction",
                "yes or no",
                "its log has the traceback; it needs a result with figures of drift.",
            ),
        )
        drifted >> TriggerDagRunOperator(
            task_id="retrain",
            trigger_dag_id="training_dag",
            doc_md=documented(
                "Starts `training_dag`; what that trains has to pass the gate, as every model.",
                "nothing",
                "a run of `training_dag`, to which this task has a link",
                "`training_dag` is not there. Where it is paused its run waits.",
            ),
        )
