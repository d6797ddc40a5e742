"""A whole inference run, with the model that the training run has promoted."""

import csv
import hashlib
import io
import json
import re

import pytest

from mlctl.clients.volume import Volume
from mlctl.stack import Stack

TASKS = {"clean_storage_before_start", "load_data", "load_model", "run_inference", "clean_up"}


@pytest.fixture(scope="module")
def path(inference_run, stack: Stack) -> str:
    """The directory of the run on the training storage."""
    return stack.run_path("inference_dag", inference_run.run_id)


@pytest.fixture(scope="module")
def predictions(path: str, volume: Volume) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(volume.read(f"{path}/pred.csv"))))


def test_every_task_succeeds_at_the_first_try(inference_run) -> None:
    assert inference_run.state == "success", inference_run.told()
    assert {
        name: (task.state, task.try_number) for name, task in inference_run.tasks.items()
    } == dict.fromkeys(TASKS, ("success", 1)), inference_run.told()


def test_it_takes_the_champion(training_run, inference_run) -> None:
    uploaded = training_run.results["upload_model"]
    loaded = inference_run.results["load_model"]
    assert (loaded["name"], loaded["version"]) == (uploaded["name"], uploaded["version"])


def test_the_predictions_are_a_row_for_each_sentence(inference_run, predictions) -> None:
    rows = predictions
    assert len(rows) == inference_run.results["run_inference"]["rows"]
    assert len(rows) == inference_run.results["load_data"]["rows"]["test"]
    assert set(rows[0]) == {"sentence", "label", "idx", "correct_sentence_conf"}
    confidence = [float(row["correct_sentence_conf"]) for row in rows]
    assert all(0.0 <= value <= 1.0 for value in confidence)
    assert len(set(confidence)) > len(rows) // 2


def test_the_predictions_tell_sentences_apart(inference_run, predictions) -> None:
    rows = predictions
    # As in SST-2, the labels of these sentences are withheld; half of them are positive.
    assert {row["label"] for row in rows} == {"-1"}
    confidence = [float(row["correct_sentence_conf"]) for row in rows]
    positive = sum(value >= 0.5 for value in confidence)
    assert 0.4 < positive / len(rows) < 0.6
    assert positive == inference_run.results["run_inference"]["positive"]
    assert sum(value < 0.1 or value > 0.9 for value in confidence) > len(rows) / 4


def test_only_the_predictions_stay(path: str, volume: Volume) -> None:
    assert volume.files(path) == [f"{path}/pred.csv", f"{path}/pred.json"]


def test_the_predictions_say_what_made_them(
    training_run, inference_run, commit: str, path: str, stack: Stack, volume: Volume
) -> None:
    made = json.loads(volume.read(f"{path}/pred.json"))
    uploaded, trained = (training_run.results[task] for task in ("upload_model", "train_model"))
    ran = inference_run.results["run_inference"]
    image = stack.image
    assert (made["model"]["version"], made["model"]["uri"]) == (
        uploaded["version"],
        uploaded["uri"],
    )
    weights = made["model"]["tags"].pop("model_sha256")
    assert re.fullmatch(r"[0-9a-f]{64}", weights)
    tags = made["model"]["tags"]
    assert tags["gate_decision"] == "promoted"
    assert {key: text for key, text in tags.items() if not key.startswith(("gate_", "promot"))} == {
        "dag_id": "training_dag",
        "run_id": training_run.run_id,
        "dags_commit": commit,
        "image": image,
        "image_digest": trained["image_digest"],
        "data_source": training_run.results["load_data"]["source"],
        "data_sha256": training_run.results["load_data"]["sha256"],
        "device": trained["device"],
    }
    assert made["made_by"] == {
        "dag_id": "inference_dag",
        "run_id": inference_run.run_id,
        "dags_commit": commit,
        "image": image,
    }
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", ran["image_digest"])
    assert made["image_digest"] == ran["image_digest"]
    assert made["rows"] == ran["rows"]
    content = volume.read(f"{path}/pred.csv").encode()
    assert made["predictions"]["sha256"] == hashlib.sha256(content).hexdigest()
