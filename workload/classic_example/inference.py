"""Batch prediction over a CSV file."""

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from classic_example import lineage, parameters
from classic_example.checks import require_one_of
from classic_example.config import PRECISIONS
from classic_example.data import BINARY, digest, names, positive_of, read_rows
from classic_example.errors import WorkloadError, not_there
from classic_example.files import (
    Unfinished,
    csv_lines,
    fill_json,
    new_files,
    read_json,
    sha256_of,
)
from classic_example.model_files import REGISTRY_FILE, WEIGHTS_FILE
from classic_example.text_model import (
    POOL_BATCHES,
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
# A multiple of what is sorted by length together, so that the batches do not depend on it.
CHUNK_ROWS = 16 * POOL_BATCHES * BATCH_SIZE
# Environment variable: fp32 or bf16 in place of auto.
PRECISION = "PREDICT_PRECISION"


def run_inference_on_dataframe(source: Path, model_directory: Path, target: Path) -> dict[str, Any]:
    """Add what the model says to each row of a CSV file with a `sentence` column.

    Only to the first rows when the run has the parameter sample_size. Writes `target` with the
    input's columns, unchanged and in order, and those of added_columns; beside it a JSON file of
    the same name that says which model predicted what: the version as `load-from-registry` has
    found it, with the tags that say how it was made. Never more than CHUNK_ROWS rows are in memory;
    after each so many, a try that is killed leaves what it has done to the next one.

    Raises:
        WorkloadError: the CSV, the model directory or the output.
    """
    start = time.monotonic()
    limit = parameters.of_this_run().sample_size
    # All rows are read once before: a bad one ends the step now and not after an hour.
    table = read_rows(source, ("sentence",), limit)
    (_, header), total = next(table), sum(1 for _ in table)
    require_model(model_directory)
    registered = read_json(model_directory / REGISTRY_FILE)
    logger.info("%d rows from %s; model %s", total, source, described(registered))
    model = load_model(model_directory)
    added = added_columns(model.labels)
    replaced = [name for name in header if name in added]
    if replaced:
        logger.info("columns of the input are replaced: %s", names(replaced))
    read = sha256_of(source)
    key = {
        "input": read,
        "rows": total,
        "model": digest(sorted(path for path in model_directory.iterdir() if path.is_file())),
        "precision": model.precision,
        "image": lineage.of_this_run().get("image"),
    }
    with Unfinished(target, key) as begun:
        counts = predict_rows(model, source, limit, total, begun)
        summary = {"rows": total, "truncated": counts["truncated"]}
        at = positive_of(model.labels)
        if at is not None:
            summary["positive"] = counts["positive"]
        seconds = round(time.monotonic() - start, 1)
        with new_files(target, target.with_suffix(".json")) as (predictions, description):
            begun.path.rename(predictions)
            fill_json(
                description,
                {
                    "model": registered,
                    "input": {"path": str(source), "sha256": read},
                    "predictions": {"path": str(target), "sha256": sha256_of(predictions)},
                    **summary,
                    "labels": {label: counts[label_key(label)] for label in model.labels},
                    "positive_label": None if at is None else model.labels[at],
                    "precision": model.precision,
                    "max_tokens": model.tokenizer.model_max_length,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": seconds,
                    "made_by": lineage.of_this_run(),
                    # Of the image that predicts: its own container cannot know it, clean_up fills
                    # it in.
                    "image_digest": "",
                },
            )
    logger.info("%s; %.0f s; %s", summary, seconds, target)
    return {
        **summary,
        "predictions": str(target),
        "model_version": registered.get("version", ""),
    }


def predict_rows(
    model: Model, source: Path, limit: int | None, total: int, begun: Unfinished
) -> Counter[str]:
    """Write the rows with their predictions behind those that are there already; return counts.

    They are of `rows`, those that were `truncated`, the `positive` ones, and of each label_key.
    """
    table = read_rows(source, ("sentence",), limit)
    _, header = next(table)
    added = added_columns(model.labels)
    kept = [at for at, name in enumerate(header) if name not in added]
    sentence_at, positive_at = header.index("sentence"), positive_of(model.labels)
    counts = Counter(begun.done)
    if before := counts["rows"]:
        logger.info("going on behind %d rows of an earlier try", before)
    else:
        begun.write(csv_lines([[*(header[at] for at in kept), *added]]))
    table = islice(table, before, None)
    start = time.monotonic()
    while chunk := list(islice(table, CHUNK_ROWS)):
        probabilities, cut = predict(model, [fields[sentence_at] for _, fields in chunk])
        counts.update(label_key(model.labels[row.index(max(row))]) for row in probabilities)
        counts.update(rows=len(chunk), truncated=cut)
        if positive_at is not None:
            counts["positive"] += sum(row[positive_at] >= 0.5 for row in probabilities)
        begun.write(
            csv_lines(
                [*(fields[at] for at in kept), *said(row, model.labels)]
                for (_, fields), row in zip(chunk, probabilities, strict=True)
            )
        )
        if counts["rows"] < total:
            begun.keep(counts)
            rate = (counts["rows"] - before) / (time.monotonic() - start)
            left = (total - counts["rows"]) / rate
            logger.info(
                "%d of %d rows, %.0f a second, %.0f s left", counts["rows"], total, rate, left
            )
    return counts


def label_key(label: str) -> str:
    """Return the name under which rows of a label are counted."""
    return f"label {label}"


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
