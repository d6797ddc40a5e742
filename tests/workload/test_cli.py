"""The command line itself: names, results, signals."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workload_helpers import APP, Cli, environment

COMMANDS = [
    "load-sst2-data",
    "load-sst2-data-file-input",
    "load-data",
    "train",
    "upload-to-registry",
    "load-from-registry",
    "gate",
    "promote",
    "rollback",
    "run-inference-on-dataframe",
]


def test_help_names_every_command(cli: Cli):
    ended = cli("--help")
    assert ended.status == 0
    for command in COMMANDS:
        assert f"    {command}" in ended.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train"], ["train", "a", "b"]])
def test_wrong_usage_is_refused(cli: Cli, arguments: list[str]):
    ended = cli(*arguments)
    assert ended.status == 2
    assert "usage:" in ended.stderr


def test_result_goes_to_the_log_and_to_the_result_file(cli: Cli, tmp_path: Path):
    result_file = tmp_path / "termination-log"
    result_file.touch()
    ended = cli(
        "load-sst2-data",
        tmp_path / "data",
        env={"DATA_SOURCE": "bundled", "RESULT_FILE": str(result_file)},
    )
    assert json.loads(result_file.read_text()) == ended.result
    assert len(result_file.read_bytes()) < 4096


def test_failure_leaves_the_result_file_empty(cli: Cli, tmp_path: Path):
    # Kubernetes then shows the end of the log, which is the ERROR line.
    result_file = tmp_path / "termination-log"
    result_file.touch()
    ended = cli("train", tmp_path / "none.json", env={"RESULT_FILE": str(result_file)})
    assert "none.json does not exist" in ended.error
    assert result_file.read_text() == ""


def test_result_file_that_cannot_be_written_does_not_fail_finished_work(cli: Cli, tmp_path: Path):
    ended = cli(
        "load-sst2-data",
        tmp_path,
        env={"DATA_SOURCE": "bundled", "RESULT_FILE": str(tmp_path / "no" / "directory")},
    )
    assert "WARNING: the result file cannot be written" in ended.stdout
    assert ended.result["rows"]["train"] > 0
    assert not (tmp_path / "no").exists()


def test_terminated_training_leaves_what_the_next_try_goes_on_from(
    make_config: Callable[..., Path], tmp_path: Path
):
    config = make_config(tmp_path / "config.json", max_steps=100_000)
    process = subprocess.Popen(
        [sys.executable, "classic_example/cli.py", "train", str(config)],
        cwd=APP,
        env=environment({}),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if "step 1/" in line:
                break
        assert (tmp_path / ".results.partial").is_dir()
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 10
    finally:
        process.kill()
        process.wait()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".results.training", "config.json"]
