"""Where labelled sentences come from: GLUE/SST-2, the image itself, or files at any address."""

import logging
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from classic_example import parameters
from classic_example.data import DATASET_FILE, digest
from classic_example.errors import WorkloadError, names, one_line, scrub
from classic_example.files import (
    cannot_write,
    fill_json,
    new_files,
    partial_name,
    read_json,
    remove,
    require_space,
    sha256_of,
)
from classic_example.progress import heartbeat, within
from classic_example.splits import Options, Splits
from classic_example.tables import Table

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "gold")
# What a directory may call a split.
ALIASES = {"validation": "val", "dev": "val"}
ROLE = re.compile(rf"({'|'.join([*SPLITS, *ALIASES])})(?![a-z0-9])", re.IGNORECASE)
DATA_FILE = re.compile(r"\.(csv|parquet)(\.(gz|bz2|lz4|zst))?$", re.IGNORECASE)

# The files of each split, one Table for each.
Files = Mapping[str, list[Table]]

MODES = ("auto", "glue", "bundled")
DEFAULT_MODE = "bundled"
GLUE = "GLUE/SST-2 (nyu-mll/glue)"
# https://huggingface.co/datasets/nyu-mll/glue, pinned so that the same rows come every time.
GLUE_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
# The labels of its test set are not published: it is the validation set that judges.
GLUE_FILES = {"train": "train", "test": "test", "gold": "validation"}
PROBE_SECONDS = 5.0
DOWNLOAD_SECONDS = 120.0

BUNDLED = "movie-review sentences of vaderSentiment 3.3.2 (Hutto & Gilbert 2014), not SST-2"
BUNDLED_DIRECTORY = "/opt/data/movie-reviews"


def load_sst2_data(directory: Path) -> dict[str, Any]:
    """Do load_and_save with train.csv, val.csv, test.csv and gold.csv in a directory."""
    return load_and_save(*(directory / f"{split}.csv" for split in SPLITS))


def load_and_save(train: Path, val: Path, test: Path, gold: Path | None = None) -> dict[str, Any]:
    """Write the data that the run asks for to these files, as `load`."""
    asked = parameters.of_this_run().data_source
    mode = asked or os.environ.get("DATA_SOURCE", "").strip() or DEFAULT_MODE
    if mode not in MODES and "://" not in mode and not mode.startswith("/"):
        origin = "parameters of the run: data_source" if asked else "DATA_SOURCE"
        raise WorkloadError(
            f"{origin}={mode!r} is not known; allowed: {names(MODES)}, or an address of files"
        )
    targets = {"train": train, "val": val, "test": test, **({"gold": gold} if gold else {})}
    return load(mode, targets, Options.of())


def load_data(uri: str, directory: Path, **options: str | None) -> dict[str, Any]:
    """Write the data of an address to train.csv, val.csv, test.csv and gold.csv in a directory."""
    place = uri if "://" in uri else str(Path(uri).absolute())
    targets = {split: directory / f"{split}.csv" for split in SPLITS}
    return load(place, targets, Options.of(**options))


def load(mode: str, targets: Mapping[str, Path], options: Options) -> dict[str, Any]:
    """Write the files of the splits and, beside the first, what they are; return the step's result.

    All of them appear, or none. A split without rows has no file. Raises WorkloadError for the
    source, its rows, or the place to write to.
    """
    logger.info("data source: %s", shown(mode))
    # Before the download: a full volume is not worth two minutes of it.
    require_space(dict.fromkeys(targets.values(), 0))
    scratch = partial_name(targets["train"].with_name("download"))
    try:
        source, files, options = find(mode, options, scratch)
        logger.info("data: %s", source)
        size = sum(table.files[0].size for tables in files.values() for table in tables)
        require_space({targets["train"]: size})
        note = targets["train"].with_name(DATASET_FILE)
        with new_files(*targets.values(), note) as (*partials, description):
            places = dict(zip(targets, partials, strict=True))
            splits = Splits(options)
            splits.fill(files, places)
            made = {split: place for split, place in places.items() if splits.rows[split]}
            for split in places.keys() - made.keys():
                places[split].unlink()
            result = {
                "source": source,
                "rows": {split: splits.rows[split] for split in made},
                "skipped": dict(splits.skipped),
                # Of what a model is made from and for: the same with and without a file for gold.
                "sha256": digest([path for split, path in made.items() if split != "gold"]),
            }
            hashes = {targets[split].name: sha256_of(path) for split, path in made.items()}
            fill_json(description, {**result, "files": hashes})
    finally:
        if scratch.exists():
            remove(scratch)
    logger.info("%s", result)
    return result


def find(mode: str, options: Options, scratch: Path) -> tuple[str, Files, Options]:
    """Return the name of a source, its files, and how to read them."""
    if mode in ("auto", "glue"):
        import requests

        try:
            smallest = glue_url("gold")
            head = partial(requests.head, smallest, timeout=PROBE_SECONDS, allow_redirects=True)
            within(PROBE_SECONDS, smallest, head).raise_for_status()
            deadline = time.monotonic() + DOWNLOAD_SECONDS
            places = {role: download(glue_url(role), scratch, deadline) for role in GLUE_FILES}
            # Some phrases of its training set are sentences of its validation set.
            skipping = Options(on_bad_row="skip")
            return GLUE, {role: [skipping.table(at)] for role, at in places.items()}, skipping
        except Exception as error:
            if mode == "glue":
                raise WorkloadError(
                    f"GLUE/SST-2 cannot be loaded: {one_line(error)}; allow access to it, set "
                    "HF_ENDPOINT to a mirror, or set DATA_SOURCE=bundled (in a run that was "
                    "started with it, the parameter data_source)"
                ) from error
            logger.info("GLUE/SST-2 is out of reach (%s)", one_line(error, 160))
    if mode in MODES:
        directory = os.environ.get("BUNDLED_DATA", "") or BUNDLED_DIRECTORY
        if not Path(directory).is_dir():
            raise WorkloadError(
                f"there is no bundled data in {directory}; use the classic-example image or set "
                "BUNDLED_DATA to a directory of such data"
            )
        return BUNDLED, by_role(Options().table(directory)), Options()
    if re.search("://[^/@]*:[^/@]*@", mode):
        raise WorkloadError(
            f"{shown(mode)} holds a password; credentials are variables of the environment "
            "(AWS_SECRET_ACCESS_KEY and so on)"
        )
    if mode.startswith(("http://", "https://")):
        return shown(mode), {"train": [options.table(download(mode, scratch))]}, options
    return shown(mode), by_role(options.table(mode)), options


def glue_url(role: str) -> str:
    """Return the address of a split at the Hugging Face hub, or the mirror HF_ENDPOINT."""
    hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    root = f"{hub}/datasets/nyu-mll/glue/resolve/{GLUE_REVISION}"
    return f"{root}/sst2/{GLUE_FILES[role]}-00000-of-00001.parquet"


def download(url: str, scratch: Path, deadline: float = math.inf) -> Path:
    """Fetch a file into a directory; `deadline` is on time.monotonic()'s clock.

    Raises WorkloadError when it cannot be had, TimeoutError when the deadline passed: a socket
    timeout alone would let a trickle go on forever.
    """
    import requests

    target = scratch / PurePosixPath(url.partition("?")[0]).name
    try:
        with (
            heartbeat(f"downloading {shown(url)}"),
            requests.get(url, timeout=10, stream=True) as answer,
        ):
            answer.raise_for_status()
            require_space({target: int(answer.headers.get("Content-Length", 0))})
            scratch.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for chunk in answer.iter_content(1 << 20):
                    file.write(chunk)
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{url} did not arrive within {DOWNLOAD_SECONDS:.0f} s")
    except requests.RequestException as error:
        raise WorkloadError(f"cannot fetch {shown(url)}: {shown(one_line(error))}") from None
    except OSError as error:
        raise cannot_write(target, error) from None
    return target


def shown(place: str) -> str:
    """Return an address without what may be secret in it."""
    return scrub(place).partition("?")[0]


def by_role(whole: Table) -> Files:
    """Return the files of an address by the split that they are for.

    In a directory, or of a pattern, names that begin with that of a split say it; without such
    names, and for a single file, all rows are training rows.
    """
    files: Files = defaultdict(list)
    for file in whole.files:
        name = file.path.removeprefix(whole.folder).lstrip("/")
        if not name or whole.kind or DATA_FILE.search(name):
            one = copy(whole)
            one.files = [file]
            found = ROLE.match(name)
            role = found[1].lower() if found else ""
            files[ALIASES.get(role, role)].append(one)
    if "" in files and len(files) > 1:
        odd = names(PurePosixPath(one.files[0].path).name for one in files[""])
        raise WorkloadError(
            f"{shown(str(whole.place))}: {odd} is for no split, others are; begin all names with "
            f"one of {names(SPLITS)}, or none"
        )
    if not files:
        raise WorkloadError(f"{shown(str(whole.place))} has no file .csv or .parquet")
    return {role or "train": tables for role, tables in files.items()}


def describe(train: Path, val: Path) -> dict[str, str]:
    """Return source and sha256 of the data a model is trained on.

    What load-sst2-data wrote beside the files counts only while the files are still the same.
    """
    known = read_json(train.parent / DATASET_FILE)
    files = known.get("files", {})
    if all(files.get(path.name) == sha256_of(path) for path in (train, val)):
        return {"data_source": known["source"], "data_sha256": known["sha256"]}
    return {"data_source": f"files {train} and {val}", "data_sha256": digest([train, val])}
