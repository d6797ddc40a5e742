"""What a task costs, against the same pod without Airflow, and when a commit shows in Airflow.

It needs a release on the embedded cluster (`make up`).

The tasks are a chain of five that do nothing, in a DAG that exists only while this runs: it is
added to a clone of the checkout, which the cluster serves meanwhile, and is removed with all that
its runs have left. The figures go to build/bench.json.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.labels import label
from mlctl.base.paths import BUILD, ROOT
from mlctl.base.progress import Phase, Phases, console
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow, run_seconds
from mlctl.cluster.embedded import dag_source
from mlctl.cluster.provider import Breakable, breakable
from mlctl.publishing import DAG_SECONDS, publish
from mlctl.stack import Stack

REPORT = BUILD / "bench.json"
REPEATS = 3
COMMITS = 5
DAG_ID = "bench_dag"
TASKS = [f"step_{number}" for number in range(1, 6)]
DAG = f'''"""Five tasks that do nothing, one after the other."""

from datetime import UTC, datetime

from airflow import DAG
from airflow.models.baseoperator import chain
from ml_pipelines import PodOperator

with DAG(
    dag_id="{DAG_ID}",
    description="commit 0",
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


def commit(clone: Path, dag: str) -> None:
    """Commit a text as the file of the chain."""
    (clone / "dags" / f"{DAG_ID}.py").write_text(dag)
    somebody = dag_source.identity("bench", "bench@ml-pipelines.invalid")
    dag_source.run_git("add", "dags", at=clone)
    words = ["commit", "--quiet", "--message", "Measure a chain of tasks"]
    dag_source.run_git(*words, at=clone, env=somebody)


def publish_clone(cluster: Breakable, clone: Path) -> None:
    """Serve a clone of the checkout that has the chain as one more DAG."""
    dag_source.run_git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone))
    commit(clone, DAG)
    cluster.serve(clone)


def commits(airflow: Airflow, clone: Path, phase: Phase) -> list[float]:
    """Return the seconds from a commit to its sight in Airflow, one for each of some commits."""
    seconds = []
    for number in range(1, COMMITS + 1):
        commit(clone, DAG.replace("commit 0", f"commit {number}"))
        started = time.monotonic()
        wait_for_dag(airflow, phase, f"commit {number}")
        seconds.append(round(time.monotonic() - started, 1))
    return seconds


def wait_for_dag(airflow: Airflow, phase: Phase, description: str) -> None:
    """Wait until Airflow has the chain as described. Raises UserError after DAG_SECONDS."""
    phase.note(f"Airflow does not show {description} yet")
    until(
        DAG_SECONDS,
        lambda: (airflow.dag(DAG_ID) or {}).get("description") == description,
        f"Airflow does not show {description}",
        poll=0.2,
    )


def remove(stack: Stack, airflow: Airflow) -> None:
    """Remove what runs of the chain have left: pods that failed, files, logs, rows."""
    stack.kube.run("delete", "pods", "--selector", f"dag_id={label(DAG_ID)}")
    with stack.volume(read_only=False) as volume:
        volume.run("rm", "-rf", f"/volume/{label(DAG_ID)}")
    stack.in_scheduler("sh", "-c", 'rm -rf "$AIRFLOW_HOME/logs/dag_id=$0"', DAG_ID)
    airflow.request("DELETE", f"dags/{DAG_ID}", good=(404,))


def main(stack: Stack) -> None:
    """What a task costs, and when a commit shows in Airflow (build/bench.json).

    Raises UserError where no DAG of its own can be published.
    """
    cluster = breakable(stack.cluster)
    phases = Phases()
    with phases.phase("bare pods") as phase:
        pods = bare_pods(stack, phase)
    with stack.airflow() as airflow, tempfile.TemporaryDirectory() as scratch:
        try:
            with phases.phase("publish the chain") as phase:
                clone = Path(scratch) / "clone"
                publish_clone(cluster, clone)
                wait_for_dag(airflow, phase, "commit 0")
            with phases.phase(f"{COMMITS} commits") as phase:
                shown = commits(airflow, clone, phase)
            with phases.phase(f"{REPEATS} runs of {len(TASKS)} tasks") as phase:
                runs = chains(airflow, phase)
        finally:
            with phases.phase("publish the checkout again") as phase:
                publish(stack, phase)
                remove(stack, airflow)
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
