"""What prediction leaves: one file, a JSON description beside it, and both at an address."""

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import fs, ipc, parquet

from classic_example import statistics
from classic_example.errors import PostponedError, WorkloadError, not_there, one_line
from classic_example.files import fill_json, new_files, partial_name, read_json, remove, sha256_of
from classic_example.model_files import STATISTICS_FILE
from classic_example.tables import TEXT, locate

logger = logging.getLogger(__name__)

# Environment variable: an address that gets a copy.
OUTPUT = "PREDICT_OUTPUT"
# Metadata of a column of numbers: how many digits they have in a CSV file.
DIGITS = b"digits"


def part_of(target: Path, number: int, shards: int) -> Path:
    """Return where a shard leaves its rows; their counts are in a JSON file beside them."""
    return target.with_name(f"{target.stem}.{number}-of-{shards}.arrow")


def join_predictions(model_directory: Path, target: Path, shards: int) -> dict[str, Any]:
    """Write what run_inference_on_dataframe writes in one piece, of what its shards have left."""
    parts = [part_of(target, number, shards) for number in range(shards)]
    found = [read_json(part.with_suffix(".json")) for part in parts]
    for part, one in zip(parts, found, strict=True):
        if not one:
            raise not_there(part, f"run-inference-on-dataframe with shards of {shards}")
        if any(one["about"][name] != found[0]["about"][name] for name in ("input", "model")):
            raise WorkloadError(f"{part} is not of the same input and model as {parts[0]}")
    counts = sum((Counter(one["counts"]) for one in found), Counter())
    about = found[0]["about"] | {"seconds": max(one["about"]["seconds"] for one in found)}
    return deliver(parts, model_directory, target, counts, about)


def deliver(
    parts: Sequence[Path],
    model_directory: Path,
    target: Path,
    counts: Mapping[str, int],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write predictions and description, publish them, and return the step's result.

    `parts` are Arrow streams that have the chunks in turn. PREDICT_OUTPUT gets both too, in the
    format of its own name, the description last.
    """
    summary = {name: counts.get(name, 0) for name in ("rows", "empty", "truncated")}
    summary["bad_rows"] = about["bad_rows"]
    if about["positive_label"] is not None:
        summary["positive"] = counts.get("positive", 0)
    if known := read_json(model_directory / STATISTICS_FILE):
        summary["drift"] = statistics.drift(known, counts)
    labels = {label: counts.get(f"label:{label}", 0) for label in about["labels"]}
    about = about | summary | {"labels": labels, "statistics": dict(+Counter(counts))}
    with new_files(target, target.with_suffix(".json")) as (predictions, description):
        write_table(predictions, *in_turn(parts), target.suffix)
        about["predictions"] = {"path": str(target), "sha256": sha256_of(predictions)}
        # Of the image that predicts: its container cannot know it, clean_up fills it in.
        fill_json(description, {**about, "image_digest": ""})
    if output := os.environ.get(OUTPUT, "").strip():
        publish(output, *in_turn(parts), about, target.parent)
    logger.info("%s; %s", summary, output or target)
    version = about["model"].get("version", "")
    return {**summary, "predictions": output or str(target), "model_version": version}


def in_turn(parts: Sequence[Path]) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    """Return the schema of Arrow streams, and the batches of one after the other, in a circle."""
    streams = [ipc.open_stream(pyarrow.OSFile(str(part))) for part in parts]
    return streams[0].schema, iter(map(next, cycle(streams)))


def write_table(
    path: Path, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch], suffix: str
) -> None:
    """Write a Parquet file where the suffix is .parquet, else a CSV file as pandas writes it."""
    if suffix == ".parquet":
        with parquet.ParquetWriter(path, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(schema.names)
        for batch in batches:
            writer.writerows(zip(*map(csv_fields, schema, batch.columns), strict=True))


def csv_fields(field: pyarrow.Field, column: pyarrow.Array) -> list[str | None]:
    """Return what a CSV file has of a column."""
    if digits := (field.metadata or {}).get(DIGITS):
        return [f"{value:.{digits.decode()}f}" for value in column.to_pylist()]
    return column.cast(TEXT).to_pylist()


def publish(
    place: str,
    schema: pyarrow.Schema,
    batches: Iterable[pyarrow.RecordBatch],
    about: dict[str, Any],
    scratch: Path,
) -> None:
    """Write a table to a place, and what it is to a JSON file beside it, which comes last.

    The file is made in the directory `scratch`. Raises PostponedError where it cannot be written.
    """
    filesystem, path = locate(place)
    description = str(PurePosixPath(path).with_suffix(".json"))
    made = partial_name(scratch / PurePosixPath(path).name)
    try:
        write_table(made, schema, batches, PurePosixPath(path).suffix)
        if filesystem.type_name == "local":
            filesystem.create_dir(str(PurePosixPath(path).parent))
        if filesystem.get_file_info(description).is_file:
            filesystem.delete_file(description)
        fs.copy_files(str(made), path, fs.LocalFileSystem(), filesystem)
        content = {**about, "predictions": {"path": place, "sha256": sha256_of(made)}}
        with filesystem.open_output_stream(description) as file:
            file.write(json.dumps(content, indent=2, sort_keys=True).encode())
    except (OSError, pyarrow.ArrowException) as error:
        raise PostponedError(f"cannot write {place}: {one_line(error, 300)}") from None
    finally:
        remove(made)
