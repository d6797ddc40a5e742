"""Labelled sentences in CSV files: columns `sentence,label,idx`, as in GLUE/SST-2."""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from classic_example.errors import WorkloadError, not_there
from classic_example.files import sha256_of, write_csv

COLUMNS = ("sentence", "label", "idx")
LABELS = {0: "negative", 1: "positive"}
# GLUE's mark for a row whose label is not published.
UNLABELLED = -1


@dataclass(frozen=True)
class Row:
    """One sentence. `label` is 0 (negative), 1 (positive) or -1 (not published)."""

    sentence: str
    label: int
    idx: int


def fields_of(rows: list[Row]) -> Iterator[tuple[str, int, int]]:
    """Yield what a row has in a file, in the order of COLUMNS."""
    return ((row.sentence, row.label, row.idx) for row in rows)


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as CSV, whole or not at all."""
    write_csv(path, COLUMNS, fields_of(rows))


def read_table(
    path: Path, required: tuple[str, ...], limit: int | None = None
) -> tuple[list[str], list[tuple[int, list]]]:
    """Return the header of a CSV file and its first `limit` rows, each with its line number.

    Raises:
        WorkloadError: no such file, not readable, not UTF-8, no header, a `required` column is
            missing, a row of another width, or no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if not header:
                raise WorkloadError(f"{path} is empty: expected a header with {names(required)}")
            missing = [name for name in required if name not in header]
            if missing:
                raise WorkloadError(
                    f"{path} has no column {names(missing)}; its columns are {names(header)}"
                )
            rows = list(islice(numbered(path, reader, len(header)), limit))
    except FileNotFoundError:
        raise not_there(path, "load-sst2-data") from None
    except IsADirectoryError:
        raise WorkloadError(f"{path} is a directory; a CSV file is needed") from None
    except PermissionError:
        raise WorkloadError(f"{path} may not be read by this user") from None
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path} is not UTF-8 text: {error.reason}") from None
    except csv.Error as error:
        raise WorkloadError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise WorkloadError(f"{path} has a header but no rows")
    return header, rows


def numbered(path: Path, reader: Iterator, width: int) -> Iterator[tuple[int, list]]:
    """Yield (line number, fields) of each row that is not blank."""
    for fields in reader:
        if not fields:
            continue
        if len(fields) != width:
            raise WorkloadError(
                f"{path} line {reader.line_num}: {len(fields)} fields, the header has {width}; "
                "a comma inside a sentence needs quotes"
            )
        yield reader.line_num, fields


def read_labelled(path: Path, limit: int | None = None) -> list[Row]:
    """Return the first `limit` rows of a file in which every row has a label.

    Raises:
        WorkloadError: as read_table, or an empty sentence, or a label that is not 0 or 1, or only
            one label in the whole file.
    """
    header, table = read_table(path, ("sentence", "label"), limit)
    sentence_at, label_at = header.index("sentence"), header.index("label")
    rows = []
    for position, (line, fields) in enumerate(table):
        sentence = fields[sentence_at]
        if not sentence.strip():
            raise WorkloadError(f"{path} line {line}: the sentence is empty")
        rows.append(Row(sentence, parse_label(path, line, fields[label_at]), position))
    present = sorted({row.label for row in rows})
    if len(present) < len(LABELS):
        raise WorkloadError(
            f"{path}: all {len(rows)} rows have label {present[0]}; rows of both labels are needed"
        )
    return rows


def parse_label(path: Path, line: int, text: str) -> int:
    """Return a label as 0 or 1.

    Raises:
        WorkloadError: it is something else.
    """
    allowed = f"allowed: {names(str(label) for label in LABELS)}"
    try:
        number = float(text)
    except ValueError:
        raise WorkloadError(f"{path} line {line}: label {text!r} is not a number; {allowed}") from (
            None
        )
    if number not in LABELS:
        hint = " (-1 marks a row without a label)" if number == UNLABELLED else ""
        raise WorkloadError(f"{path} line {line}: label {text} is out of range{hint}; {allowed}")
    return int(number)


def names(items: object) -> str:
    """Return items as `a, b, c`, cut after 20."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:20]) + (", ..." if len(texts) > 20 else "")


def digest(paths: list[Path]) -> str:
    """Return one hex SHA-256 that stands for the content of several files, in their order."""
    return hashlib.sha256("".join(sha256_of(path) for path in paths).encode()).hexdigest()
