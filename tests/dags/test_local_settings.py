"""What the chart has every Airflow process run at its start (airflow.airflowLocalSettings)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from airflow import settings
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

VALUES = Path(__file__).parents[2] / "charts" / "ml-pipelines" / "values.yaml"


@pytest.fixture
def local_settings() -> str:
    return yaml.safe_load(VALUES.read_text(encoding="utf-8"))["airflow"]["airflowLocalSettings"]


def test_a_forked_process_leaves_its_parents_connections_alone(
    local_settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/pool.db", poolclass=QueuePool)
    engine.connect().close()
    assert engine.pool.checkedin() == 1
    monkeypatch.setattr(settings, "engine", engine, raising=False)
    exec(compile(local_settings, "airflow_local_settings.py", "exec"), {})

    child = os.fork()
    if child == 0:
        os._exit(engine.pool.checkedin())
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert engine.pool.checkedin() == 1


def test_nothing_is_added_to_airflows_own_settings(local_settings: str) -> None:
    # Airflow copies the public names of the module into its own.
    names: dict[str, object] = {}
    exec(compile(local_settings, "airflow_local_settings.py", "exec"), names)
    assert names["__all__"] == []
