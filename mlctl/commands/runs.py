"""Runs that a person asks for, of any DAG, followed to their end."""

import json
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.names import INFERENCE, TRAINING
from mlctl.base.progress import Phase, Phases
from mlctl.clients.airflow import Airflow, AirflowError
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
"""Limit for one of the two runs of `make run`; a task's own limits are in the values."""
FOLLOW_SECONDS = 24 * 3600
"""How long runs of any DAG are followed; they go on after it."""


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


def train(stack: Stack, count: int, params: dict[str, Any]) -> int:
    """Trigger training_dag and wait."""
    return trigger(stack, TRAINING, count, params)


def infer(stack: Stack, count: int, params: dict[str, Any]) -> int:
    """Trigger inference_dag and wait."""
    return trigger(stack, INFERENCE, count, params)


def trigger(stack: Stack, dag_id: str, count: int, params: dict[str, Any]) -> int:
    """Trigger runs of any DAG at once, all with the same parameters, and wait for all.

    Raises UserError for a DAG that Airflow does not show, and for a parameter that it refuses.
    """
    phases = Phases()
    with stack.airflow() as airflow:
        look_for(airflow, dag_id)
        with phases.phase(f"{count} x {dag_id}" if count > 1 else dag_id) as phase:
            run_ids = [start(airflow, dag_id, params) for _ in range(count)]
            # Not before: a refusal changes nothing.
            airflow.unpause(dag_id)
            number = {run_id: f"run {i}: " for i, run_id in enumerate(run_ids, 1)}
            with going_on_after_interrupt():
                ended = airflow.wait_for_runs(
                    dag_id,
                    run_ids,
                    timeout=FOLLOW_SECONDS,
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
                    f"{stack.claim}:{stack.run_path(dag_id, one['dag_run_id'])}/pred.csv"
                )
            say(" ".join(f"{key}={_plain(value)}" for key, value in report.items()))
        for one in ended:
            tell = explain_failure if one in failed else tell_failed_cleaning
            tell(airflow, dag_id, one["dag_run_id"])
    return 1 if failed else 0


def look_for(airflow: Airflow, dag_id: str) -> None:
    """Raise UserError with the DAGs that there are when this is none of them."""
    known = [dag["dag_id"] for dag in airflow.dags()]
    if dag_id not in known:
        raise UserError(
            f"Airflow shows no DAG {dag_id}; there are {', '.join(known) or 'none'}. "
            "`make sync` publishes a file that is not committed, and names one with a fault"
        )


def start(airflow: Airflow, dag_id: str, params: dict[str, Any]) -> str:
    """Trigger one run and return its id.

    Raises UserError with Airflow's own words, and where the parameters are described, when it
    refuses one.
    """
    try:
        return airflow.trigger(dag_id, params)
    except AirflowError as error:
        if not params:
            raise
        raise UserError(
            f"{error}; PARAMS={json.dumps(params)}. What {dag_id} takes stands in the form of its "
            "Trigger button (`make ui`)"
        ) from error


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
