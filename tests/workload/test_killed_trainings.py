"""Trainings that are killed again and again, at any moment: in `make test-long` only."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from children import ended, started
from classic_example.train import train
from workload_helpers import everything_below, same_model

KILLS = 30


@pytest.mark.timeout(7200)
def test_30_kills_end_in_equal_models(make_config: Callable[..., Path], tmp_path: Path):
    """Kill a training at random, again until it ends; as often as it takes for KILLS of them."""
    source = random.Random()
    settings = {"max_steps": 60, "eval_strategy": "epoch", "load_best_model_at_end": True}
    first = make_config(tmp_path / "a.json", output_dir=str(tmp_path / "undisturbed"), **settings)
    begin = time.monotonic()
    assert ended(train, first) == 0
    whole, kills, results = time.monotonic() - begin, 0, 0
    for number in range(KILLS):
        at = tmp_path / str(number)
        at.mkdir()
        config = make_config(at / "config.json", **settings, checkpoint_seconds=whole / 20)
        killed = 0
        while True:
            process = started(train, config)
            # Later each time: every training comes to its end.
            process.join(source.uniform(0, whole) * (1 + killed / 5))
            if process.exitcode is None:
                process.kill() if source.random() < 0.5 else process.terminate()
                process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
            assert not (at / "results").exists()
            killed += 1
        assert same_model(at / "results", tmp_path / "undisturbed")
        assert {name.partition("/")[0] for name in everything_below(at)} == {
            "config.json",
            "results",
        }
        kills, results = kills + killed, results + 1
        print(f"training {number + 1}: killed {killed} times, the same model", flush=True)
    print(f"{kills} kills, {results} equal models")
    assert kills >= KILLS
