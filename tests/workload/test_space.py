"""Volumes without room: said before anything is written, and without harm when it comes later.

The volume is a file system of 64 MiB in memory, which the tests fill: the errors are the kernel's.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from classic_example import cli as command_line
from classic_example import evaluate, files, sources, train
from classic_example.errors import WorkloadError
from classic_example.files import new_directory, new_files
from classic_example.registry import base
from workload_helpers import Cli, DirectoryRegistry, Ended, everything_below, fill

MakeConfig = Callable[..., Path]
WAY_OUT = "remove what is not needed from the volume or enlarge it (storage.size)"


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find room everywhere, as if another run filled the volume right after."""
    for module in (sources, train, base):
        monkeypatch.setattr(module, "require_space", lambda sizes: None)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command here, which must fail, and return its one line on stderr."""
    assert command_line.main([str(one) for one in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ERROR: ")
    return lines[0]


# Before anything is written


def test_data_that_does_not_fit_is_not_written(cli: Cli, small_volume: Path):
    fill(small_volume, free=1_000_000)
    before = everything_below(small_volume)
    environment = {"DATA_SOURCE": "bundled", "MIN_FREE_BYTES": "0"}
    ended = cli("load-sst2-data", small_volume / "data", env=environment)
    needed = sum(
        (Path("/opt/data/movie-reviews") / f"{split}.csv").stat().st_size
        for split in ("train", "val", "gold")
    )
    assert f"not enough space on the volume of {small_volume}/data/train.csv" in ended.error
    assert f" {needed:,} are needed ({needed:,} to write, 0 to stay free)" in ended.error
    assert f"{WAY_OUT}, or lower MIN_FREE_BYTES" in ended.error
    assert everything_below(small_volume) == before
    assert not (small_volume / "data").exists()


def test_room_for_the_rest_of_the_run_is_asked_for(cli: Cli, small_volume: Path):
    for arguments in (
        ("load-sst2-data", small_volume / "data"),
        ("load-from-registry", "m:latest", small_volume / "results"),
    ):
        # The volume has 64 MiB: the default wants four times as much.
        ended = cli(
            *arguments,
            env={
                "DATA_SOURCE": "glue",
                "HF_ENDPOINT": "http://127.0.0.1:9",
                "REGISTRY": "mlflow",
                "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            },
        )
        # Not the hub and not the server that are out of reach: neither was asked.
        assert "268,435,456 are needed (0 to write, 268,435,456 to stay free)" in ended.error
        assert "bytes are free" in ended.error
    assert list(small_volume.iterdir()) == []


def test_wanted_room_can_be_lowered(cli: Cli, small_volume: Path):
    environment = {"DATA_SOURCE": "bundled", "MIN_FREE_BYTES": "1000000"}
    ended = cli("load-sst2-data", small_volume / "data", env=environment)
    assert ended.status == 0, ended.output


@pytest.mark.parametrize("text", ["256Mi", "-1", "1.5"])
def test_wanted_room_must_be_a_number_of_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
):
    monkeypatch.setenv("MIN_FREE_BYTES", text)
    with pytest.raises(WorkloadError, match=f"MIN_FREE_BYTES='{text}' is not a whole number"):
        files.require_space({tmp_path: 0})


def test_each_volume_is_asked_for_its_own_files(
    monkeypatch: pytest.MonkeyPatch, small_volume: Path, tmp_path: Path
):
    monkeypatch.setenv("MIN_FREE_BYTES", "0")
    files.require_space({tmp_path / "a": 100 << 20, small_volume / "b": 10 << 20})
    with pytest.raises(WorkloadError, match=f"volume of {small_volume}/b"):
        files.require_space(
            {tmp_path / "a": 1, small_volume / "b": 40 << 20, small_volume / "c": 40 << 20}
        )


def test_volume_that_does_not_know_its_size_is_not_judged(monkeypatch, tmp_path: Path):
    empty = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(files.os, "statvfs", lambda path: empty)
    files.require_space({tmp_path / "a": 1 << 60})


def test_training_does_not_begin_without_room_for_the_model(
    make_config: MakeConfig, tmp_path: Path, small_volume: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MIN_FREE_BYTES", "0")
    fill(small_volume, free=2_000_000)
    begun = AssertionError("training has begun")
    monkeypatch.setattr(evaluate, "baseline", Mock(side_effect=begun))
    config = make_config(tmp_path / "config.json", output_dir=str(small_volume / "results"))
    with pytest.raises(WorkloadError, match=f"not enough space on the volume of {small_volume}"):
        train.train(config)
    assert everything_below(small_volume) == {"filler"}


# In the middle


def test_data_that_fills_the_volume_leaves_the_older_data(
    unchecked: None, small_volume: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("DATA_SOURCE", "bundled")
    data = small_volume / "data"
    data.mkdir()
    for name in ("train.csv", "val.csv", "test.csv", "gold.csv", "dataset.json"):
        (data / name).write_text("of before")
    # Room for the training rows, not for those after them.
    fill(small_volume, free=1_050_000)
    error = error_of(capsys, "load-sst2-data", data)
    assert error.startswith(f"ERROR: cannot write {data}/")
    assert f"No space left on device; 0 bytes are free; {WAY_OUT}" in error
    assert {path.name: path.read_text() for path in data.iterdir()} == dict.fromkeys(
        ("train.csv", "val.csv", "test.csv", "gold.csv", "dataset.json"), "of before"
    )


@pytest.mark.parametrize("free", [2_000_000, 4_200_000], ids=["weights", "tokenizer"])
def test_training_that_fills_the_volume_leaves_nothing_half(
    unchecked: None, make_config: MakeConfig, small_volume: Path, tmp_path: Path, capsys, free: int
):
    fill(small_volume, free=free)
    config = make_config(
        tmp_path / "config.json", output_dir=str(small_volume / "results"), max_steps=2
    )
    error = error_of(capsys, "train", config)
    assert error.startswith(f"ERROR: cannot write {small_volume}/results: No space left on device;")
    assert WAY_OUT in error
    assert everything_below(small_volume) == {"filler"}


def test_model_that_fills_the_volume_leaves_the_older_one(
    unchecked: None, trained: tuple[Ended, Path], small_volume: Path, monkeypatch, capsys
):
    registry = DirectoryRegistry(trained[1], {})
    monkeypatch.setattr("classic_example.registry.registry_from_environment", lambda: registry)
    results = small_volume / "results"
    results.mkdir()
    (results / "model.safetensors").write_text("of before")
    fill(small_volume, free=2_000_000)
    error = error_of(capsys, "load-from-registry", "m:latest", results)
    assert f"cannot write {results}: No space left on device; " in error
    assert WAY_OUT in error
    assert everything_below(small_volume) == {"filler", "results/model.safetensors"}
    assert (results / "model.safetensors").read_text() == "of before"


@pytest.mark.parametrize("free", [0, 12_288], ids=["predictions", "description"])
def test_predictions_that_fill_the_volume_leave_the_older_ones(
    trained: tuple[Ended, Path], data_directory: Path, small_volume: Path, capsys, free: int
):
    target = small_volume / "pred.csv"
    arguments = ("run-inference-on-dataframe", data_directory / "test.csv", trained[1], target)
    assert command_line.main([str(one) for one in arguments]) == 0
    capsys.readouterr()
    before = {name: (small_volume / name).read_bytes() for name in ("pred.csv", "pred.json")}
    fill(small_volume, free=free)
    error = error_of(capsys, *arguments)
    name = "pred.json" if free else "pred.csv"
    assert f"cannot write {small_volume}/{name}: No space left on device; 0 bytes" in error
    assert everything_below(small_volume) == {"filler", "pred.csv", "pred.json"}
    assert {name: (small_volume / name).read_bytes() for name in before} == before


# The errors


def full_disk(cause: BaseException | None = None) -> BaseException:
    error = OSError(errno.ENOSPC, "No space left on device") if cause is None else cause
    outer = RuntimeError("in a library")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "x"), errno.EDQUOT),
        (OSError(errno.EACCES, "Permission denied"), None),
        (full_disk(), errno.ENOSPC),
        (full_disk(KeyError("x")), None),
        (Exception("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), errno.ENOSPC),
        (Exception("Disk quota exceeded (os error 122)"), errno.EDQUOT),
        (ValueError("28"), None),
    ],
)
def test_full_volume_is_known_by_number_or_text(error: BaseException, expected: int | None):
    assert files.full_number(error) == expected


def test_quota_is_a_full_volume_too(tmp_path: Path):
    with (
        pytest.raises(WorkloadError, match=f"cannot write {tmp_path}/m: Disk quota exceeded; "),
        new_directory(tmp_path / "m"),
    ):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert list(tmp_path.iterdir()) == []


def test_lack_of_inodes_is_named(monkeypatch, tmp_path: Path):
    none_left = os.statvfs_result((4096, 4096, 1000, 500, 500, 1000, 0, 0, 0, 255))
    monkeypatch.setattr(files.os, "statvfs", lambda path: none_left)
    error = files.full_volume(tmp_path, errno.ENOSPC)
    assert "2,048,000 bytes are free, but no more files (inodes); " in str(error)


def test_error_names_the_file_that_was_being_written(small_volume: Path):
    fill(small_volume, free=8192)
    targets = [small_volume / name for name in ("a", "b", "c")]
    with pytest.raises(WorkloadError, match=f"cannot write {small_volume}/b: No space left"):
        write_three(targets)
    assert everything_below(small_volume) == {"filler"}


def write_three(targets: list[Path]) -> None:
    with new_files(*targets) as (first, second, third):
        first.write_text("fits")
        second.write_bytes(bytes(100_000))
        third.write_text("never")
