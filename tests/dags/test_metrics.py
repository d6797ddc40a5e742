"""The figures of a step's result reach a statsd server, as lines that the exporter takes apart."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml_pipelines.operator import Stats
from tests.dags.cluster import Cluster, ended, until
from tests.dags.conftest import AIRFLOW_2
from tests.helpers.statsd import names


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Give what Airflow has sent since, of the client that the chart's settings make."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
        from statsd import StatsClient

        client = StatsClient("127.0.0.1", server.getsockname()[1], prefix="airflow")
        if AIRFLOW_2:
            from airflow.metrics.statsd_logger import SafeStatsdLogger

            logger = SafeStatsdLogger(client, influxdb_tags_enabled=True)
            monkeypatch.setattr(Stats, "instance", logger)
        else:
            from airflow.sdk._shared.observability.metrics import stats
            from airflow.sdk._shared.observability.metrics.statsd_logger import SafeStatsdLogger

            logger = SafeStatsdLogger(client, influxdb_tags_enabled=True)
            monkeypatch.setattr(stats, "_backend", logger)

        def sent() -> list[str]:
            found = []
            try:
                while True:
                    found += server.recv(65536).decode().splitlines()
            except TimeoutError:
                return found

        yield sent


def run(clock, make_task, run_task, result: object, **arguments):
    cluster = Cluster(clock, until(60, ended(0, message=json.dumps(result))))
    return run_task(make_task(**arguments), cluster)


def test_every_number_of_a_result_is_a_gauge(clock, make_task, run_task, lines) -> None:
    result = {
        "accuracy": 0.82,
        "rows": 872,
        "version": "v3",
        "drift": {"psi_words": 0.31, "of": {"below": -1}},
        "fine": True,
        "none": None,
        "nan": float("nan"),
        "large": 10**400,
        "interval": [0.8, 0.84],
        "a key|with:what a line=cannot, hold": 1,
    }
    done = run(clock, make_task, run_task, result, dag_id="team.v1")
    assert done.error is None
    which = "airflow.ml_pipelines.result,dag_id=team.v1,task_id=a_task,figure="
    assert lines() == [
        f"{which}accuracy:0.82|g",
        f"{which}rows:872.0|g",
        f"{which}drift.psi_words:0.31|g",
        f"{which}drift.of.below:0|g",
        f"{which}drift.of.below:-1.0|g",
    ]


@pytest.mark.parametrize("result", [None, [1], "text", 7])
def test_a_result_without_figures_sends_none(clock, make_task, run_task, lines, result) -> None:
    assert run(clock, make_task, run_task, result).error is None
    assert lines() == []


def test_a_failed_step_sends_none(clock, make_task, run_task, lines) -> None:
    cluster = Cluster(clock, until(60, ended(1, message='{"accuracy": 0.5}')))
    assert run_task(make_task(), cluster).error is not None
    assert lines() == []


def test_names_that_queries_need_are_airflows_own() -> None:
    import airflow

    root = Path(airflow.__file__).parent
    folders = ("models", "jobs", "executors", "dag_processing", "sdk/execution_time")
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    # A name ends in the state, or is made of the moment that is measured.
    made = {
        "dagrun.duration.success": "dagrun.duration.{self.state}",
        "dagrun.duration.failed": "dagrun.duration.{self.state}",
    }
    missing = {name for name in names(2 if AIRFLOW_2 else 3) if made.get(name, name) not in text}
    assert missing == set()
