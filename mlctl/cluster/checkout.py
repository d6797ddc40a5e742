"""What every kind of cluster needs of this checkout."""

import subprocess
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.paths import BUILD, ROOT


def dag_values(repository: str, ref: str) -> dict[str, Any]:
    """Return the Helm values that make git-sync follow ``ref`` of ``repository``."""
    return {"airflow": {"dags": {"gitSync": {"repo": repository, "ref": ref, "branch": ref}}}}


def head() -> str:
    """Return the commit this checkout is at."""
    result = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if result.returncode != 0:
        raise UserError(f"{ROOT} has no commit yet: commit first")
    return result.stdout.strip()


def work_directory(name: str) -> Path:
    """Return a directory for files about one cluster that is not embedded."""
    directory = BUILD / "clusters" / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory
