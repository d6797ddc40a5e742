"""Labelled sentences in CSV files: columns `sentence,label,idx`, as in GLUE/SST-2."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from classic_example.errors import WorkloadError, not_there
from classic_example.files import sha256_of, write_csv

COLUMNS = ("sentence", "label", "idx")
# What 0 and 1 mean.
BINARY = ("negative", "positive")
# Bytes; csv's own limit is 128 KiB, which a long text exceeds.
LONGEST_FIELD = 1 << 26
# GLUE's mark for a row whose label is not published.
UNLABELLED = -1


@dataclass(frozen=True)
class Row:
    """One sentence. `label` is the number of a class or -1 (not published)."""

    sentence: str
    label: int
    idx: int


@dataclass(frozen=True)
class Labels:
    """The classes: their names by number, and the number of each text that may stand in a file."""

    names: tuple[str, ...]
    numbers: Mapping[str, int]

    @classmethod
    def named(cls, names: Sequence[str]) -> "Labels":
        """Return labels of these names; a file may have their numbers, where no name is one."""
        numbers = {name: number for number, name in enumerate(names)}
        if not any(name.lstrip("-").isdecimal() for name in names):
            numbers |= {str(number): number for number in range(len(names))}
        return cls(tuple(names), numbers)


def positive_of(names: Sequence[str]) -> int | None:
    """Return the number of the label that `correct_sentence_conf` and F1 are about.

    It is the one that is called so, else the second of two; None where there is neither.
    """
    called = [at for at, name in enumerate(names) if name.casefold() in ("positive", "pos")]
    return called[0] if called else 1 if len(names) == 2 else None


def fields_of(rows: list[Row]) -> Iterator[tuple[str, int, int]]:
    """Yield what a row has in a file, in the order of COLUMNS."""
    return ((row.sentence, row.label, row.idx) for row in rows)


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as CSV, whole or not at all."""
    write_csv(path, COLUMNS, fields_of(rows))


def read_rows(
    path: Path, required: tuple[str, ...], limit: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of a CSV file's header, then of its first `limit` rows.

    Raises:
        WorkloadError: no such file, not readable, not UTF-8, no header, a `required` column is
            missing, a row of another width, or no rows.
    """
    csv.field_size_limit(LONGEST_FIELD)
    row = None
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
            yield reader.line_num, header
            for row in islice(numbered(path, reader, len(header)), limit):
                yield row
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
    if row is None:
        raise WorkloadError(f"{path} has a header but no rows")


def read_table(
    path: Path, required: tuple[str, ...], limit: int | None = None
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a CSV file, and what read_rows yields after it."""
    rows = read_rows(path, required, limit)
    _, header = next(rows)
    return header, list(rows)


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


def read_labelled(
    path: Path, limit: int | None = None, labels: Labels | None = None
) -> tuple[list[Row], Labels]:
    """Return the first `limit` rows of a file in which every row has a label, and the labels.

    Without `labels` they are those of the file.

    Raises:
        WorkloadError: as read_table, or an empty sentence, a label that is none or not among
            `labels`, or one label only in the whole file.
    """
    header, table = read_table(path, ("sentence", "label"), limit)
    sentence_at, label_at = header.index("sentence"), header.index("label")
    texts = [label_text(path, line, fields[label_at]) for line, fields in table]
    labels = labels or labels_of(path, texts, [line for line, _ in table])
    rows = []
    for position, ((line, fields), text) in enumerate(zip(table, texts, strict=True)):
        sentence = fields[sentence_at]
        if not sentence.strip():
            raise WorkloadError(f"{path} line {line}: the sentence is empty")
        if text not in labels.numbers:
            allowed = names(labels.numbers)
            raise WorkloadError(f"{path} line {line}: label {text} is unknown; allowed: {allowed}")
        rows.append(Row(sentence, labels.numbers[text], position))
    if len({row.label for row in rows}) == 1:
        raise WorkloadError(
            f"{path}: all {len(rows)} rows have label {texts[0]}; rows of two labels are needed"
        )
    return rows, labels


def label_text(path: Path, line: int, text: str) -> str:
    """Return a label as it is compared: a whole number in its shortest form, other text as it is.

    Raises:
        WorkloadError: there is none, or it is another number.
    """
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        if not text:
            raise WorkloadError(f"{path} line {line}: the label is empty") from None
        return text
    if number == UNLABELLED or not number.is_integer():
        why = "marks a row without a label" if number == UNLABELLED else "is not a whole number"
        raise WorkloadError(f"{path} line {line}: label {text} {why}")
    return str(int(number))


def labels_of(path: Path, texts: Sequence[str], lines: Sequence[int]) -> Labels:
    """Return the labels of a training file: in order of number, else of the alphabet.

    0 and 1 alone are negative and positive.

    Raises:
        WorkloadError: only one row has a label, as happens by a typing error.
    """
    counts = Counter(texts)
    if counts.keys() <= {"0", "1"}:
        return Labels.named(BINARY)
    for line, text in zip(lines, texts, strict=True):
        if counts[text] == 1:
            raise WorkloadError(
                f"{path} line {line}: no other row has label {text!r}; where it is meant, name all "
                "labels by `labels` in the configuration"
            )
    numeric = all(text.lstrip("-").isdecimal() for text in counts)
    return Labels.named(sorted(counts, key=int if numeric else None))


def names(items: object) -> str:
    """Return items as `a, b, c`, cut after 20."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:20]) + (", ..." if len(texts) > 20 else "")


def digest(paths: list[Path]) -> str:
    """Return one hex SHA-256 that stands for the content of several files, in their order."""
    return hashlib.sha256("".join(sha256_of(path) for path in paths).encode()).hexdigest()
