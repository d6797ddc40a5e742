"""A Python with what several locks bring."""

import os
import sys
from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from tools import with_locks
from tools.test import SUITES


def test_it_becomes_the_python_of_the_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ran = [], []
    monkeypatch.setattr(
        with_locks, "environment", lambda names: asked.append(names) or Path("/env/bin/python")
    )
    monkeypatch.setattr(os, "execv", lambda *words: ran.append(words))
    monkeypatch.setattr(sys, "argv", ["with_locks", "airflow,dag-tests", "-m", "pytest", "-q"])
    with_locks.main()
    assert asked == [["airflow", "dag-tests"]]
    assert ran == [("/env/bin/python", ["/env/bin/python", "-m", "pytest", "-q"])]


def test_a_lock_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["with_locks", "no-such", "-c", "pass"])
    with pytest.raises(UserError, match=r"requirements/no-such\.txt"):
        with_locks.main()


@pytest.mark.parametrize(
    ("suite", "locks"),
    [
        ("dags", "airflow,dag-tests"),
        ("dags-airflow3", "airflow3,dag-tests"),
        ("e2e", "tools,browser"),
    ],
)
def test_a_suites_own_process_makes_its_environment(suite: str, locks: str) -> None:
    """So that what it prints has the suite's name before it."""
    assert SUITES[suite].command[:4] == [sys.executable, "-m", "tools.with_locks", locks]
