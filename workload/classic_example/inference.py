"""Batch prediction over a CSV file."""

import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from classic_example import lineage, parameters
from classic_example.data import read_table
from classic_example.errors import WorkloadError, not_there
from classic_example.files import fill_csv, fill_json, new_files, read_json, sha256_of
from classic_example.model_files import MODEL_FILES, REGISTRY_FILE
from classic_example.text_model import (
    encode,
    import_torch,
    load_classifier,
    load_tokenizer,
    predict_logits,
)

logger = logging.getLogger(__name__)

CONFIDENCE = "correct_sentence_conf"
BATCH_SIZE = 32
# Longer than any sentence of the data; cut so that one pasted novel cannot exhaust the memory.
MAX_TOKENS = 256


def run_inference_on_dataframe(source: Path, model_directory: Path, target: Path) -> dict[str, Any]:
    """Add the probability of label 1 to each row of a CSV file with a `sentence` column.

    Only to the first rows when the run has the parameter sample_size. Writes `target` with the
    input's columns, unchanged and in order, and `correct_sentence_conf`; beside it a JSON file of
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
    confidences = predict(
        [fields[header.index("sentence")] for _, fields in table], model_directory
    )

    kept = [at for at, name in enumerate(header) if name != CONFIDENCE]
    if len(kept) < len(header):
        logger.info("the column %s of the input is replaced", CONFIDENCE)
    rows = (
        [*(fields[at] for at in kept), f"{confidence:.6f}"]
        for (_, fields), confidence in zip(table, confidences, strict=True)
    )
    positive = sum(confidence >= 0.5 for confidence in confidences)
    seconds = round(time.monotonic() - start, 1)
    with new_files(target, target.with_suffix(".json")) as (predictions, description):
        fill_csv(predictions, [*(header[at] for at in kept), CONFIDENCE], rows)
        fill_json(
            description,
            {
                "model": registered,
                "input": {"path": str(source), "sha256": sha256_of(source)},
                "predictions": {"path": str(target), "sha256": sha256_of(predictions)},
                "rows": len(table),
                "positive": positive,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": seconds,
                "made_by": lineage.of_this_run(),
                # Of the image that predicts: its own container cannot know it, clean_up fills it
                # in.
                "image_digest": "",
            },
        )
    logger.info("%d of %d rows are positive; %.0f s; %s", positive, len(table), seconds, target)
    return {
        "rows": len(table),
        "predictions": str(target),
        "model_version": registered.get("version", ""),
        "positive": positive,
    }


def described(registered: dict[str, Any]) -> str:
    """Return `name version`, or that the model did not come from a registry."""
    if not registered:
        return "that did not come from a registry"
    return f"{registered.get('name')} {registered.get('version')}"


def require_model(directory: Path) -> None:
    """Raise WorkloadError unless the directory holds a model with its tokenizer."""
    if not directory.is_dir():
        raise not_there(directory, "load-from-registry or train")
    missing = [name for name in MODEL_FILES if not (directory / name).is_file()]
    if missing:
        raise WorkloadError(f"{directory} is not a model: it has no {', '.join(missing)}")


def predict(sentences: list[str], model_directory: Path) -> list[float]:
    """Return the probability of label 1 for each sentence."""
    torch = import_torch()
    tokenizer = load_tokenizer(str(model_directory))
    classifier = load_classifier(str(model_directory))
    encoded = encode(tokenizer, sentences, MAX_TOKENS)
    logits = predict_logits(
        classifier, encoded, tokenizer.pad_token_id or 0, BATCH_SIZE, "predicting"
    )
    return torch.softmax(torch.from_numpy(logits), dim=1)[:, 1].tolist()
