"""Where labelled sentences come from: GLUE/SST-2 when it can be reached, else the image's own."""

import io
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from classic_example import parameters
from classic_example.data import COLUMNS, Row, digest, fields_of, names, read_table
from classic_example.errors import WorkloadError, one_line
from classic_example.files import (
    fill_csv,
    fill_json,
    new_files,
    read_json,
    sha256_of,
    size_of_csv,
)
from classic_example.progress import heartbeat, within
from classic_example.space import require_space

logger = logging.getLogger(__name__)

MODES = ("auto", "glue", "bundled")
SPLITS = ("train", "val", "test")
# Written beside the data, so that a trained model can say what it was trained on.
DATASET_FILE = "dataset.json"

GLUE = "GLUE/SST-2 (nyu-mll/glue)"
# https://huggingface.co/datasets/nyu-mll/glue, pinned so that the same rows come every time.
GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
GLUE_FILES = {
    "train": "sst2/train-00000-of-00001.parquet",
    "test": "sst2/test-00000-of-00001.parquet",
}
PROBE_SECONDS = 5.0
DOWNLOAD_SECONDS = 120.0

BUNDLED = "movie-review sentences of vaderSentiment 3.3.2 (Hutto & Gilbert 2014), not SST-2"
BUNDLED_DIRECTORY = "/opt/data/movie-reviews"


@dataclass(frozen=True)
class Sentences:
    """The three splits and the name of the place they came from."""

    source: str
    train: list[Row]
    val: list[Row]
    test: list[Row]


def mode_from_environment() -> str:
    """Return the parameter data_source of the run, else DATA_SOURCE, else `auto`.

    Raises:
        WorkloadError: it is set to something unknown.
    """
    origin, mode = "parameters of the run: data_source", parameters.of_this_run().data_source
    if mode is None:
        origin, mode = "DATA_SOURCE", os.environ.get("DATA_SOURCE", "").strip().lower() or "auto"
    if mode not in MODES:
        raise WorkloadError(f"{origin}={mode!r} is not known; allowed: {names(MODES)}")
    return mode


def load(mode: str) -> Sentences:
    """Return the sentences for a mode: `glue`, `bundled`, or `auto` for whichever is there.

    Raises:
        WorkloadError: the wanted source cannot be had.
    """
    if mode == "bundled":
        return load_bundled()
    try:
        within(PROBE_SECONDS, glue_endpoint(), probe_glue)
        return load_glue()
    except Exception as error:
        if mode == "glue":
            raise WorkloadError(
                f"GLUE/SST-2 cannot be loaded: {one_line(error)}; "
                "allow access to it, set HF_ENDPOINT to a mirror, or set DATA_SOURCE=bundled (in a "
                "run that was started with it, the parameter data_source)"
            ) from error
        logger.info("GLUE/SST-2 is out of reach (%s)", one_line(error, 160))
        return load_bundled()


def glue_endpoint() -> str:
    """Return the address of the Hugging Face hub or of a mirror named by HF_ENDPOINT."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def glue_url(split: str) -> str:
    """Return the address of one split's Parquet file."""
    root = f"{glue_endpoint()}/datasets/nyu-mll/glue/resolve/{GLUE_REVISION}"
    return f"{root}/{GLUE_FILES[split]}"


def probe_glue() -> None:
    """Ask for the head of the smallest file; any answer but success raises."""
    import requests

    answer = requests.head(glue_url("test"), timeout=PROBE_SECONDS, allow_redirects=True)
    answer.raise_for_status()


def download(url: str, deadline: float) -> bytes:
    """Return the body at `url`; `deadline` is on time.monotonic()'s clock.

    Raises:
        TimeoutError: the deadline passed. A socket timeout alone would let a trickle go on forever.
    """
    import requests

    chunks = []
    with requests.get(url, timeout=10, stream=True) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_content(1 << 16):
            chunks.append(chunk)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not arrive within {DOWNLOAD_SECONDS:.0f} s")
    return b"".join(chunks)


def load_glue() -> Sentences:
    """Download SST-2 and split it as the original course material does.

    The 67,349 training rows are divided 75/25 into train and val with random state 42; test is
    GLUE's own, 1,821 rows with label -1.
    """
    from sklearn.model_selection import train_test_split

    deadline = time.monotonic() + DOWNLOAD_SECONDS
    with heartbeat(f"downloading {GLUE}"):
        labelled = rows_from_parquet(download(glue_url("train"), deadline))
        test = rows_from_parquet(download(glue_url("test"), deadline))
    train, val = train_test_split(labelled, random_state=42)
    return Sentences(GLUE, train, val, test)


def rows_from_parquet(content: bytes) -> list[Row]:
    """Return the rows of a Parquet file with the columns sentence, label and idx."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(content), columns=list(COLUMNS)).to_pydict()
    # GLUE's sentences end with a space.
    return [
        Row(sentence.strip(), label, idx)
        for sentence, label, idx in zip(*(table[name] for name in COLUMNS), strict=True)
    ]


def load_bundled() -> Sentences:
    """Return the sentences that the image carries."""
    directory = Path(os.environ.get("BUNDLED_DATA", "") or BUNDLED_DIRECTORY)
    if not directory.is_dir():
        raise WorkloadError(
            f"there is no bundled data in {directory}; use the classic-example image or set "
            "BUNDLED_DATA to a directory with train.csv, val.csv and test.csv"
        )
    splits = {split: read_split(directory / f"{split}.csv") for split in SPLITS}
    return Sentences(BUNDLED, **splits)


def read_split(path: Path) -> list[Row]:
    """Return the rows of a CSV file that this project wrote."""
    header, table = read_table(path, COLUMNS)
    at = [header.index(name) for name in COLUMNS]
    return [Row(f[at[0]], int(f[at[1]]), int(f[at[2]])) for _, f in table]


def save(sentences: Sentences, train: Path, val: Path, test: Path) -> dict:
    """Write the three files and, beside the first, what they are; return the step's result.

    All of them appear, or none.
    """
    paths = {"train": train, "val": val, "test": test}
    rows = {split: getattr(sentences, split) for split in SPLITS}
    require_space({paths[split]: size_of_csv(COLUMNS, fields_of(rows[split])) for split in SPLITS})
    with new_files(*paths.values(), train.parent / DATASET_FILE) as (*tables, description):
        for split, table in zip(SPLITS, tables, strict=True):
            fill_csv(table, COLUMNS, fields_of(rows[split]))
        result = {
            "source": sentences.source,
            "rows": {split: len(rows[split]) for split in SPLITS},
            "sha256": digest(tables),
        }
        files = {
            path.name: sha256_of(table) for path, table in zip(paths.values(), tables, strict=True)
        }
        fill_json(description, {**result, "files": files})
    for split, path in paths.items():
        logger.info("%s: %d rows", path, len(rows[split]))
    return result


def describe(train: Path, val: Path) -> dict[str, str]:
    """Return source and sha256 of the data a model is trained on.

    What load-sst2-data wrote beside the files counts only while the files are still the same.
    """
    known = read_json(train.parent / DATASET_FILE)
    files = known.get("files", {})
    if all(files.get(path.name) == sha256_of(path) for path in (train, val)):
        return {"data_source": known["source"], "data_sha256": known["sha256"]}
    return {"data_source": f"files {train} and {val}", "data_sha256": digest([train, val])}


def load_and_save(train: Path, val: Path, test: Path) -> dict:
    """Load by mode_from_environment, write the three files, and return the step's result."""
    mode = mode_from_environment()
    logger.info("data source: %s", mode)
    # Before the download: a full volume is not worth two minutes of it.
    require_space(dict.fromkeys((train, val, test), 0))
    sentences = load(mode)
    logger.info("data: %s", sentences.source)
    return save(sentences, train, val, test)


def load_sst2_data(directory: Path) -> dict:
    """Do the same with train.csv, val.csv and test.csv in a directory."""
    return load_and_save(*(directory / f"{split}.csv" for split in SPLITS))
