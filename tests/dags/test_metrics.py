"""The figures of a run's results reach a statsd server, as lines that the exporter takes apart."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.dags.conftest import AIRFLOW_2, RUN_ID, START
from tests.helpers import statsd
from tests.helpers.statsd import TASKS

MAJOR = 2 if AIRFLOW_2 else 3


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
            from airflow.stats import Stats

            logger = SafeStatsdLogger(client, influxdb_tags_enabled=True)
            monkeypatch.setattr(Stats, "instance", logger)
        else:
            from airflow._shared.observability.metrics import stats
            from airflow._shared.observability.metrics.statsd_logger import SafeStatsdLogger

            logger = SafeStatsdLogger(
                client, influxdb_tags_enabled=True, statsd_influxdb_enabled=True
            )
            monkeypatch.setattr(stats, "_backend", logger)
            monkeypatch.setattr(stats, "_export_legacy_names", False)

        def sent() -> list[str]:
            found = []
            try:
                while True:
                    found += server.recv(65536).decode().splitlines()
            except TimeoutError:
                return found

        yield sent


FIGURES = {
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


def of_results(found: list[str]) -> list[str]:
    """The lines of results: what a run that ends sends besides is Airflow's."""
    return [line for line in found if ".ml_pipelines." in line]


def test_every_number_of_a_result_is_a_gauge(ended, lines) -> None:
    ended({"a_task": ("success", {"return_value": FIGURES})}, dag_id="team.v1")
    which = "airflow.ml_pipelines.result,dag_id=team.v1,task_id=a_task,figure="
    assert of_results(lines()) == [
        f"{which}accuracy:0.82|g",
        f"{which}rows:872.0|g",
        f"{which}drift.psi_words:0.31|g",
        f"{which}drift.of.below:0|g",
        f"{which}drift.of.below:-1.0|g",
    ]


def test_a_failed_run_sends_what_its_good_tasks_have_left(ended, lines) -> None:
    accuracy = {"return_value": {"accuracy": 0.5}}
    ended({"train": ("success", accuracy), "gate": ("failed", accuracy)}, dag_id="red")
    which = "airflow.ml_pipelines.result,dag_id=red,task_id=train,figure="
    assert of_results(lines()) == [f"{which}accuracy:0.5|g"]


@pytest.mark.parametrize("result", [None, [1], "text", 7])
def test_a_result_without_figures_sends_none(ended, lines, result) -> None:
    ended({"a_task": ("success", {"return_value": result})})
    assert of_results(lines()) == []


def test_airflow_sends_the_lines_that_the_exporter_is_tested_with(lines, monkeypatch) -> None:
    from airflow.dag_processing import manager
    from airflow.executors.base_executor import BaseExecutor
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.dagrun import DagRun
    from airflow.models.pool import Pool

    of_a_pool = dict.fromkeys(("open", "queued", "running", "deferred", "scheduled"), 1)
    monkeypatch.setattr(Pool, "slots_stats", lambda **_: {"default_pool": of_a_pool})
    files = [SimpleNamespace(num_dags=4, import_errors=1)]
    executor = type("KubernetesExecutor", (BaseExecutor,), {"sync": lambda _: None})
    if AIRFLOW_2:
        executor(parallelism=8).heartbeat()
        parsing = SimpleNamespace(_parsing_start_time=0, _file_stats=dict(enumerate(files)))
        manager.DagFileProcessorManager.emit_metrics(parsing)
    else:
        one = object.__new__(executor)
        one.team_name = None
        one._emit_metrics(6, 2, 1)
        manager.emit_metrics(parse_time=3.25, dag_file_stats=files)
    SchedulerJobRunner.heartbeat_callback(None, session=object())
    SchedulerJobRunner._emit_pool_metrics(SimpleNamespace(_multi_team=False), session=object())
    for dag_id, _, state, _ in TASKS:
        run = DagRun(dag_id=dag_id, run_id=RUN_ID, run_type="manual", start_date=START)
        run.state, run.end_date = state, START + timedelta(seconds=90)
        run._emit_duration_stats_for_finished_state()

    def plain(found: list[str]) -> set[str]:
        return {line.rpartition(":")[0] for line in found}

    told, known = plain(lines()), plain(statsd.lines(MAJOR))
    name = [line.removeprefix("airflow.").partition(",")[0] for line in told]
    needed = {one for one, which in zip(told, name, strict=True) if which in statsd.names(MAJOR)}
    assert needed <= known
    assert {line.removeprefix("airflow.").partition(",")[0] for line in needed} == {
        *("executor.open_slots", "executor.queued_tasks", "executor.running_tasks"),
        *("dag_processing.import_errors", "dag_processing.total_parse_time", "dagbag_size"),
        *("scheduler_heartbeat", "pool.open_slots", "pool.running_slots"),
        *("dagrun.duration.success", "dagrun.duration.failed"),
    }


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
    missing = {name for name in statsd.names(MAJOR) if made.get(name, name) not in text}
    assert missing == set()
