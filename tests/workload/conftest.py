"""Fixtures for the tests that run inside the classic-example image.

The image has the package in /app and on PYTHONPATH; tools/in_image/pytest_in_image.py brings pytest
and these files.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

# These files are not a package, and pytest runs them from wherever they are mounted.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from workload_helpers import (
    APP,
    BASE_MODEL,
    HEADER,
    SMALL_VOLUME,
    Cli,
    Ended,
    environment,
    sentences,
    write_csv,
)

# Some tests fork, which a second thread of torch would not outlive.
os.environ["OMP_NUM_THREADS"] = "1"

# Against a service that has to be paid for or asked for: only where somebody gives a key.
collect_ignore = [] if os.environ.get("WANDB_API_KEY") else ["test_wandb_service.py"]
# Minutes: `make test-long`.
if not os.environ.get("LONG"):
    collect_ignore.append("test_long.py")


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Run a command of the workload as a task pod does and wait for its end."""
    scratch = tmp_path_factory.mktemp("home")

    def run(
        *arguments: object, env: Mapping[str, str] | None = None, timeout: float = 600
    ) -> Ended:
        start = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "classic_example/cli.py", *map(str, arguments)],
            cwd=APP,
            env=environment({"WANDB_DIR": str(scratch), **(env or {})}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        seconds = time.monotonic() - start
        return Ended(ended.returncode, ended.stdout, ended.stderr, seconds)

    return run


@pytest.fixture(scope="session")
def data_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with small train, val and test files."""
    directory = tmp_path_factory.mktemp("data")
    write_csv(directory / "train.csv", HEADER, sentences(160))
    write_csv(directory / "val.csv", HEADER, sentences(60, offset=161))
    unlabelled = [[text, -1, idx] for text, _, idx in sentences(33, offset=300)]
    write_csv(directory / "test.csv", HEADER, unlabelled)
    return directory


@pytest.fixture
def small_volume() -> Iterator[Path]:
    """Return a volume of 64 MiB with nothing on it."""
    assert list(SMALL_VOLUME.iterdir()) == []
    yield SMALL_VOLUME
    for path in SMALL_VOLUME.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained two-layer BERT with the real tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    directory = tmp_path_factory.mktemp("tiny-base")
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_config(tiny_base: Path, data_directory: Path) -> Callable[..., Path]:
    """Write a configuration for a training of a second or two and return its path."""

    def make(path: Path, **changes: object) -> Path:
        content = {
            "model_name_or_path": str(tiny_base),
            "train_file": str(data_directory / "train.csv"),
            "validation_file": str(data_directory / "val.csv"),
            "output_dir": str(path.parent / "results"),
            "max_seq_length": 24,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 32,
            "learning_rate": 5e-3,
            "max_steps": 40,
            "warmup_ratio": 0.1,
            "logging_steps": 5,
            "seed": 7,
            **changes,
        }
        path.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))
        return path

    return make


@pytest.fixture(scope="session")
def trained(
    cli: Cli, make_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    """Train a tiny model with the real command; return the ended command and the model.

    The number of steps is a parameter of the run.
    """
    directory = tmp_path_factory.mktemp("trained")
    ended = cli(
        "train",
        make_config(directory / "config.json", max_steps=1),
        env={
            "ML_PIPELINES_PARAMS": '{"learning_rate": null, "max_steps": 40}',
            "ML_PIPELINES_DAG_ID": "training_dag",
            "ML_PIPELINES_RUN_ID": "manual__1",
            "ML_PIPELINES_DAGS_COMMIT": "c0ffee",
            "ML_PIPELINES_IMAGE": "registry.example/trainer:1",
        },
    )
    assert ended.status == 0, ended.output
    return ended, directory / "results"
