"""Labelled sentences in CSV files: columns `sentence,label,idx`, as in GLUE/SST-2."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from classic_example.errors import WorkloadError, names
from classic_example.files import sha256_of

COLUMNS = ("sentence", "label", "idx")
# What 0 and 1 mean.
BINARY = ("negative", "positive")
# Written beside the data: what it is.
DATASET_FILE = "dataset.json"
# The header of a CSV file is row 1.
FIRST_ROW = 2
# Read at once.
BATCH_ROWS = 1024
# GLUE's mark for a row whose label is not published.
UNLABELLED = -1


class Row(NamedTuple):
    """One sentence and the number of its class."""

    sentence: str
    label: int


class Labels(NamedTuple):
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


def read_labelled(path: Path, labels: Labels | None = None) -> tuple[list[Row], Labels]:
    """Return the rows of a file in which every row has a label, and the labels.

    Without `labels` they are those of the file. Raises WorkloadError as Table, or for an empty
    sentence, a label that is none or not among `labels`, or one label only in the whole file.
    """
    from classic_example.tables import Table

    if not path.exists() and (path.parent / DATASET_FILE).exists():
        raise WorkloadError(
            f"there is no {path}: the data in {path.parent} has no labels; DATA_LABEL_COLUMN names "
            "their column"
        )
    table = Table(path, COLUMNS[:2])
    sentences, texts = [], []
    for batch, _ in table.batches(BATCH_ROWS):
        sentences += batch["sentence"].to_pylist()
        texts += batch["label"].to_pylist()
    known = labels.numbers if labels else None
    for number, sentence in enumerate(sentences):
        try:
            texts[number] = label_of(texts[number])
            if not sentence.strip():
                raise ValueError("the sentence is empty")
            if texts[number] is None:
                raise ValueError("label -1 marks a row without a label")
            if known and texts[number] not in known:
                raise ValueError(f"label {texts[number]} is unknown; allowed: {names(known)}")
        except ValueError as why:
            raise WorkloadError(f"{path} row {number + FIRST_ROW}: {why}") from None
    labels = labels or labels_of(path, texts)
    if len(set(texts)) == 1:
        raise WorkloadError(
            f"{path}: all {len(texts)} rows have label {texts[0]}; rows of two labels are needed"
        )
    return list(map(Row, sentences, map(labels.numbers.get, texts))), labels


@lru_cache
def label_of(text: str | None) -> str | None:
    """Return a label as it is compared: a whole number in its shortest form, other text as it is.

    None is for the mark of a row whose label is not published. Raises ValueError, which says so,
    when there is no label or it is another number.
    """
    text = (text or "").strip()
    if not text:
        raise ValueError("the label is empty")
    try:
        number = float(text)
    except ValueError:
        return text
    if not number.is_integer():
        raise ValueError("the label is not a whole number")
    return None if number == UNLABELLED else str(int(number))


def labels_of(path: Path, texts: Sequence[str]) -> Labels:
    """Return the labels of a training file: in order of number, else of the alphabet.

    0 and 1 alone are negative and positive. A label of one row alone is a typing error.
    """
    counts = Counter(texts)
    if counts.keys() <= {"0", "1"}:
        return Labels.named(BINARY)
    if alone := [text for text, count in counts.items() if count == 1]:
        raise WorkloadError(
            f"{path} row {texts.index(alone[0]) + FIRST_ROW}: no other row has label {alone[0]!r}; "
            "where it is meant, name all labels by `labels` in the configuration"
        )
    numeric = all(text.lstrip("-").isdecimal() for text in counts)
    return Labels.named(sorted(counts, key=int if numeric else None))


def normalised(text: str) -> str:
    """Return what a text has in common with those that differ in capitals and white space only."""
    return " ".join(text.casefold().split())


def digest(paths: list[Path]) -> str:
    """Return one hex SHA-256 that stands for the content of several files, in their order."""
    return hashlib.sha256("".join(sha256_of(path) for path in paths).encode()).hexdigest()
