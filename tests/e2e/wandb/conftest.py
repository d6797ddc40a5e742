"""Both pipelines with Weights & Biases as the registry, through the stand-in of tests/helpers.

The release knows the name of a Secret only. In it the key is a wrong one first: the upload fails,
the key is put right, and the task's next try succeeds. The new model starts an inference
(`pipelines.inferenceOnNewModel`). Before that one asks for it another key is issued, and the
inference goes on with that. Nothing is upgraded meanwhile.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow, Task
from mlctl.clients.forward import Forward
from mlctl.stack import Stack
from tests.helpers.releases import SHORT_TRAINING
from tests.helpers.wandb_stand_in import (
    KEY_SECRET,
    NAME,
    PORT,
    PROJECT,
    StandIn,
    manifests,
    new_key,
)

SECONDS = 900
START_SECONDS = 120


@pytest.fixture(scope="package")
def server(stack: Stack, release, aloud) -> Iterator[StandIn]:
    """Run the stand-in in the release's namespace; the release's Secret holds a wrong key."""
    kube, key = stack.kube, new_key()
    objects = manifests(stack.image, key)
    try:
        with aloud("start the stand-in for W&B"):
            for one in objects:
                kube.apply(one)
            kube.run("wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=90s", timeout=100)
        with Forward(kube, NAME, PORT) as forward:
            server = StandIn(kube, forward, [key])
            server.give(new_key())
            yield server
    finally:
        for kind, name in (
            *((one["kind"].lower(), NAME) for one in objects),
            ("secret", KEY_SECRET),
        ):
            kube.run("delete", kind, name, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="package")
def with_wandb(server: StandIn, with_settings, settle) -> Iterator[None]:
    """The release with W&B as its registry, where a new model starts an inference."""
    key = {"name": KEY_SECRET, "key": "api-key", "optional": True}
    env = [
        {"name": "REGISTRY", "value": "wandb"},
        {"name": "WANDB_PROJECT", "value": PROJECT},
        {"name": "WANDB_BASE_URL", "value": f"http://{NAME}:{PORT}"},
        {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": key}},
    ]
    registry = {"pod": {"spec": {"containers": [{"name": "base", "env": env}]}}}
    # A short training is worse than the baseline.
    model = {"gate": {"margin": -1}}
    changes = {"presets": {"registry": registry}, "inferenceOnNewModel": True, "model": model}
    with with_settings(changes | SHORT_TRAINING):
        # The scheduler, too: with the switch, and not with the retries of tests before this one.
        settle()
        yield


@pytest.fixture(scope="package")
def training(with_wandb: None, server: StandIn, start, follow_run):
    """A training run; the right key comes after the first try of the upload."""

    def change(task: Task) -> None:
        if (task.task_id, task.state) == ("upload_model", "up_for_retry"):
            server.give(server.keys[0])
        if (task.task_id, task.state) == ("upload_model", "success"):
            key = new_key()
            server.accept(key)
            server.give(key)
            server.changed = datetime.now(UTC)

    return follow_run("training_dag", start("training_dag"), SECONDS, change)


@pytest.fixture(scope="package")
def started_by_a_model(inference_run, client: Airflow) -> Callable[[], list[str]]:
    """Give the ids of the inferences that a new model has started."""

    def ask() -> list[str]:
        runs = client.all_runs("inference_dag")
        return [one["dag_run_id"] for one in runs if one["run_type"] == "dataset_triggered"]

    return ask


@pytest.fixture(scope="package")
def inference(started_by_a_model, training, follow_run):
    """The inference that the model of the training has started; a key was issued meanwhile."""
    assert training.state == "success", training.told()
    (run_id,) = until(START_SECONDS, started_by_a_model, "nothing runs")
    return follow_run("inference_dag", run_id, SECONDS)
