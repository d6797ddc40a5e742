"""Bringing everything up, with or without a first run of both pipelines.

`run` leaves its summary in build/run.json:

    {"cluster": {...}, "phases": [{"name", "seconds"}],
     "training_dag": {"state", "run_id", "seconds", "accuracy", "baseline_accuracy",
                      "model_version", "gate"},
     "inference_dag": {"state", "run_id", "seconds", "rows", "predictions"}}

A key whose value is not known (the run failed before it) is null.
"""

import csv
import io
from typing import Any

from mlctl.base.cache import lock
from mlctl.base.errors import UserError
from mlctl.base.names import DAG_IDS
from mlctl.base.paths import BUILD, RUN_REPORT, write_report
from mlctl.base.progress import Phase, Phases
from mlctl.commands.runs import run_dag
from mlctl.commands.telling import (
    cluster_report,
    dag_report,
    explain_failure,
    say,
    summary,
    tell_failed_cleaning,
)
from mlctl.publishing import publish
from mlctl.stack import Stack

PREDICTIONS = BUILD / "predictions.csv"


def run(stack: Stack) -> int:
    """Bring everything up, run both DAGs and say what came out."""
    phases = Phases()
    report: dict[str, Any] = {"cluster": {}, "phases": []}
    for dag_id in DAG_IDS:
        report[dag_id] = dag_report(dag_id, {"state": None, "dag_run_id": None}, {})
    try:
        bring_up(stack, phases)
        report["cluster"] = cluster_report(stack)
        with stack.airflow() as airflow:
            for dag_id in DAG_IDS:
                with phases.phase(dag_id) as phase:
                    report[dag_id] = run_dag(stack, airflow, dag_id, phase)
                if report[dag_id]["state"] != "success":
                    explain_failure(airflow, dag_id, report[dag_id]["run_id"])
                    return 1
                tell_failed_cleaning(airflow, dag_id, report[dag_id]["run_id"])
        with phases.phase("fetch the predictions") as phase:
            fetch_predictions(stack, report["inference_dag"], phase)
    finally:
        report["phases"] = phases.report()
        write_report(RUN_REPORT, report)
    summary(stack, report)
    return 0


def up(stack: Stack) -> None:
    """Bring everything up, without a DAG run."""
    bring_up(stack, Phases())
    say(f"ready: `make ui` opens the pages, `make train` starts {DAG_IDS[0]}")


def bring_up(stack: Stack, phases: Phases) -> None:
    """Cluster, images, chart, release and DAGs; each part only if it is not there yet."""
    try:
        with lock(
            f"bring-up-{stack.cluster.name}",
            lambda: say(f"another command brings up {stack.cluster.name}: waiting for it"),
        ):
            release = stack.prepare(phases)
            with phases.phase("release") as phase:
                release.deploy(phase)
                stack.drop_old_images(release, phase)
        with phases.phase("publish the DAGs") as phase:
            commit = publish(stack, phase)
            phase.say(f"Airflow shows {commit[:10]}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stack.after_interrupt()) from None


def fetch_predictions(stack: Stack, report: dict[str, Any], phase: Phase) -> None:
    """Copy the run's predictions from the training storage to build/predictions.csv.

    Raises UserError when the file is missing or has another number of rows than the run said.
    """
    path = f"{stack.run_path('inference_dag', report['run_id'])}/pred.csv"
    with stack.volume() as volume:
        text = volume.read(path)
    rows = sum(1 for _ in csv.DictReader(io.StringIO(text)))
    if rows != report["rows"]:
        raise UserError(f"{path} has {rows} rows, the run wrote {report['rows']}")
    PREDICTIONS.write_text(text)
    report["predictions"] = str(PREDICTIONS)
    phase.say(f"{rows} rows, on the claim {stack.claim} at {path}")


def sync(stack: Stack) -> None:
    """Publish dags/ as it is, committed or not, and wait until Airflow shows it."""
    with Phases().phase("publish the working tree") as phase:
        commit = publish(stack, phase, worktree=True)
    say(f"Airflow shows {commit[:10]}, made from the files as they are now")
