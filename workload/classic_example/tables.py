"""Tables of any size at any place: CSV and Parquet files, read in batches and never as a whole.

A place is a path, or an address that pyarrow knows: s3://, gs://, abfss://, file://. A file whose
name ends with .parquet is Parquet, every other one CSV, compressed where its name says so (.gz).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import csv as arrow_csv
from pyarrow import fs, parquet

from classic_example.errors import WorkloadError, names, not_there, one_line

# Read at once, and checked before the first of its rows is used. No row of a CSV file is longer.
# pyarrow reads 32 of them ahead: they are what a long file takes more memory than a short one.
BLOCK_BYTES = 1 << 20
ON_BAD_ROW = ("fail", "skip")
TEXT = pyarrow.string()


def locate(place: str | Path) -> tuple[fs.FileSystem, str]:
    """Return the file system of a place, and the path there; WorkloadError: it is no place."""
    if "://" not in str(place):
        return fs.LocalFileSystem(), str(Path(place).absolute())
    try:
        return fs.FileSystem.from_uri(str(place))
    except (pyarrow.ArrowException, OSError) as error:
        raise WorkloadError(f"cannot use the address {place}: {one_line(error, 200)}") from None


class Table:
    """The rows of a file, or of all files below a directory in the order of their names.

    Rows with another number of fields than the header, or that are not UTF-8, are bad: left out and
    counted (`bad`) with `skip`, else an error that names `way_out`. `sha256` is that of all rows
    that were read, as messages of Arrow's IPC format.
    """

    def __init__(
        self,
        place: str | Path,
        required: Iterable[str],
        skip: bool = False,
        way_out: str = "",
        kind: str | None = None,
    ) -> None:
        """Find the files (WorkloadError: none); `kind`, csv or parquet, overrules their names."""
        self.place, self.required, self.skip, self.way_out = place, required, skip, way_out
        self.kind, self.bad, self.sha256 = kind, 0, hashlib.sha256()
        with self.reading():
            self.filesystem, path = locate(place)
            plain, star, rest = path.partition("*")
            self.folder = plain.rpartition("/")[0] if star else path
            (there,) = self.filesystem.get_file_info([self.folder])
            self.files = [there]
            if there.type == fs.FileType.NotFound:
                raise not_there(place, "load-sst2-data")
            if there.type == fs.FileType.Directory:
                selector = fs.FileSelector(self.folder, recursive=not star or "/" in rest)
                there = self.filesystem.get_file_info(selector)
                self.files = [
                    one
                    for one in sorted(there, key=lambda one: one.path)
                    # As Spark and Hive have it, other names are not data.
                    if one.is_file and one.base_name[0] not in "._"
                    if not star or PurePosixPath(one.path).match(path)
                ]
        if not self.files:
            raise WorkloadError(f"there is no file {place}" if star else f"{place} has no files")

    @property
    def identity(self) -> list[list[Any]]:
        """What changes when the files do: path, bytes, and time of each."""
        return [[one.path, one.size, one.mtime_ns] for one in self.files]

    def batches(self, rows: int, limit: int | None = None) -> Iterator[tuple[Any, float]]:
        """Yield batches of up to so many rows, and which share of the table each is, about.

        They are the same ones each time. `limit` ends after the first rows; what comes behind the
        block that has them is not read. Raises WorkloadError for a file that cannot be read or is
        none, a missing column, a bad row, other columns than in the first file, or no rows.
        """
        schema, left = None, float("inf") if limit is None else limit
        size = sum(one.size for one in self.files) or 1
        for file in self.files:
            for batch, share in self.read(file, left, rows):
                schema = schema or batch.schema
                if batch.schema != schema:
                    raise WorkloadError(f"{file.path} has other columns than {self.files[0].path}")
                for start in range(0, min(batch.num_rows, left), rows):
                    part = batch.slice(start, min(rows, left - start))
                    self.sha256.update(part.serialize())
                    whole = limit or batch.num_rows * size / (share * file.size)
                    yield part, part.num_rows / whole
                left -= batch.num_rows
                if left <= 0:
                    return
        if schema is None or left == limit:
            raise WorkloadError(f"{self.place} has a header but no rows")

    def is_parquet(self, file: fs.FileInfo) -> bool:
        """Return whether a file is Parquet; else it is CSV."""
        return (self.kind or PurePosixPath(file.path).suffix[1:]) == "parquet"

    def read(self, file: fs.FileInfo, left: float, rows: int) -> Iterator[tuple[Any, float]]:
        """Yield the batches of a file, and which share of it each is, about."""
        return self.parquet(file, rows) if self.is_parquet(file) else self.csv(file, left)

    def csv(self, file: fs.FileInfo, left: float) -> Iterator[tuple[Any, float]]:
        """Do `read` of a CSV file, all columns as text; faults behind `left` rows do not count."""
        wrong, read = [], 0  # The header is row 1.

        def note(row: arrow_csv.InvalidRow) -> str:
            self.bad += 1
            if not self.skip and row.number - 1 <= left:
                fields = f"{row.actual_columns} fields, the header has {row.expected_columns}"
                wrong.append(f"row {row.number}: {fields}; a comma inside a text needs quotes")
            return "skip"

        with (
            self.reading(file.path, "CSV"),
            self.filesystem.open_input_stream(file.path) as stream,
            arrow_csv.open_csv(
                stream,
                # Rows are numbered by one thread only.
                arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
                arrow_csv.ConvertOptions(default_column_type=pyarrow.binary()),
            ) as reader,
        ):
            schema = self.checked(file, [field.with_type(TEXT) for field in reader.schema])
            for batch in reader:
                if wrong:
                    break
                # Four bytes say where a text ends; in the file one does.
                share = (batch.nbytes - 3 * batch.num_columns * batch.num_rows) / file.size
                yield self.sound(file, batch, schema, read + 1), min(1.0, share)
                read += batch.num_rows
        if wrong:
            raise WorkloadError(f"{file.path} {wrong[0]}; {self.way_out}")

    def parquet(self, file: fs.FileInfo, rows: int) -> Iterator[tuple[Any, float]]:
        """Do `read` of a Parquet file, in batches of up to so many rows."""
        with (
            self.reading(file.path, "Parquet"),
            self.filesystem.open_input_file(file.path) as source,
            # Buffered: else all of a row group is in memory.
            parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False) as content,
        ):
            # Where a column holds numbers of a dictionary, its values are what counts.
            fields = [
                one.with_type(one.type.value_type) if pyarrow.types.is_dictionary(one.type) else one
                for one in content.schema_arrow
            ]
            schema = self.checked(file, fields)
            read, total = 0, content.metadata.num_rows
            for batch in content.iter_batches(rows, use_threads=False):
                yield self.sound(file, batch, schema, read), batch.num_rows / total
                read += batch.num_rows

    def checked(self, file: fs.FileInfo, fields: Sequence[pyarrow.Field]) -> pyarrow.Schema:
        """Return the schema of these fields. Raises WorkloadError if one lacks or is no text."""
        there = [field.name for field in fields]
        if missing := [name for name in self.required if name not in there]:
            raise WorkloadError(
                f"{file.path} has no column {names(missing)}; its columns are {names(there)}"
            )
        for field in fields:
            if field.name in self.required and field.type not in (TEXT, pyarrow.large_string()):
                raise WorkloadError(f"{file.path}: {field.name} is no text but {field.type}")
        return pyarrow.schema(fields)

    def sound(
        self, file: fs.FileInfo, batch: pyarrow.RecordBatch, schema: pyarrow.Schema, read: int
    ) -> pyarrow.RecordBatch:
        """Return the batch without the rows that are not UTF-8; `read` rows came before it."""
        if (texts := as_text(batch, schema)) is not None:
            return texts
        rows = (batch.slice(at, 1) for at in range(batch.num_rows))
        good = [as_text(row, schema) is not None for row in rows]
        if not self.skip:
            row = read + good.index(False) + 1
            raise WorkloadError(f"{file.path} row {row} is not UTF-8 text; {self.way_out}")
        self.bad += good.count(False)
        return batch.filter(pyarrow.array(good)).cast(schema)

    @contextmanager
    def reading(self, path: str = "", kind: str = "") -> Iterator[None]:
        """Tell in one line what cannot be read."""
        try:
            yield
        except PermissionError:
            raise WorkloadError(f"{path or self.place} may not be read by this user") from None
        except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
            why = one_line(error, 200)
            if "straddling" in why:
                why = f"a row has more than {BLOCK_BYTES:,} bytes, or a quote is not closed"
            raise WorkloadError(f"{path} is not a {kind} file: {why}") from None
        except OSError as error:
            why = one_line(error, 300)
            raise WorkloadError(f"cannot read {path or self.place}: {why}") from None


def as_text(batch: pyarrow.RecordBatch, schema: pyarrow.Schema) -> pyarrow.RecordBatch | None:
    """Return a batch with the columns of a schema, None where a text in it is not UTF-8."""
    try:
        texts = batch.cast(schema)
        texts.validate(full=True)
    except pyarrow.ArrowInvalid:
        return None
    return texts
