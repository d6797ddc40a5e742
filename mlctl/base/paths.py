"""Where the project keeps things: one place for each path."""

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

BUILD = ROOT / "build"
"""What commands leave for a person or another command to read (git-ignored)."""

CACHE = Path(
    os.environ.get("ML_PIPELINES_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ml-pipelines"
)
"""Downloads and build results, keyed by the content of their inputs; safe to delete."""

STATE = Path(os.environ.get("ML_PIPELINES_STATE") or "/var/lib/ml-pipelines")
"""Data of the embedded clusters, a directory each; `make clean` deletes it."""

CHART = ROOT / "charts" / "ml-pipelines"
VALUES = ROOT / "values"
IMAGES_LOCK = BUILD / "images.json"
RUN_REPORT = BUILD / "run.json"


def write_report(path: Path, report: object) -> None:
    """Write what a command found as JSON, for a person or another command."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
