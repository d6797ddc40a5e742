"""The directory of a run, for every run id that Airflow takes."""

from __future__ import annotations

import re

import pytest

from ml_pipelines.runs import run_directory

LONG = "x" * 250
ODD_RUN_IDS = [
    "manual__2026-11-23T09:00:00.123456+00:00",
    "scheduled__2026-11-23T09:00:00+00:00",
    "..",
    ".",
    "...",
    "~",
    "-rf",
    ".hidden",
    "a+b",
    "a:b",
    "a b",
    "a/b",
    "../../etc",
    "$(reboot)",
    "`reboot`; rm -rf {{ x }}",
    "für-ein-Modell-№1",
    "模型训练",
    "\udcff",  # what a wrongly decoded byte becomes
    "",
    "A",
    "a",
    LONG,
    LONG[:-1] + "y",
    LONG[:-1],
    "🤖" * 250,
]


@pytest.mark.parametrize("run_id", ODD_RUN_IDS)
def test_directory_is_one_safe_path_segment(run_id: str) -> None:
    name = run_directory(run_id)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert len(name.encode()) <= 93
    assert ".." not in name.split("/")


def test_directories_differ_for_different_run_ids() -> None:
    names = {run_directory(run_id) for run_id in ODD_RUN_IDS}
    assert len(names) == len(ODD_RUN_IDS)
    # Also where the file system does not tell cases apart.
    assert len({name.lower() for name in names}) == len(ODD_RUN_IDS)


def test_directory_is_readable_and_stable() -> None:
    # On purpose spelled out: runs that are under way must find their files after an upgrade.
    assert (
        run_directory("manual__2026-11-23T09:00:00+00:00")
        == "manual__2026-11-23T09-00-00-00-00-476cf0ba3706"
    )
