"""What a step has done, in one line for people: the note of a pipeline's run is made of these."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

# By command, made of its result.
NOTES = {
    "load-sst2-data": "{rows} rows of {source}",
    "train": "accuracy {accuracy:.4f} on held-out rows, baseline {baseline_accuracy:.4f}",
    "upload-to-registry": "{name} {version} in {registry}",
    "gate": "{version} is {decision}: {reason}",
    "promote": "{name} {version} is the {alias}",
    "load-from-registry": "{name} {version}",
    "run-inference-on-dataframe": "{rows} rows by {model_version}: {predictions}",
    "join-predictions": "{rows} rows by {model_version}: {predictions}",
}
# Of the directory that a pipeline mounts at /tmp, on its volume; empty elsewhere.
RUN_DIRECTORY = "ML_PIPELINES_RUN_DIRECTORY"


def note(command: str, result: Mapping[str, Any]) -> dict[str, str]:
    """Return `note`, one line for people about what a step has done; nothing where it says none."""

    def told(key: str, value: Any) -> Any:
        if key == "rows" and isinstance(value, dict):
            return ", ".join(f"{split} {rows}" for split, rows in value.items())
        if key == "predictions" and (directory := os.environ.get(RUN_DIRECTORY)):
            return re.sub("^/tmp/", f"{directory}/", value)
        return value

    with suppress(KeyError):  # A shard is no whole.
        words = {key: told(key, value) for key, value in result.items()}
        return {"note": NOTES[command].format_map(words)}
    return {}
