"""What becomes of the figures with many DAGs, many queued runs, and many tasks that wait.

It needs a release on the embedded cluster (`make up`), and nobody else on the machine. The DAGs are
its own and are removed. The figures go to build/growth.json:

    {"airflow", "machine",
     "files": [{"files", "shown_s", "commit_to_dag_s", "use"}],
     "queued": [{"runs", "task_s"}],
     "waiting": {"tasks", "shown_s", "running_s", "ended_s", "use"}}

`shown_s` are the seconds until Airflow shows all of them, from the commit or the trigger, `use` is
what `bench.used` says then. Tasks wait in a triggerer only where it runs them (`pipelines.launch`):
`running_s` are the seconds until as many have a pod that runs as `pipelines.maxPods` lets.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from mlctl.base.paths import BUILD, write_report
from mlctl.base.progress import Phase, Phases, console
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.cluster.provider import breakable
from mlctl.stack import Stack
from mlctl.trials import bench
from mlctl.trials.own_dag import OwnDag, published, remove

REPORT = BUILD / "growth.json"
FILES = (10, 100, 1000)
QUEUED = (0, 500)
WAITING = 1000
SECONDS = 3600
CHAIN, QUEUE, WAIT = "growth_chain", "growth_queue", "growth_wait"
HEAD = f'''"""DAGs of `make growth`."""

from datetime import UTC, datetime

from airflow import DAG
from ml_pipelines import PodOperator

try:
    from airflow.sdk import chain
except ImportError:  # Airflow 2
    from airflow.models.baseoperator import chain

arguments = {{
    "description": "{bench.FIRST}",
    "schedule": None,
    "start_date": datetime(2021, 1, 1, tzinfo=UTC),
    "catchup": False,
    "max_active_runs": 1,
}}
'''
DAG = f'''{HEAD}
with DAG("{CHAIN}", **arguments):
    chain(*(PodOperator(task_id=name, cmds=["true"]) for name in {bench.TASKS}))
with DAG("{QUEUE}", **arguments):
    PodOperator(task_id="sleeps", cmds=["sleep", "{SECONDS}"])
'''
WAIT_DAG = f'''{HEAD}
with DAG("{WAIT}", **arguments):
    for number in range({WAITING}):
        PodOperator(task_id=f"sleeps_{{number}}", cmds=["sleep", "{SECONDS}"])
'''
ONE_OF_MANY = '''"""One of many."""

from datetime import UTC, datetime

from airflow import DAG
from ml_pipelines import PodOperator

with DAG("{}", schedule=None, start_date=datetime(2021, 1, 1, tzinfo=UTC), tags=["growth"]):
    PodOperator(task_id="step", cmds=["true"])
'''


def name_of(number: int) -> str:
    """Return the id of one of many DAGs."""
    return f"growth_{number:04}"


def use(stack: Stack, phase: Phase) -> dict[str, Any]:
    """Return what each component uses from now on, by the kubelet's next figures."""
    phase.note("waiting for the kubelet's next figures")
    began = datetime.now(UTC)
    return until(SECONDS, lambda: bench.used(stack, began), "the kubelet has no newer figures")


def seconds_until(count: int, there: Callable[[], int], phase: Phase) -> float:
    """Return the seconds until so many are there. Raises UserError after SECONDS."""
    began = time.monotonic()

    def reached() -> bool:
        now = there()
        phase.note(f"{now} of {count}")
        return now == count

    until(SECONDS, reached, lambda: f"there are only {phase.detail}", poll=0.5)
    return round(time.monotonic() - began, 1)


def files(stack: Stack, airflow: Airflow, dag: OwnDag, count: int, phase: Phase) -> dict[str, Any]:
    """Return the figures with this many files of DAGs, those of the release not counted."""

    def there() -> int:
        return int(airflow.get("dags", tags="growth", limit=1)["total_entries"])

    dag.commit_all({name: ONE_OF_MANY.format(name) for name in map(name_of, range(count))})
    shown = seconds_until(count, there, phase)
    seconds = bench.commit(airflow, dag, DAG, f"beside {count} files", phase, SECONDS)
    figures = {"files": count, "shown_s": shown, "commit_to_dag_s": round(seconds, 2)}
    return {**figures, "use": use(stack, phase)}


@contextmanager
def failed(airflow: Airflow, dag_id: str) -> Iterator[list[str]]:
    """Yield a list for ids of runs, which are made to fail at the end."""
    run_ids: list[str] = []
    try:
        yield run_ids
    finally:
        # The newest first: behind a run that ends the next one would begin.
        for run_id in reversed(run_ids):
            airflow.fail(dag_id, run_id)


def queued(airflow: Airflow, count: int, phase: Phase) -> dict[str, Any]:
    """Return what a task of a chain costs beside this many runs that wait for another one."""
    with failed(airflow, QUEUE) as run_ids:
        for number in range(count + 1 if count else 0):
            phase.note(f"{number} runs triggered")
            run_ids.append(airflow.trigger(QUEUE))
        turns = [bench.tasks(airflow, CHAIN, 1, phase) for _ in range(bench.TURNS)]
    return {
        "runs": count,
        "task_s": bench.middle([turn["makespan"] / len(bench.TASKS) for turn in turns]),
    }


def waiting(stack: Stack, airflow: Airflow, dag: OwnDag, phase: Phase) -> dict[str, Any]:
    """Return the figures with WAITING tasks in the triggerer, for a pod or in one.

    Their DAG is there for this time only: its file takes long to read.
    """

    def deferred() -> int:
        path = f"dags/{WAIT}/dagRuns/{run_ids[0]}/taskInstances"
        return int(airflow.get(path, state="deferred", limit=1)["total_entries"])

    def running() -> int:
        return bench.running(stack, WAIT)

    phase.note(f"Airflow does not show {WAIT} yet")
    dag.commit(WAIT_DAG, WAIT)
    until(SECONDS, lambda: airflow.dag(WAIT), f"Airflow does not show {WAIT}")
    airflow.unpause(WAIT)
    with failed(airflow, WAIT) as run_ids:
        run_ids.append(airflow.trigger(WAIT))
        shown = seconds_until(WAITING, deferred, phase)
        most = min(WAITING, stack.settings["maxPods"])
        running_s = round(shown + seconds_until(most, running, phase), 1)
        at_work = use(stack, phase)
    began = time.monotonic()
    until(SECONDS, lambda: not bench.pods(stack, WAIT), "pods are left")
    ended = round(time.monotonic() - began, 1)
    dag.commit("", WAIT)
    figures = {"tasks": WAITING, "shown_s": shown, "running_s": running_s}
    return {**figures, "ended_s": ended, "use": at_work}


def main(stack: Stack) -> None:
    """Many DAGs, queued runs and waiting tasks: what becomes of the figures (build/growth.json).

    Raises UserError where no DAG of its own can be published.
    """
    breakable(stack.cluster)  # Before anything is measured.
    phases = Phases()
    report: dict[str, Any] = {"machine": bench.processor(), "files": [], "queued": []}

    def keep() -> None:
        """Write what is measured so far: the next part may not come to its end."""
        write_report(REPORT, report)

    with ExitStack() as at_end:
        airflow = at_end.enter_context(stack.airflow())
        report["airflow"] = airflow.version
        # Behind the block below: what still has a file comes back.
        at_end.callback(forget, airflow)
        for other in (QUEUE, WAIT):
            at_end.callback(remove, stack, airflow, other)
        dag = at_end.enter_context(published(stack, airflow, CHAIN, DAG, bench.FIRST, phases))
        for dag_id in (CHAIN, QUEUE):
            airflow.unpause(dag_id)
        for count in QUEUED:
            with phases.phase(f"{count} queued runs") as phase:
                report["queued"].append(queued(airflow, count, phase))
            keep()
        if stack.settings["launch"] == "triggerer":
            with phases.phase(f"{WAITING} tasks that wait") as phase:
                report["waiting"] = waiting(stack, airflow, dag, phase)
            keep()
        for count in FILES:
            with phases.phase(f"{count} files of DAGs") as phase:
                report["files"].append(files(stack, airflow, dag, count, phase))
            keep()
    for one in report["queued"]:
        console.print(f"a task beside {one['runs']:>4} queued runs {one['task_s']:7.2f} s")
    for one in report["files"]:
        words = f"{one['shown_s']:7.1f} s to show, {one['commit_to_dag_s']:.1f} s for a commit"
        console.print(f"{one['files']:>4} files of DAGs {words}")
    if found := report.get("waiting"):
        mib = found["use"]["mib"]["triggerer"]
        words = f"{found['shown_s']:.0f} s to get there, a triggerer of {mib} MiB"
        console.print(f"{found['tasks']} tasks that wait: {words}")


def forget(airflow: Airflow) -> None:
    """Remove the rows of the many DAGs."""
    for number in range(max(FILES)):
        airflow.request("DELETE", f"dags/{name_of(number)}", good=(404,))
