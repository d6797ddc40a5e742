"""
### Training

Cleans the run's directory, loads the sentences, trains the classifier, puts the model into the
registry (Weights & Biases or MLflow), promotes it if it is good enough, and removes the run's
files. Started by hand: `airflow dags trigger training_dag`.

* `gate_model` compares the new version with the champion, the one that inference loads, and with a
  plain baseline, on rows that took part in no training. It takes the champion's place on evidence;
  else the task is skipped: the run is good, the model is registered, inference stays as it is. Why,
  with all figures, is the task's XCom `return_value`, and in tags of the version.
* Each run works in a directory of its own on the claim; runs at the same time do not meet.
* A failing step fails the run. `clean_up` runs in any case, after every other task has stopped; its
  own failure is shown on the task but does not fail a run whose model is in the registry.
* To repeat a run, clear all of its tasks: the files of a finished run are gone, and a single task
  that needs them says so.
* The figures of a step (accuracy, model version ...) are its XCom `return_value`.
* The form below, or `--conf '{"max_steps": 50}'`, sets parameters of one run; those left empty are
  as configured.
* The registered version says what made it: run, parameters, commit of the DAGs, image digest, data,
  metrics.
* The W&B key is read from a Secret:
  `kubectl create secret generic ml-pipelines-wandb --from-literal=api-key=...`
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow import DAG

from example_parts import (
    APPROVER,
    CLEAN_DOC,
    CLI,
    DATA_SOURCE,
    EMPTY_RUN_DIRECTORY,
    LATEST,
    LOAD_DOC,
    WITH_PARAMETERS,
    approval,
    documented,
    gate_rules,
    image_digest_of,
    model_alias,
    model_dataset,
    model_name,
    wants_approval,
    which_data,
)
from ml_pipelines import PodOperator

try:
    from airflow.sdk import Param, chain
    from airflow.sdk.exceptions import AirflowSkipException
except ImportError:  # Airflow 2
    from airflow.exceptions import AirflowSkipException
    from airflow.models.baseoperator import chain
    from airflow.models.param import Param

# Null, the default, is what the configuration and the values say.
PARAMETERS = {
    "max_steps": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=100_000,
        title="Training steps",
        description="Optimizer steps, 1 to 100000. Empty: as configured.",
    ),
    "learning_rate": Param(
        None,
        type=["null", "number"],
        minimum=1e-8,
        maximum=1,
        title="Learning rate",
        description="Highest learning rate, 1e-8 to 1, with a point: 0.0001. Empty: as configured.",
    ),
    "base_model": Param(
        None,
        type=["null", "string"],
        pattern=r"^[A-Za-z0-9._/-]+$",
        maxLength=200,
        examples=["sentence-transformers/all-MiniLM-L6-v2"],
        title="Base model",
        description="What is trained further: a model that the image carries, one of the Hugging "
        "Face hub where that can be reached, or a directory; at most 200 letters, digits, '.', "
        "'_', '-' and '/'. Empty: as configured.",
    ),
    "data_source": DATA_SOURCE,
    "model_name": Param(
        None,
        type=["null", "string"],
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        maxLength=128,
        title="Model name",
        description="Name in the registry to add a version to: at most 128 letters, digits, '.', "
        f"'_' and '-'. Empty: {model_name()}.",
    ),
}


NAME = f"{{{{ params.model_name or {model_name()!r} }}}}"
VERSION = f"{NAME}:{{{{ ti.xcom_pull(task_ids='upload_model')['version'] }}}}"


def announce_no_other_model(context: dict[str, Any]) -> None:
    """The dataset stands for the model of the values; one of another name is no event of it."""
    if context["params"]["model_name"] not in (None, model_name()):
        context["task"].outlets = []


def skip_a_refused_model(_context: dict[str, Any], result: dict[str, Any] | None = None) -> None:
    """The gate has done its work when it refuses a model: no failure, and no event either."""
    if result and result.get("decision") == "refused":
        raise AirflowSkipException(f"refused: {result['reason']}")


with DAG(
    dag_id="training_dag",
    description="Load data, train, register the model",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2021, 1, 1, tzinfo=UTC),
    catchup=False,
    # The document starts five runs at once; further ones wait for their turn.
    max_active_runs=5,
    default_args={"owner": "ml-pipelines"},
    params=PARAMETERS,
    tags=["ml-pipelines", "training"],
) as dag:
    clean_storage_before_start = PodOperator(
        task_id="clean_storage_before_start", cmds=EMPTY_RUN_DIRECTORY, doc_md=CLEAN_DOC
    )
    load_data = PodOperator(
        task_id="load_data",
        cmds=[*CLI, "load-sst2-data", "/tmp/data/"],
        env_vars=which_data(),
        doc_md=LOAD_DOC,
    )
    train_model = PodOperator(
        task_id="train_model",
        cmds=[*CLI, "train", "tests/data/test_config.json"],
        # Its curve is shown in the registry while it goes on.
        presets=["registry"],
        env_vars=WITH_PARAMETERS,
        doc_md=documented(
            "Trains the base model further, and a plain baseline beside it. The registry shows its "
            "curve while it goes on.",
            "`/tmp/data/`; the parameters of the run over `tests/data/test_config.json`",
            "`/tmp/results/`: the model with its figures, plots and lineage; accuracy, steps and "
            "seconds are the XCom `return_value`",
            "`OOMKilled`: more memory in `pipelines.tasks.train_model.resources`. A time limit: "
            "`executionTimeoutSeconds` there. A try that was killed is gone on with, from its last "
            "checkpoint.",
        ),
    )
    # What makes a version the one that inference loads; runs of another name announce none.
    for_inference: dict[str, Any] = {
        "outlets": [model_dataset()],
        "pre_execute": announce_no_other_model,
    }
    upload_model = PodOperator(
        task_id="upload_model",
        cmds=[*CLI, "upload-to-registry", NAME, "/tmp/results"],
        presets=["registry"],
        # The version carries the image that has trained it.
        env_vars={
            "ML_PIPELINES_TRAINING_IMAGE_DIGEST": image_digest_of("train_model"),
            **WITH_PARAMETERS,
        },
        doc_md=documented(
            "Registers the model as a new version. A try that is repeated finds the version that "
            "the one before has made.",
            "`/tmp/results/`",
            "a version of the model in the registry, with what made it as tags; its name, number "
            "and address are the XCom `return_value`, and links of this task",
            "the registry: it does not answer, refuses the key, or its volume is full. The last "
            "line says which, with the address. Mend that and clear all tasks of the run: its "
            "files are gone by then.",
        ),
        **({} if model_alias() != LATEST else for_inference),
    )
    clean_up = PodOperator(
        task_id="clean_up",
        cmds=EMPTY_RUN_DIRECTORY,
        doc_md=documented(
            "Removes the files of the run when all other tasks have stopped, however they ended.",
            "the directory of the run",
            "nothing: the model is in the registry",
            "the run keeps its own result, its files stay on the training storage. Clear this task "
            "to try again; else the janitor takes them in some days.",
        ),
    )

    work = [clean_storage_before_start, load_data, train_model, upload_model]
    if model_alias() != LATEST:
        gate_model = PodOperator(
            task_id="gate_model",
            cmds=[*CLI, "gate", VERSION, "/tmp/results", "/tmp/data"],
            presets=["registry"],
            env_vars={**gate_rules(), **WITH_PARAMETERS},
            post_execute=skip_a_refused_model,
            doc_md=documented(
                "Compares the new version with the champion and with a plain baseline on "
                "`gold.csv`. It takes the champion's place on evidence; a version that is refused "
                "skips this task, and inference stays as it is.",
                "`/tmp/results/`, `/tmp/data/`, the champion from the registry, the rules "
                "`pipelines.model.gate`",
                "the decision, its reason and all figures as XCom `return_value` and as tags of "
                "the version; the alias of the champion, moved or not",
                "a rule that is no rule, or the registry; the last line says which. That a version "
                "is not good enough is no failure.",
            ),
            **({} if wants_approval() else for_inference),
        )
        work.append(gate_model)
        if wants_approval():
            approve_model = approval(VERSION)
            promote_model = PodOperator(
                task_id="promote_model",
                cmds=[*CLI, "promote", VERSION, "--by", APPROVER, "--reason", "approved"],
                presets=["registry"],
                env_vars={**gate_rules(), **WITH_PARAMETERS},
                doc_md=documented(
                    "Makes the approved version the champion, the one that inference loads.",
                    "the version, and who has approved it",
                    "the alias of the champion; when, who and why as tags of the version",
                    "the registry: the last line says why. Clear it, or `make promote V=N`.",
                ),
                **for_inference,
            )
            work += [approve_model, promote_model]
    chain(*work)

    # A teardown, not `trigger_rule="all_done"`: as the only leaf that one turns a failed run into a
    # success. Without setups: with one, a failing first task would skip the cleaning. After every
    # task, not only the last: else it starts as soon as one branch has failed, under the others.
    work >> clean_up.as_teardown()
