"""Runs of the pipelines that a person asks for, followed to their end."""

from typing import Any

from mlctl.base.names import INFERENCE, TRAINING
from mlctl.base.progress import Phase, Phases
from mlctl.clients.airflow import Airflow
from mlctl.commands.telling import (
    dag_report,
    explain_failure,
    going_on_after_interrupt,
    say,
    tell_change,
    tell_failed_cleaning,
)
from mlctl.stack import Stack

RUN_SECONDS = 3600
"""Limit for one `training_dag` or `inference_dag` run; a task's own limits are in the values."""


def run_dag(stack: Stack, airflow: Airflow, dag_id: str, phase: Phase) -> dict[str, Any]:
    """Trigger one run, show it until it has ended and return its entry for build/run.json."""
    airflow.unpause(dag_id)
    run_id = airflow.trigger(dag_id)
    phase.say(f"run {run_id}")
    with going_on_after_interrupt():
        ended = airflow.wait_for_run(
            dag_id,
            run_id,
            timeout=RUN_SECONDS,
            on_change=lambda _, task: tell_change(phase.say, task),
            note=phase.note,
        )
    results = airflow.results(dag_id, run_id)
    return dag_report(dag_id, ended, results)


def train(stack: Stack, count: int) -> int:
    """Trigger training_dag and wait."""
    return trigger(stack, TRAINING, count)


def infer(stack: Stack, count: int) -> int:
    """Trigger inference_dag and wait."""
    return trigger(stack, INFERENCE, count)


def trigger(stack: Stack, dag_id: str, count: int) -> int:
    """Trigger runs of a DAG at once, wait for all, and return the exit status."""
    phases = Phases()
    with stack.airflow() as airflow:
        airflow.unpause(dag_id)
        with phases.phase(f"{count} x {dag_id}" if count > 1 else dag_id) as phase:
            run_ids = [airflow.trigger(dag_id) for _ in range(count)]
            number = {run_id: f"run {i}: " for i, run_id in enumerate(run_ids, 1)}
            with going_on_after_interrupt():
                ended = airflow.wait_for_runs(
                    dag_id,
                    run_ids,
                    timeout=RUN_SECONDS * count,
                    on_change=lambda run_id, task: tell_change(
                        phase.say, task, number[run_id] if count > 1 else ""
                    ),
                    note=phase.note,
                )
        failed = [one for one in ended if one["state"] != "success"]
        for one in ended:
            results = airflow.results(dag_id, one["dag_run_id"])
            report = dag_report(dag_id, one, results)
            if dag_id == INFERENCE and report["rows"] is not None:
                report["predictions"] = (
                    f"{stack.settings['storage']['claimName']}:"
                    f"{stack.run_path(dag_id, one['dag_run_id'])}/pred.csv"
                )
            say(" ".join(f"{key}={value}" for key, value in report.items()))
        for one in ended:
            tell = explain_failure if one in failed else tell_failed_cleaning
            tell(airflow, dag_id, one["dag_run_id"])
    return 1 if failed else 0
