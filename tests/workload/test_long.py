"""Trainings that are killed again and again, and ten million rows: in `make test-long` only."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pyarrow
import pytest
from children import ended, started
from classic_example.train import train
from pyarrow import parquet
from workload_helpers import Ended, everything_below, peak_memory, same_model, sentences

KILLS = 30
ROWS = 10_000_000


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


@pytest.mark.timeout(4 * 3600)
def test_memory_for_ten_million_rows_is_constant(trained: tuple[Ended, Path], tmp_path: Path):
    source, target = tmp_path / "in.parquet", tmp_path / "pred.parquet"
    texts = pyarrow.array([text for text, *_ in sentences(10_000)])
    schema = pyarrow.schema({"sentence": pyarrow.string(), "idx": pyarrow.int64()})
    with parquet.ParquetWriter(source, schema) as writer:
        for start in range(0, ROWS, len(texts)):
            numbers = numpy.arange(start, start + len(texts))
            writer.write_batch(pyarrow.record_batch([texts, numbers], schema=schema))
    begin = time.monotonic()
    taken = peak_memory("run-inference-on-dataframe", source, trained[1], target)
    seconds = time.monotonic() - begin
    print(f"{ROWS:,} rows: {seconds:.0f} s, {ROWS / seconds:.0f} a second, {taken >> 20} MiB")
    assert taken < 700 << 20
    assert parquet.ParquetFile(target).metadata.num_rows == ROWS
