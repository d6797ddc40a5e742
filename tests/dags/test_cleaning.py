"""The cleaning scripts, run for real on a directory; /tmp is replaced by the directory's path."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

DIGEST = f"sha256:{'1a' * 32}"


@pytest.fixture
def run_command(load_dag, tmp_path: Path):
    """Run the command of a task with `tmp_path/run` in the place of /tmp."""
    (tmp_path / "run").mkdir()

    def run(dag_id: str, task_id: str) -> subprocess.CompletedProcess[str]:
        shell, options, script = load_dag(dag_id).get_task(task_id).cmds
        assert "/tmp" in script
        return subprocess.run(
            [shell, options, script.replace("/tmp", str(tmp_path / "run"))],
            env={
                "PATH": os.environ["PATH"],
                "ML_PIPELINES_RUN_DIRECTORY": "inference_dag/run-1",
                "ML_PIPELINES_INFERENCE_IMAGE_DIGEST": DIGEST,
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


def fill(directory: Path) -> None:
    for name in (
        "data/train.csv",
        "results/model.safetensors",
        "results/.hidden/file",
        ".cache/a b/*",
        "-rf",
        "new\nline",
        "pred.csv",
        "pred.json",
        "pred.csv.partial",
        "data/pred.csv",
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (directory / "link").symlink_to(directory.parent)
    (directory.parent / "neighbour").write_text("another run's")


EMPTYING = [
    ("training_dag", "clean_storage_before_start"),
    ("training_dag", "clean_up"),
    ("inference_dag", "clean_storage_before_start"),
]


@pytest.mark.parametrize(("dag_id", "task_id"), EMPTYING)
def test_everything_in_the_runs_directory_goes_and_nothing_else(
    run_command, tmp_path: Path, dag_id: str, task_id: str
) -> None:
    fill(tmp_path / "run")
    done = run_command(dag_id, task_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "neighbour").read_text() == "another run's"
    # The log of the task says what was removed.
    assert "data/train.csv" in done.stdout


@pytest.mark.parametrize(("dag_id", "task_id"), [*EMPTYING, ("inference_dag", "clean_up")])
def test_an_empty_directory_is_fine(run_command, tmp_path: Path, dag_id: str, task_id: str) -> None:
    done = run_command(dag_id, task_id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "run").is_dir()


def test_predictions_outlive_the_cleaning_after_inference(run_command, tmp_path: Path) -> None:
    fill(tmp_path / "run")
    done = run_command("inference_dag", "clean_up")
    assert (done.returncode, done.stderr) == (0, "")
    kept = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert kept == {"pred.csv": "pred.csv", "pred.json": "pred.json"}
    assert (tmp_path / "neighbour").read_text() == "another run's"
    assert "inference_dag/run-1/pred.csv" in done.stdout


def test_the_predictions_get_the_digest_of_their_image_and_nothing_else_changes(
    run_command, tmp_path: Path
) -> None:
    described = {
        "image_digest": "",
        "made_by": {"image": "registry.example/i:1"},
        "model": {"tags": {"image_digest": ""}},
    }
    path = tmp_path / "run" / "pred.json"
    # As the workload writes it.
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    for _ in range(2):  # A cleared clean_up runs again.
        done = run_command("inference_dag", "clean_up")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(path.read_text()) == described | {"image_digest": DIGEST}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["pred.json"]


@pytest.mark.parametrize(
    ("dag_id", "task_id"), [("training_dag", "clean_up"), ("inference_dag", "clean_up")]
)
def test_a_failed_cleaning_is_a_failed_task(
    run_command, tmp_path: Path, dag_id: str, task_id: str
) -> None:
    (tmp_path / "run").rmdir()
    assert run_command(dag_id, task_id).returncode != 0
