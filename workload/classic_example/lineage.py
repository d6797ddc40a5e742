"""Where a result comes from: the run, the commit of its DAGs, the image, the data."""

import os

# Set by the pipeline in every task pod. Empty where a command is run by hand.
VARIABLES = {
    "dag_id": "ML_PIPELINES_DAG_ID",
    "run_id": "ML_PIPELINES_RUN_ID",
    "image": "ML_PIPELINES_IMAGE",
    "dags_commit": "ML_PIPELINES_DAGS_COMMIT",
}
# Set where a model is registered: the digest of the image that train ran in, once it had started.
TRAINING_IMAGE_DIGEST = "ML_PIPELINES_TRAINING_IMAGE_DIGEST"


def of_this_run() -> dict[str, str]:
    """Return what the environment says about the run, without the parts it does not say."""
    return {key: value for key, name in VARIABLES.items() if (value := os.environ.get(name, ""))}


def of_model(trained: dict[str, str]) -> dict[str, str]:
    """Return the lineage of a model that is registered now; `trained` is what training has noted.

    The run is the one that registers it. Commit and image are those of the training: this step may
    run from others. The digest of an image is known only when its pod has started, so that the
    pipeline tells it afterwards.
    """
    here = of_this_run()
    run = {key: here[key] for key in ("dag_id", "run_id") if key in here}
    digest = os.environ.get(TRAINING_IMAGE_DIGEST, "")
    return {**here, **trained, **run, **({"image_digest": digest} if digest else {})}
