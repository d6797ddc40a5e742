"""Batch prediction over tables of any size, in one piece or in shards."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

import numpy
import pyarrow

from classic_example import lineage, parameters, statistics, text_model
from classic_example.data import BINARY, positive_of
from classic_example.errors import WorkloadError, names
from classic_example.files import Unfinished, fill_json, new_files, read_json
from classic_example.model_files import REGISTRY_FILE, require_model
from classic_example.predictions import DIGITS, OUTPUT, deliver, part_of
from classic_example.progress import Ticker
from classic_example.tables import ON_BAD_ROW, TEXT, Table, locate
from classic_example.text_model import Model

logger = logging.getLogger(__name__)

CONFIDENCE = "correct_sentence_conf"
PREDICTED, SCORE, PROBABILITY = "predicted_label", "predicted_score", "probability_"
# Fewer rows than these do not keep a GPU busy.
BATCH_SIZE, GPU_BATCH_SIZE = 32, 512
# Sorted by length together, of one shard, and lost together when a try is killed.
CHUNK_ROWS = 2048
# Environment variables: another word in place of auto, auto, and fail.
PRECISION, DEVICE = "PREDICT_PRECISION", "PREDICT_DEVICE"
BAD_ROWS = "PREDICT_ON_BAD_ROW"


def run_inference_on_dataframe(
    source: str | Path, model_directory: Path, target: Path, shard: str = "0/1"
) -> dict[str, Any]:
    """Add what the model says to each row of a table with a text column `sentence`.

    Only to the first rows when the run has the parameter sample_size. `target` (Parquet where it is
    called so, else CSV) gets the input's columns, unchanged and in order, and those of
    added_columns; a JSON file of the same name beside it says which model predicted what: the
    version as `load-from-registry` has found it, with the tags that say how it was made.

    One block of rows is in memory. A try that is killed leaves its chunks to the next one. `k/n` is
    the k-th of n shards, from 0: it makes every n-th chunk, for join_predictions. Raises
    WorkloadError for the input, the model directory, the output, or a variable.
    """
    start, (number, shards) = time.monotonic(), shard_of(shard)
    limit, skip = parameters.of_this_run().sample_size, chosen(BAD_ROWS, ON_BAD_ROW) == "skip"
    locate(os.environ.get(OUTPUT, ""))
    table = Table(source, ("sentence",), skip, f"{BAD_ROWS}=skip leaves such rows out")
    # A missing column, or a bad row in the first block, ends the step now.
    chunks = table.batches(CHUNK_ROWS, limit)
    first = next(chunks)
    require_model(model_directory, "load-from-registry or train")
    registered = read_json(model_directory / REGISTRY_FILE)
    known = "{name} {version}".format(**registered) if registered else "from no registry"
    logger.info("predicting %s; model %s", source, known)
    model = load_model(model_directory)
    key = {
        "input": table.identity,
        "limit": limit,
        "skip": skip,
        "model": Table(model_directory, ()).identity,
        "precision": model.precision,
        "image": lineage.of_this_run().get("image"),
    }
    made = target if shards == 1 else part_of(target, number, shards)
    with Unfinished(made, key) as begun:
        mine = islice(chain([first], chunks), number, None, shards)
        counts = predict_rows(model, output_schema(first[0], model.labels), mine, shards, begun)
        at = positive_of(model.labels)
        about = {
            "model": registered,
            "input": {"path": str(source), "sha256": table.sha256.hexdigest()},
            "bad_rows": table.bad,
            "labels": model.labels,
            "positive_label": None if at is None else model.labels[at],
            "precision": model.precision,
            "max_tokens": model.tokenizer.model_max_length,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1),
            "made_by": lineage.of_this_run(),
        }
        if shards == 1:
            return deliver([begun.path], model_directory, target, counts, about)
        with new_files(made, made.with_suffix(".json")) as (part, description):
            begun.path.rename(part)
            fill_json(description, {"counts": counts, "about": about})
    return {"rows": counts["rows"], "shard": shard}


def shard_of(text: str) -> tuple[int, int]:
    """Return number and count of `k/n`. Raises WorkloadError where it is no such thing."""
    number, _, shards = text.partition("/")
    if not (number.isdecimal() and shards.isdecimal() and int(number) < int(shards)):
        raise WorkloadError(f"the shard is {text!r}; it must be k/n, with k from 0 to n - 1")
    return int(number), int(shards)


def predict_rows(
    model: Model,
    schema: pyarrow.Schema,
    chunks: Iterator[tuple[pyarrow.RecordBatch, float]],
    shards: int,
    begun: Unfinished,
) -> Counter[str]:
    """Write chunks with their predictions behind those that are there already.

    Returns the counts of statistics.count, and those of `truncated` and `positive` rows.
    """
    counts, ticker = Counter(begun.done), Ticker()
    done = sum(share for _, share in islice(chunks, counts["chunks"]))
    if before := counts["rows"]:
        logger.info("going on behind %d rows of an earlier try", before)
    else:
        begun.write(schema.serialize())
    at_start, start = done, time.monotonic()
    for chunk, share in chunks:
        batch, more = with_predictions(model, schema, chunk)
        begun.write(batch.serialize())
        counts.update(more, chunks=1)
        begun.keep(counts)
        done += share
        if ticker.due():
            seconds = time.monotonic() - start
            left = max(0, 1 / shards - done) * seconds / (done - at_start)
            rate = (counts["rows"] - before) / seconds
            logger.info("%d rows, %.0f a second, about %.0f s left", counts["rows"], rate, left)
    del counts["chunks"]
    return counts


def with_predictions(
    model: Model, schema: pyarrow.Schema, chunk: pyarrow.RecordBatch
) -> tuple[pyarrow.RecordBatch, Counter[str]]:
    """Return rows with what the model says to them, and their counts."""
    texts = chunk.column(chunk.schema.names.index("sentence")).fill_null("")
    probabilities, cut = predict(model, texts.to_pylist())
    labels = model.labels
    best = [labels[number] for number in probabilities.argmax(1)]
    score = statistics.scores_of(probabilities, positive_of(labels))
    said = {PREDICTED: best, SCORE: probabilities.max(1), CONFIDENCE: score}
    said |= {PROBABILITY + label: probabilities[:, n] for n, label in enumerate(labels)}
    added = added_columns(labels)
    kept = [chunk.column(n) for n, name in enumerate(chunk.schema.names) if name not in added]
    columns = [*kept, *(pyarrow.array(said[name], schema.field(name).type) for name in added)]
    counts = statistics.count(texts, best, score)
    counts.update(truncated=cut, positive=int((score >= 0.5).sum()))
    return pyarrow.record_batch(columns, schema), counts


def output_schema(chunk: pyarrow.RecordBatch, labels: Sequence[str]) -> pyarrow.Schema:
    """Return the columns of predictions: those of the input, then added_columns."""
    added = added_columns(labels)
    if replaced := [name for name in chunk.schema.names if name in added]:
        logger.info("columns of the input are replaced: %s", names(replaced))
    numbers = pyarrow.field("", pyarrow.float32(), metadata={DIGITS: "6"})
    return pyarrow.schema(
        [
            *(field for field in chunk.schema if field.name not in added),
            *(pyarrow.field(n, TEXT) if n == PREDICTED else numbers.with_name(n) for n in added),
        ]
    )


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


def chosen(variable: str, allowed: tuple[str, ...]) -> str:
    """Return what a variable of the environment says, else the first of the allowed words."""
    word = os.environ.get(variable, "").strip() or allowed[0]
    parameters.require_one_of("the environment", variable, word, allowed)
    return word


def load_model(directory: Path) -> Model:
    """Return the model in a directory, with its own labels and its own longest text."""
    precision = chosen(PRECISION, get_args(text_model.Precision))
    text_model.import_torch()
    device = text_model.resolve_device(chosen(DEVICE, get_args(text_model.Device)))
    precision, source = text_model.resolve_precision(precision, device), str(directory)
    tokenizer = text_model.load_tokenizer(source)
    return Model(tokenizer, text_model.load_classifier(source), precision, device)


def predict(model: Model, sentences: Sequence[str]) -> tuple[numpy.ndarray, int]:
    """Return the probabilities, shape (sentences, labels), and how many sentences were cut.

    A thread takes a batch: they are the same for any number of threads.
    """
    import torch

    encoded, cut = model.encode(sentences)
    # Batches of like length: each is padded to its longest sentence only.
    order = numpy.argsort([len(ids) for ids in encoded], kind="stable")
    probabilities = numpy.empty((len(encoded), len(model.labels)), numpy.float32)
    on_cpu, ticker = model.device == "cpu", Ticker()
    size = BATCH_SIZE if on_cpu else GPU_BATCH_SIZE
    batches = [order[start : start + size] for start in range(0, len(order), size)]

    def of(batch: numpy.ndarray) -> numpy.ndarray:
        with torch.inference_mode(), model.computing():
            ids = {"input_ids": [encoded[at] for at in batch]}
            inputs = model.tokenizer.pad(ids, return_tensors="pt").to(model.device)
            logits = model.classifier(**inputs).logits.float()
            if not logits.isfinite().all():
                raise WorkloadError("the model gives no finite numbers; its weights are damaged")
            return logits.softmax(1).cpu().numpy()

    with text_model.in_threads(torch.get_num_threads() if on_cpu else 1) as each:
        for number, (batch, told) in enumerate(zip(batches, each(of, batches), strict=True), 1):
            probabilities[batch] = told
            if ticker.due():
                logger.info("predicting: %d of %d batches", number, len(batches))
    return probabilities, cut
