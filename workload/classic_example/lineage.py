"""Where a result comes from: the run and its parameters, the commit of its DAGs, the image."""

import json
import os
from collections.abc import Mapping
from urllib.parse import quote

from classic_example import parameters

# Set by the pipeline in every task pod. Empty where a command is run by hand.
VARIABLES = {
    name: f"ML_PIPELINES_{name.upper()}" for name in ("dag_id", "run_id", "image", "dags_commit")
}
# Set where a model is registered: the digest of the image that train ran in, once it had started.
TRAINING_IMAGE_DIGEST = "ML_PIPELINES_TRAINING_IMAGE_DIGEST"
# In lineage.json: the id of the run that showed the training in the registry.
TRACKING_RUN = "tracking_run"
# Address of the page of a run, with {dag_id} and {run_id} in it.
RUN_PAGE = "ML_PIPELINES_RUN_PAGE"


def of_this_run() -> dict[str, str]:
    """Return what the environment says about the run, without the parts it does not say.

    `parameters` are those that were set, as JSON: a run that is started with it does the same.
    """
    said = {key: value for key, name in VARIABLES.items() if (value := os.environ.get(name, ""))}
    given = parameters.of_this_run().given()
    return {**said, "parameters": json.dumps(given, sort_keys=True)} if given else said


def of_model(trained: dict[str, str]) -> dict[str, str]:
    """Return the lineage of a model that is registered now; `trained` is what training has noted.

    The run is the one that registers it. Commit and image are those of the training: this step may
    run from others. An image's digest is known only when its pod has started.
    """
    here = of_this_run()
    run = {key: here[key] for key in ("dag_id", "run_id") if key in here}
    digest = os.environ.get(TRAINING_IMAGE_DIGEST, "")
    return {**here, **trained, **run, **({"image_digest": digest} if digest else {})}


def run_page(tags: Mapping[str, str]) -> str:
    """Return a link in Markdown to the run of the pipeline that tags name, '' where there is none.

    It is where the pipeline says that its pages are.
    """
    address, names = os.environ.get(RUN_PAGE, ""), ("dag_id", "run_id")
    if not address or not all(name in tags for name in names):
        return ""
    page = address.format_map({name: quote(tags[name], safe="") for name in names})
    return f"[{tags['dag_id']}, {tags['run_id']}]({page})"
