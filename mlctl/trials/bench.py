"""What a task costs, against the same pod without Airflow, and when a commit shows in Airflow.

It needs a release on the embedded cluster (`make up`).

The tasks are a chain of five that do nothing, in a DAG of its own. The figures go to
build/bench.json.
"""

import json
import statistics
import time
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.paths import BUILD
from mlctl.base.progress import Phase, Phases, console
from mlctl.clients.airflow import Airflow, run_seconds
from mlctl.cluster.provider import breakable
from mlctl.stack import Stack
from mlctl.trials.own_dag import OwnDag, published

REPORT = BUILD / "bench.json"
REPEATS = 3
COMMITS = 5
DAG_ID = "bench_dag"
TASKS = [f"step_{number}" for number in range(1, 6)]
FIRST = "commit 0"
DAG = f'''"""Five tasks that do nothing, one after the other."""

from datetime import UTC, datetime

from airflow import DAG
from airflow.models.baseoperator import chain
from ml_pipelines import PodOperator

with DAG(
    dag_id="{DAG_ID}",
    description="{FIRST}",
    schedule=None,
    start_date=datetime(2021, 1, 1, tzinfo=UTC),
    catchup=False,
) as dag:
    chain(*(PodOperator(task_id=name, cmds=["true"]) for name in {TASKS}))
'''


def bare_pods(stack: Stack, phase: Phase) -> list[float]:
    """Return the seconds from asking for a pod to the end of a command in it, one for each task."""
    seconds = []
    for number, _ in enumerate(TASKS, 1):
        phase.note(f"pod {number} of {len(TASKS)}")
        started = time.monotonic()
        with stack.volume() as volume:
            volume.run("true")
            seconds.append(time.monotonic() - started)
    return seconds


def chains(airflow: Airflow, phase: Phase) -> list[float]:
    """Return the seconds of each run of the chain, by Airflow's clock."""
    airflow.unpause(DAG_ID)
    seconds = []
    for number in range(1, REPEATS + 1):
        run_id = airflow.trigger(DAG_ID)
        run = airflow.wait_for_run(
            DAG_ID,
            run_id,
            timeout=600,
            note=lambda text, number=number: phase.note(f"run {number} of {REPEATS}: {text}"),
        )
        if run["state"] != "success":
            raise UserError(f"{DAG_ID} {run_id} ended as {run['state']}; see its logs in the page")
        seconds.append(run_seconds(run) or 0.0)
        phase.say(f"run {number} of {REPEATS}: {seconds[-1]:.1f} s")
    return seconds


def commits(airflow: Airflow, dag: OwnDag, phase: Phase) -> list[float]:
    """Return the seconds from a commit to its sight in Airflow, one for each of some commits."""
    seconds = []
    for number in range(1, COMMITS + 1):
        dag.commit(DAG.replace(FIRST, f"commit {number}"))
        started = time.monotonic()
        dag.wait(airflow, phase, f"commit {number}")
        seconds.append(round(time.monotonic() - started, 1))
    return seconds


def main(stack: Stack) -> None:
    """What a task costs, and when a commit shows in Airflow (build/bench.json).

    Raises UserError where no DAG of its own can be published.
    """
    breakable(stack.cluster)  # Before anything is measured.
    phases = Phases()
    with phases.phase("bare pods") as phase:
        pods = bare_pods(stack, phase)
    with (
        stack.airflow() as airflow,
        published(stack, airflow, DAG_ID, DAG, FIRST, phases) as dag,
    ):
        with phases.phase(f"{COMMITS} commits") as phase:
            shown = commits(airflow, dag, phase)
        with phases.phase(f"{REPEATS} runs of {len(TASKS)} tasks") as phase:
            runs = chains(airflow, phase)
    report: dict[str, Any] = {
        "bare_pod_seconds": round(statistics.median(pods), 2),
        "task_seconds": round(statistics.median(runs) / len(TASKS), 2),
        "commit_seconds": max(shown),
        "bare_pods": [round(one, 2) for one in pods],
        "runs_of_five_tasks": runs,
        "commits": shown,
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"a bare pod        {report['bare_pod_seconds']:6.2f} s (median of {len(pods)})")
    console.print(f"a task in a chain {report['task_seconds']:6.2f} s (median of {len(runs)} runs)")
    console.print(f"a commit shows in {report['commit_seconds']:6.2f} s (most of {len(shown)})")
