"""Where a result comes from: the run, the image, the data."""

import os

# Set by the pipeline in every task pod. Empty where a command is run by hand.
VARIABLES = {
    "dag_id": "ML_PIPELINES_DAG_ID",
    "run_id": "ML_PIPELINES_RUN_ID",
    "image": "ML_PIPELINES_IMAGE",
    "dags_commit": "ML_PIPELINES_DAGS_COMMIT",
}


def of_this_run() -> dict[str, str]:
    """Return what the environment says about the run, without the parts it does not say."""
    return {key: value for key, name in VARIABLES.items() if (value := os.environ.get(name, ""))}
