"""The floors of the house (pyproject.toml, [tool.importlinter]), and that they are held."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlctl.base.paths import ROOT

PACKAGES = [
    "dags/ml_pipelines",
    "images/airflow/next_task",
    "images/airflow3/one_pod",
    "mlctl",
    "tools",
    "workload/classic_example",
]


def lint(tree: Path) -> tuple[int, str]:
    places = (".", "dags", "images/airflow", "images/airflow3", "workload")
    path = os.pathsep.join(str(tree / place) for place in places)
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


def test_imports_keep_to_the_floors() -> None:
    status, told = lint(ROOT)
    assert status == 0, told


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("mlctl/base/errors.py", "import mlctl.stack", "mlctl.base.errors -> mlctl.stack"),
        ("mlctl/builder/oci.py", "from mlctl.cluster import kind", "mlctl.cluster.kind"),
        ("mlctl/clients/kube.py", "from mlctl.clients import pods", ".pods -> .kube"),
        ("mlctl/base/cache.py", "import rich", "mlctl.base.cache -> rich"),
        ("mlctl/stack.py", "import tools.lock", "mlctl.stack -> tools.lock"),
        ("workload/classic_example/files.py", "import ml_pipelines", "ml_pipelines"),
        ("images/airflow3/one_pod/log.py", "import ml_pipelines", "one_pod.log -> ml_pipelines"),
    ],
)
def test_an_import_that_runs_upwards_is_refused(
    tmp_path: Path, file: str, line: str, told: str
) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / file
    # In a function: such an import hides the circle, and counts all the same.
    target.write_text(f"{target.read_text()}\n\ndef planted() -> None:\n    {line}\n")
    status, words = lint(tmp_path)
    assert status == 1
    assert told in words
