"""How a step hands its result to the pipeline: a line in the log and the termination message."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from classic_example.errors import one_line

logger = logging.getLogger(__name__)

TERMINATION_LOG = Path("/dev/termination-log")
# Kubernetes cuts a termination message here:
# https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
MAX_BYTES = 4096


def report(result: dict[str, Any]) -> None:
    """Print `RESULT {json}` and write the same JSON to RESULT_FILE.

    Without that variable, to the termination log of the container, if it has one. The work is done
    by now, so a file that cannot be written is a warning, not a failure.

    Raises:
        ValueError: the JSON does not fit in a termination message; results are meant to be small.
    """
    text = json.dumps(result, sort_keys=True)
    if len(text.encode()) >= MAX_BYTES:
        raise ValueError(f"result of {len(text.encode())} bytes, the limit is {MAX_BYTES}")
    path = Path(os.environ.get("RESULT_FILE", "") or TERMINATION_LOG)
    if path != TERMINATION_LOG or path.exists():
        try:
            # Not renamed into place: the termination log is a mount and cannot be replaced.
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            logger.warning("WARNING: the result file cannot be written: %s", one_line(error))
    print(f"RESULT {text}", flush=True)
