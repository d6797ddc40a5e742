"""Batch prediction over a CSV file."""

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from classic_example import lineage, parameters
from classic_example.checks import require_one_of
from classic_example.config import PRECISIONS
from classic_example.data import BINARY, names, positive_of, read_table
from classic_example.errors import WorkloadError, not_there
from classic_example.files import fill_csv, fill_json, new_files, read_json, sha256_of
from classic_example.model_files import REGISTRY_FILE, WEIGHTS_FILE
from classic_example.text_model import (
    Model,
    import_torch,
    load_classifier,
    load_tokenizer,
    predict_logits,
    resolve_precision,
)

logger = logging.getLogger(__name__)

CONFIDENCE = "correct_sentence_conf"
PREDICTED, SCORE, PROBABILITY = "predicted_label", "predicted_score", "probability_"
BATCH_SIZE = 32
# Environment variable: fp32 or bf16 in place of auto.
PRECISION = "PREDICT_PRECISION"


def run_inference_on_dataframe(source: Path, model_directory: Path, target: Path) -> dict[str, Any]:
    """Add what the model says to each row of a CSV file with a `sentence` column.

    Only to the first rows when the run has the parameter sample_size. Writes `target` with the
    input's columns, unchanged and in order, and those of added_columns; beside it a JSON file of
    the same name that says which model predicted what: the version as `load-from-registry` has
    found it, with the tags that say how it was made.

    Raises:
        WorkloadError: the CSV, the model directory or the output.
    """
    start = time.monotonic()
    header, table = read_table(source, ("sentence",), parameters.of_this_run().sample_size)
    require_model(model_directory)
    registered = read_json(model_directory / REGISTRY_FILE)
    logger.info("%d rows from %s; model %s", len(table), source, described(registered))
    model = load_model(model_directory)
    added = added_columns(model.labels)
    sentence_at = header.index("sentence")
    probabilities, cut = predict(model, [fields[sentence_at] for _, fields in table])

    kept = [at for at, name in enumerate(header) if name not in added]
    if len(kept) < len(header):
        logger.info("columns of the input are replaced: %s", names(set(header) & set(added)))
    rows = (
        [*(fields[at] for at in kept), *said(row, model.labels)]
        for (_, fields), row in zip(table, probabilities, strict=True)
    )
    seconds = round(time.monotonic() - start, 1)
    chosen = Counter(model.labels[row.index(max(row))] for row in probabilities)
    at = positive_of(model.labels)
    of_positive = {}
    if at is not None:
        of_positive = {"positive": sum(row[at] >= 0.5 for row in probabilities)}
    counts = {"rows": len(table), **of_positive, "truncated": cut}
    with new_files(target, target.with_suffix(".json")) as (predictions, description):
        fill_csv(predictions, [*(header[at] for at in kept), *added], rows)
        fill_json(
            description,
            {
                "model": registered,
                "input": {"path": str(source), "sha256": sha256_of(source)},
                "predictions": {"path": str(target), "sha256": sha256_of(predictions)},
                **counts,
                "labels": {label: chosen[label] for label in model.labels},
                "positive_label": None if at is None else model.labels[at],
                "precision": model.precision,
                "max_tokens": model.tokenizer.model_max_length,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": seconds,
                "made_by": lineage.of_this_run(),
                # Of the image that predicts: its own container cannot know it, clean_up fills it
                # in.
                "image_digest": "",
            },
        )
    logger.info("%s; %.0f s; %s", counts, seconds, target)
    return {
        **counts,
        "predictions": str(target),
        "model_version": registered.get("version", ""),
    }


def added_columns(labels: Sequence[str]) -> list[str]:
    """Return the columns that predictions have besides the input's.

    `correct_sentence_conf` is the probability of the positive label, where there is one. It is all
    that a model of positive and negative needs; others name the label too, its probability, and
    that of each label.
    """
    confidence = [] if positive_of(labels) is None else [CONFIDENCE]
    if {label.casefold() for label in labels} == set(BINARY):
        return confidence
    return [*confidence, PREDICTED, SCORE, *(PROBABILITY + label for label in labels)]


def said(probabilities: Sequence[float], labels: Sequence[str]) -> list[str]:
    """Return the fields of added_columns for one row."""
    best, at = max(probabilities), positive_of(labels)
    values = {PREDICTED: labels[probabilities.index(best)], SCORE: f"{best:.6f}"}
    if at is not None:
        values[CONFIDENCE] = f"{probabilities[at]:.6f}"
    for label, probability in zip(labels, probabilities, strict=True):
        values[PROBABILITY + label] = f"{probability:.6f}"
    return [values[name] for name in added_columns(labels)]


def described(registered: dict[str, Any]) -> str:
    """Return `name version`, or that the model did not come from a registry."""
    if not registered:
        return "that did not come from a registry"
    return f"{registered.get('name')} {registered.get('version')}"


def require_model(directory: Path) -> None:
    """Raise WorkloadError unless the directory holds a model, ours or another's."""
    if not directory.is_dir():
        raise not_there(directory, "load-from-registry or train")
    missing = [name for name in ("config.json", WEIGHTS_FILE) if not (directory / name).is_file()]
    if missing:
        raise WorkloadError(f"{directory} is not a model: it has no {names(missing)}")


def load_model(directory: Path) -> Model:
    """Return the model in a directory, with its own labels and its own longest text."""
    precision = os.environ.get(PRECISION, "").strip() or "auto"
    require_one_of("the environment", PRECISION, precision, PRECISIONS)
    import_torch()
    return Model(
        load_tokenizer(str(directory)),
        load_classifier(str(directory)),
        resolve_precision(precision),
    )


def predict(model: Model, sentences: Sequence[str]) -> tuple[list[list[float]], int]:
    """Return the probabilities of all labels for each sentence, and how many sentences were cut."""
    import torch

    encoded, cut = model.encode(sentences)
    logits = torch.from_numpy(predict_logits(model, encoded, BATCH_SIZE, "predicting"))
    if not logits.isfinite().all():
        raise WorkloadError("the model gives no finite numbers; its weights are damaged")
    return torch.softmax(logits, dim=1).tolist(), cut
