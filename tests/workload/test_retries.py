"""A try that was killed, and the next one in the same directory.

Each command is killed (SIGKILL) at every moment at which it flushes, renames or replaces a file,
one after the other over the same leftovers, until it comes to its end. After each kill, what
another step would read is whole or absent; at the end nothing is left but the outputs.
"""

import hashlib
import itertools
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from children import asked_at, die_at, ended
from classic_example.inference import run_inference_on_dataframe
from classic_example.registry.base import load_from_registry
from classic_example.sources import load_and_save
from classic_example.train import train
from workload_helpers import Cli, DirectoryRegistry, Ended, contents, everything_below, same_model

MOMENTS = ("fsync", "rename", "replace")


def killed(number: int, work: Callable[[], Any], moments: Sequence[str]) -> bool:
    """Run `work` in a child that is killed at its moment `number`; False when it had fewer."""
    child = os.fork()
    if child == 0:
        try:
            die_at(number, moments, work)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, "the command failed of itself"
    return os.WIFSIGNALED(status)


def try_until_done(
    work: Callable[[], Any], check: Callable[[], None], moments: Sequence[str] = MOMENTS
) -> int:
    """Kill one try after the other, a moment later each, and return how many that were."""
    for number in itertools.count():
        if not killed(number, work, moments):
            return number
        check()
    raise AssertionError("unreachable")


def test_killed_loading_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATA_SOURCE", "bundled")
    undisturbed, directory = tmp_path / "undisturbed", tmp_path / "data"

    def load(into: Path) -> None:
        load_and_save(into / "train.csv", into / "val.csv", into / "test.csv")

    load(undisturbed)
    expected = contents(undisturbed)

    def check() -> None:
        visible = {k: v for k, v in contents(directory).items() if not k.startswith(".")}
        assert visible.items() <= expected.items()

    assert try_until_done(lambda: load(directory), check) >= 2 * len(expected)
    assert contents(directory) == expected


# Two epochs of two steps and a half one, with dropout: all that a checkpoint has to hold.
DISTURBED = {
    "max_train_samples": 32,
    "max_steps": 5,
    "logging_steps": 2,
    "eval_strategy": "epoch",
    "load_best_model_at_end": True,
    "early_stopping_patience": 5,
    "checkpoint_seconds": 0,
}


def test_killed_training(make_config: Callable[..., Path], tmp_path: Path):
    undisturbed = make_config(
        tmp_path / "a.json", output_dir=str(tmp_path / "undisturbed"), **DISTURBED
    )
    assert ended(train, undisturbed) == 0
    config, results = make_config(tmp_path / "b.json", **DISTURBED), tmp_path / "results"
    # Of an earlier try that had come to its end.
    results.mkdir()
    (results / "stale").write_text("x")

    # Later each, and the steps before a checkpoint are taken but once.
    number = 0
    while (status := ended(die_at, number, MOMENTS, train, config)) != 0:
        assert status == -signal.SIGKILL
        assert not results.exists()
        number += 5
    assert number > 15
    assert same_model(results, tmp_path / "undisturbed")
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.json",
        "b.json",
        "results",
        "undisturbed",
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_training_that_is_asked_to_end_goes_on_later(
    make_config: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
):
    caplog.set_level("INFO")
    never = {**DISTURBED, "checkpoint_seconds": 1000}
    # They divide the batches of a model without dropout.
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if threads > 1:
        never["dropout"] = 0.0
    train(make_config(tmp_path / "a.json", output_dir=str(tmp_path / "undisturbed"), **never))
    config, begun = make_config(tmp_path / "b.json", **never), tmp_path / ".results.training"

    # In the middle of an epoch, in the evaluation at its end, and in the next.
    for step, kept in ((1, 1), (2, 1), (3, 3)):
        assert ended(asked_at, step, config, threads) == 128 + signal.SIGTERM
        assert max(path.name for path in begun.iterdir()) == f"checkpoint-{kept}"
    # A part of a later one, as of a try that was killed while it wrote.
    (begun / "checkpoint-4").mkdir()
    (begun / "checkpoint-4" / "model.safetensors").write_text("half")
    train(config)
    assert "going on behind step 3 of an earlier try" in caplog.text
    assert same_model(tmp_path / "results", tmp_path / "undisturbed")
    assert not begun.exists()

    assert ended(asked_at, 3, config, threads) == 128 + signal.SIGTERM
    other = {**never, "learning_rate": 1e-3}
    train(make_config(tmp_path / "c.json", output_dir=str(tmp_path / "other"), **other))
    train(make_config(tmp_path / "b.json", **other))
    assert "beginning anew, not where an earlier try was: learning_rate changed" in caplog.text
    assert same_model(tmp_path / "results", tmp_path / "other")


def test_killed_loading_of_a_model(trained: tuple[Ended, Path], tmp_path: Path):
    target = tmp_path / "results"
    shutil.copytree(trained[1], target)
    (target / "registry.json").write_text("{}")
    whole = everything_below(target)
    registry = DirectoryRegistry(trained[1], {})

    def check() -> None:
        assert not target.exists() or everything_below(target) == whole

    assert try_until_done(lambda: load_from_registry(registry, "m", target), check) > 2
    assert json.loads((target / "registry.json").read_text())["version"] == "v1"
    assert everything_below(target) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("chunk", [8192, 10], ids=["one-piece", "four-pieces"])
def test_killed_inference(
    trained: tuple[Ended, Path],
    data_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
):
    monkeypatch.setattr("classic_example.inference.CHUNK_ROWS", chunk)
    source, out = data_directory / "test.csv", tmp_path / "out"
    run_inference_on_dataframe(source, trained[1], tmp_path / "undisturbed" / "pred.csv")
    expected = (tmp_path / "undisturbed" / "pred.csv").read_bytes()
    out.mkdir()
    earlier = b"of an earlier try"
    (out / "pred.csv").write_bytes(earlier)
    described = {"predictions": {"sha256": hashlib.sha256(earlier).hexdigest()}}
    (out / "pred.json").write_text(json.dumps(described))

    def check() -> None:
        content = (out / "pred.csv").read_bytes()
        assert content in (earlier, expected)
        # A description is there only beside the predictions that it describes.
        if (out / "pred.json").exists():
            described = json.loads((out / "pred.json").read_text())
            assert described["predictions"]["sha256"] == hashlib.sha256(content).hexdigest()

    work = lambda: run_inference_on_dataframe(source, trained[1], out / "pred.csv")  # noqa: E731
    # The description of before goes first: a kill at any removal must leave the two in step too.
    assert try_until_done(work, check, (*MOMENTS, "unlink")) >= 7
    assert (out / "pred.csv").read_bytes() == expected
    assert everything_below(out) == {"pred.csv", "pred.json"}


@pytest.mark.parametrize(
    ("command", "maker"),
    [
        (["train", "config.json"], "load-sst2-data"),
        (["upload-to-registry", "m", "none"], "train"),
        (["run-inference-on-dataframe", "none.csv", "none", "pred.csv"], "load-sst2-data"),
    ],
    ids=["train", "upload-to-registry", "run-inference-on-dataframe"],
)
def test_inputs_that_are_gone_are_told_in_words_of_the_pipeline(
    cli: Cli,
    make_config: Callable[..., Path],
    tmp_path: Path,
    command: list[str],
    maker: str,
):
    make_config(tmp_path / "config.json", train_file=str(tmp_path / "none.csv"))
    words = [command[0], *(word if word == "m" else tmp_path / word for word in command[1:])]
    registry = {"REGISTRY": "mlflow", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}

    by_hand = cli(*words, env=registry)
    assert by_hand.error.endswith(f"does not exist; {maker} makes it")

    in_a_run = cli(*words, env={**registry, "ML_PIPELINES_RUN_ID": "manual__1"})
    assert "is gone: clean_up removes the files of a run when it ends; clear all" in in_a_run.error
