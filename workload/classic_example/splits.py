"""The data set that is made of a source: what is for training, for choices, and for judging.

Rows are read in batches and written one by one: memory does not grow with them, but for eight bytes
of each row of a held-out file.
"""

import csv
import logging
import math
import os
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import repeat
from pathlib import Path

import numpy

from classic_example.data import BATCH_ROWS, COLUMNS, UNLABELLED, label_of, normalised
from classic_example.errors import WorkloadError, names
from classic_example.parameters import require_one_of
from classic_example.progress import Ticker
from classic_example.tables import ON_BAD_ROW, Table

logger = logging.getLogger(__name__)

# Tenths of the training rows that are held out where no file is, by a hash of the text: texts that
# are the same stay together.
HELD_OUT = {8: "val", 9: "gold"}
# More than anybody has: the column holds something else.
MOST_LABELS = 1000
WAY_OUT = "mend it, or leave such rows out: --on-bad-row skip (DATA_ON_BAD_ROW)"


@dataclass(frozen=True)
class Options:
    """How the files of an address are read; `format` and `labels` may be empty."""

    text_column: str = COLUMNS[0]
    label_column: str = COLUMNS[1]
    format: str = ""
    labels: str = ""
    on_bad_row: str = ON_BAD_ROW[0]

    @classmethod
    def of(cls, **given: str | None) -> "Options":
        """Return what is given, else what DATA_TEXT_COLUMN and so on say, if it is allowed."""
        said = {one.name: os.environ.get(f"DATA_{one.name.upper()}", "") for one in fields(cls)}
        said |= {name: value for name, value in given.items() if value}
        options = cls(**{name: value.strip() for name, value in said.items() if value.strip()})
        require_one_of("the data", "format", options.format, ("", "csv", "parquet"))
        require_one_of("the data", "on_bad_row", options.on_bad_row, ON_BAD_ROW)
        return options

    def table(self, place: str | Path) -> Table:
        """Return the table of a place."""
        skip = self.on_bad_row == "skip"
        return Table(place, [self.text_column], skip, WAY_OUT, self.format or None)


class Splits:
    """The files that are written, row by row, and what is counted meanwhile.

    Files of a split stay that split; of the training rows some are held out where others lack.
    test.csv has the rows without a label and those of its own file, else those of gold.csv without
    theirs. What is in gold.csv takes part in no choice (val.csv), what is in either in no training.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rows: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        # Training rows of each label, and where each label came first.
        self.labels: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def fill(self, files: Mapping[str, Iterable[Table]], places: Mapping[str, Path]) -> None:
        """Write the file of each split; a bad row, or rows that make no data set, raise."""
        held, ticker, overlap = array("Q"), Ticker(), ""
        with ExitStack() as stack:
            self.writers = {}
            for split, place in places.items():
                file = stack.enter_context(place.open("w", encoding="utf-8", newline=""))
                self.writers[split] = csv.writer(file, lineterminator="\n")
                self.writers[split].writerow(COLUMNS)
            for role in ("gold", "test", "val", "train"):
                lacking = {n: split for n, split in HELD_OUT.items() if not self.rows[split]}
                keys = array("Q")
                rows = self.usable(files.get(role, ()), role == "test")
                for idx, (where, text, label) in enumerate(rows):
                    key = int.from_bytes(blake2b(normalised(text).encode(), digest_size=8).digest())
                    at = bisect_left(held, key)
                    if role in ("val", "train") and at < len(held) and held[at] == key:
                        self.skipped["overlap"] += 1
                        overlap = overlap or where
                        continue
                    split = lacking.get(key % 10, role) if role == "train" else role
                    if role == "test" and label and "gold" not in files:
                        split = "gold"
                    if not label or role == "test" or (split == "gold" and "test" not in files):
                        self.put("test", text, UNLABELLED, idx)
                    if label and split != "test":
                        self.put(split, text, label, idx)
                        self.first.setdefault(label, where)
                        if len(self.first) > MOST_LABELS:
                            column = self.options.label_column
                            raise WorkloadError(f"{column} has over {MOST_LABELS} different labels")
                        if role != "train":
                            keys.append(key)
                    if ticker.due():
                        logger.info("%d rows", sum(self.rows.values()))
                held = array("Q", numpy.sort(numpy.asarray(held + keys)).tobytes())
        if overlap and self.options.on_bad_row == "fail":
            raise WorkloadError(
                f"{overlap}: the text is held out too, one of {self.skipped['overlap']}; {WAY_OUT}"
            )
        self.require_sense()

    def usable(
        self, tables: Iterable[Table], unlabelled: bool
    ) -> Iterator[tuple[str, str, str | None]]:
        """Yield place, text and label of each row; None where the label is not published.

        Where rows may be `unlabelled`, an empty label is none either.
        """
        options = self.options
        allowed = [label_of(one) for one in options.labels.split(",")] if options.labels else []
        for table in tables:
            (file,) = table.files
            # The header of a CSV file is row 1.
            number = 0 if table.is_parquet(file) else 1
            for batch, _ in table.read(file, math.inf, BATCH_ROWS):
                labels: Iterable[str | None] = repeat(str(UNLABELLED), batch.num_rows)
                if options.label_column in batch.schema.names:
                    labels = batch[options.label_column].cast("string").to_pylist()
                elif options.label_column != COLUMNS[1]:
                    there = names(batch.schema.names)
                    raise WorkloadError(
                        f"{file.path} has no column {options.label_column}; its columns are {there}"
                    )
                texts = batch[options.text_column].to_pylist()
                for text, written in zip(texts, labels, strict=True):
                    number, where = number + 1, f"{file.path} row {number + 1}"
                    try:
                        blank = unlabelled and not (written or "").strip()
                        label = None if blank else label_of(written)
                        if not (text := (text or "").strip()):
                            raise ValueError("the text is empty")
                        if allowed and label not in [*allowed, None]:
                            raise ValueError("the label is unknown")
                    except ValueError as why:
                        if options.on_bad_row == "fail":
                            raise WorkloadError(f"{where}: {why}; {WAY_OUT}") from None
                        self.skipped[str(why)] += 1
                    else:
                        yield where, text, label
            if table.bad:
                self.skipped["the row is not readable"] += table.bad

    def put(self, split: str, text: str, label: str | int, idx: int) -> None:
        """Write a row."""
        self.rows[split] += 1
        if split in self.writers:
            self.writers[split].writerow((text, label, idx))
        if split == "train":
            self.labels[label] += 1

    def require_sense(self) -> None:
        """Raise WorkloadError unless there is a row, and labels that can be learned and judged."""
        if not self.rows:
            raise WorkloadError(f"no row can be used; left out: {dict(self.skipped)}")
        if not self.first:
            logger.warning("WARNING: no row has a label: only test.csv is written")
            return
        if lacking := [split for split in ("train", "val", "gold") if not self.rows[split]]:
            raise WorkloadError(f"rows: {dict(self.rows)}; there is none for {names(lacking)}")
        if self.options.labels or self.first.keys() <= {"0", "1"}:
            return
        for label, where in self.first.items():
            if self.labels[label] < 2:
                rare = f"label {label!r} is that of {self.labels[label]} training rows"
                raise WorkloadError(f"{where}: {rare}; mend it, or name all labels: --labels a,b")
