"""Command line of the workload: `python classic_example/cli.py COMMAND ARGUMENTS`.

Each command ends with status 0 and a RESULT line, or with another status and one line on stderr
that starts with ERROR. Heavy libraries are imported by the commands that need them.
"""

import argparse
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # Run as a script, Python puts this file's directory first on the path, where any library that
    # imports a `data` or `config` of its own would find ours. The package's parent belongs there.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from classic_example.errors import WorkloadError, one_line, scrub
from classic_example.notes import note

logger = logging.getLogger("classic_example")

# Where a result is left; Kubernetes cuts it behind so many bytes:
# https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
TERMINATION_LOG, MAX_BYTES = Path("/dev/termination-log"), 4096

PROMOTION = (
    ("--alias", str, "alias to move (default: that of GATE, else champion)", {"default": ""}),
    ("--by", str, "who does it", {"default": ""}),
    ("--reason", str, "why", {"default": ""}),
)
# Command: where its function is, what it does, and its arguments: name, type, help, and what else
# argparse takes. The function gets them in this order, options by name; before them the registry
# that REGISTRY names, where it has a parameter `registry`.
COMMANDS: dict[str, tuple] = {
    "load-sst2-data": (
        "sources:load_sst2_data",
        "Write train.csv, val.csv and test.csv to a directory.",
        ("directory", Path, "directory for train.csv, val.csv and test.csv"),
    ),
    "load-sst2-data-file-input": (
        "sources:load_and_save",
        "Write the three splits to three given files.",
        ("train", Path, "CSV file to write the training rows to"),
        ("val", Path, "CSV file to write the held-out rows to"),
        ("test", Path, "CSV file to write the rows without labels to"),
    ),
    "load-data": (
        "sources:load_data",
        "Make such files of the CSV or Parquet files at a path or an address.",
        ("uri", str, "file, directory or pattern (*): a path, file:, s3:, gs:, abfss:, https:"),
        ("directory", Path, "directory for train.csv, val.csv, test.csv and gold.csv"),
        ("--text-column", str, "column with the texts (default: sentence)"),
        ("--label-column", str, "column with the labels (default: label)"),
        ("--format", str, "csv or parquet (default: as the names end)"),
        ("--labels", str, "all labels, with commas between them (default: as they come)"),
        ("--on-bad-row", str, "fail (default), or skip: leave such rows out and count them"),
    ),
    "train": (
        "train:train",
        "Train and evaluate a model as a JSON configuration says.",
        ("config", Path, "JSON configuration with the Trainer's names"),
    ),
    "upload-to-registry": (
        "registry.base:upload_to_registry",
        "Upload a trained model as a new version.",
        ("name", str, "name of the model in the registry"),
        ("directory", Path, "directory that train wrote"),
    ),
    "load-from-registry": (
        "registry.base:load_from_registry",
        "Fetch a version of a model into a directory.",
        ("reference", str, "NAME:latest, NAME:vN or NAME:ALIAS"),
        ("directory", Path, "directory to put the model in"),
    ),
    "gate": (
        "gate:gate",
        "Promote a version if it is good enough, compared with the champion and a baseline.",
        ("reference", str, "NAME:vN, the version that MODEL is"),
        ("model", Path, "directory that train wrote"),
        ("data", Path, "directory with train.csv and gold.csv"),
    ),
    "promote": (
        "gate:promote",
        "Make a version the champion, whatever the gate says.",
        ("reference", str, "NAME:vN"),
        *PROMOTION,
    ),
    "rollback": (
        "gate:rollback",
        "Make the version before it the champion again.",
        ("name", str, "name of the model"),
        *PROMOTION,
    ),
    "run-inference-on-dataframe": (
        "inference:run_inference_on_dataframe",
        "Add predictions to the rows of a CSV or Parquet file.",
        ("source", str, "file with a column `sentence`, a directory of such, or an address"),
        ("model", Path, "directory of the model"),
        ("target", Path, "CSV or Parquet file to write"),
        ("--shard", str, "k/n: every n-th piece, from the k-th", {"default": "0/1"}),
    ),
    "join-predictions": (
        "predictions:join_predictions",
        "Write one file of what the shards of run-inference-on-dataframe have left.",
        ("model", Path, "directory of the model"),
        ("target", Path, "their target"),
        ("shards", int, "how many there are"),
    ),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    main_parser = argparse.ArgumentParser(prog="cli.py", description="Sentence classification.")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, about, *arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        for argument, kind, text, *more in arguments:
            command.add_argument(argument, type=kind, help=text, **dict(*more))
    return main_parser


def run(command: str, **given: Any) -> dict[str, Any]:
    """Run a command with what the parser has read, and return its result."""
    place, _, *arguments = COMMANDS[command]
    module, name = place.split(":")
    function = getattr(import_module(f"classic_example.{module}"), name)
    in_order = [given.pop(name) for name, *_ in arguments if not name.startswith("-")]
    if "registry" in signature(function).parameters:
        from classic_example.registry import registry_from_environment

        in_order.insert(0, registry_from_environment())
    return function(*in_order, **given)


def report(result: dict[str, Any]) -> None:
    """Print `RESULT {json}`, and write the same JSON to RESULT_FILE, else the termination log.

    The work is done by now: a file that cannot be written is a warning, not a failure. Raises
    ValueError when the JSON is too long for a termination message; results are meant to be small.
    """
    text = json.dumps(result, sort_keys=True)
    if (size := len(text.encode())) >= MAX_BYTES:
        raise ValueError(f"result of {size} bytes, the limit is {MAX_BYTES}")
    path = Path(os.environ.get("RESULT_FILE", "") or TERMINATION_LOG)
    if path != TERMINATION_LOG or path.exists():
        try:
            # Not renamed into place: the termination log is a mount and cannot be replaced.
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            logger.warning("WARNING: the result file cannot be written: %s", one_line(error))
    print(f"RESULT {text}", flush=True)


def stop(number: int, _frame: object) -> None:
    """End on a signal as on an error, so that half-made files are removed."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    # The first process of a container gets no default handler: without one, a deleted pod would
    # work on until it is killed.
    signal.signal(signal.SIGTERM, stop)
    form = {"format": "%(asctime)s %(message)s", "datefmt": "%H:%M:%S"}
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, **form)
    logger.setLevel(logging.INFO)
    arguments = parser().parse_args(argv)
    try:
        result = run(**vars(arguments))
        report(result | note(arguments.command, result))
        return 0
    except WorkloadError as error:
        message = one_line(error)
    except KeyboardInterrupt:
        message = "interrupted"
    except MemoryError:
        message = "out of memory; raise the task's memory limit"
    except Exception as error:
        # Not foreseen: whoever mends it needs the trace, and nobody needs the key in it.
        sys.stderr.write(scrub(traceback.format_exc()))
        message = f"unexpected {type(error).__name__}: {one_line(error)}"
    print(f"ERROR: {message}", file=sys.stderr, flush=True)
    return 1


def leave(status: int) -> NoReturn:
    """End the process at once, and what it has started with it.

    Not sys.exit(): the exit hooks of a registry's SDK may wait minutes for a server that is gone,
    and its helper process holds the log open meanwhile.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for path in Path("/proc/self/task").glob("*/children"):
        # The thread may have ended meanwhile, and so may a child.
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in path.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
    os._exit(status)


if __name__ == "__main__":
    try:
        ended = main()
    except SystemExit as error:
        ended = int(error.code or 0)
    leave(ended)
