"""What a task costs, against the same pod without Airflow, and what else one waits for.

It needs a release on the embedded cluster (`make up`), and nobody else on the machine.

The unit is a bare pod of a chain of five (see bare_chains.py); the tasks are a chain of five that
do nothing, in a DAG of its own. They take turns, so that a machine which gets slower slows both.
Beside Airflow 2 so does the document's operator on the official chart (reference.py); where Airflow
3's triggerer runs tasks (`pipelines.launch: triggerer`), so do the same chains with workers.

The figures go to build/bench.json, beside those of the other ways to run tasks that were measured
on this machine.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.labels import label
from mlctl.base.names import NAMESPACE
from mlctl.base.paths import BUILD, write_report
from mlctl.base.progress import Phase, Phases, console
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.cluster.provider import breakable
from mlctl.publishing import DAG_SECONDS
from mlctl.stack import Stack
from mlctl.trials import bare_chains, reference
from mlctl.trials.own_dag import OwnDag, published, remove

REPORT = BUILD / "bench.json"
TURNS = 3
"""How often a chain runs alone."""
AT_ONCE = {5: 3, 20: 1}
"""Chains at once, and how often."""
RUN_SECONDS = 1800
POLL_SECONDS = 2.0
COMMITS = 5
DAG_ID = "bench_dag"
WITH_WORKERS = "bench_workers_dag"
"""The same with a limit of its own, which only tasks with workers keep to."""
BUSY = 20
"""Tasks that run at once while memory is looked at, if the release lets so many run."""
BUSY_DAG = {DAG_ID: "bench_busy_dag", WITH_WORKERS: "bench_busy_workers_dag"}
"""DAGs of tasks that run for long, with the same limits."""
MOMENTS = ("queued_when", "start_date", "end_date")
"""Of a task; one that the triggerer runs is not queued."""
TASKS = [f"step_{number}" for number in range(1, 6)]
FIRST = "commit 0"
SHOWN = ("parallel_s", "bare_parallel_s", "commit_to_dag_s", "idle_mib", "idle_millicores")
DAG = f'''"""Five tasks that do nothing, one after the other."""

from datetime import UTC, datetime

from airflow import DAG
from ml_pipelines import PodOperator

try:
    from airflow.sdk import chain
except ImportError:  # Airflow 2
    from airflow.models.baseoperator import chain

for dag_id, busy_dag_id, limits in (
    ("{DAG_ID}", "{BUSY_DAG[DAG_ID]}", {{}}),
    ("{WITH_WORKERS}", "{BUSY_DAG[WITH_WORKERS]}", {{"max_active_tasks": {BUSY}}}),
):
    arguments = {{
        "description": "{FIRST}",
        "schedule": None,
        "start_date": datetime(2021, 1, 1, tzinfo=UTC),
        "catchup": False,
        "max_active_runs": {max(AT_ONCE)},
        **limits,
    }}
    with DAG(dag_id, **arguments):
        chain(*(PodOperator(task_id=name, cmds=["true"]) for name in {TASKS}))
    with DAG(busy_dag_id, **arguments):
        for number in range({BUSY}):
            PodOperator(task_id=f"sleeps_{{number}}", cmds=["sleep", "3600"])
'''


def bare_pod(image: str) -> dict[str, Any]:
    """Return the manifest of a pod like that of a task, which does nothing."""
    return {
        "metadata": {"labels": {"bench": "bare"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "base",
                    "image": image,
                    "command": ["true"],
                    "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def bare(stack: Stack, chains: int) -> dict[str, Any]:
    """Run chains of bare pods at once; see bare_chains.py for what it returns."""
    words = [NAMESPACE, json.dumps(bare_pod(stack.image)), str(chains), str(len(TASKS))]
    source = Path(bare_chains.__file__).read_text(encoding="utf-8")
    return json.loads(
        stack.in_scheduler("python", "-c", source, *words, timeout=RUN_SECONDS).splitlines()[-1]
    )


def tasks(airflow: Airflow, dag_id: str, chains: int, phase: Phase) -> dict[str, Any]:
    """Run chains of tasks of a DAG at once.

    Returns the `makespan`, from the trigger to the last end, and of each task the seconds it waited
    to be started (`queued`) and those from there to its end (`work`). Raises UserError when a run
    fails.
    """
    began = datetime.now(UTC)
    run_ids = [airflow.trigger(dag_id) for _ in range(chains)]

    def all_ended() -> bool:
        going = 0
        for run in airflow.runs(dag_id, run_ids):
            if run["state"] == "failed":
                run_id = run["dag_run_id"]
                raise UserError(f"{dag_id} {run_id} ended as failed; see its logs in the page")
            going += run["state"] != "success"
        phase.note(f"{going} of {chains} chains of tasks go on")
        return not going

    # Seldom, and without a look at logs: bare pods are not watched on this machine's time either.
    until(RUN_SECONDS, all_ended, lambda: f"{dag_id}: {phase.detail}", poll=POLL_SECONDS)
    done = [
        task
        for run_id in run_ids
        for task in airflow.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
    ]
    times = [
        [datetime.fromisoformat(one[key] or one["start_date"]) for key in MOMENTS] for one in done
    ]
    return {
        "makespan": (max(end for _, _, end in times) - began).total_seconds(),
        "first": (min(start for _, start, _ in times) - began).total_seconds(),
        "queued": [(start - queued).total_seconds() for queued, start, _ in times],
        "work": [(end - start).total_seconds() for _, start, end in times],
    }


def commit(
    airflow: Airflow, dag: OwnDag, text: str, words: str, phase: Phase, timeout: float = DAG_SECONDS
) -> float:
    """Return the seconds from a commit to its sight in Airflow.

    ``text`` is that of the DAG with FIRST in it, in whose place the commit has ``words``. Raises
    UserError after ``timeout`` seconds.
    """
    dag.commit(text.replace(FIRST, words))
    started = time.monotonic()
    dag.wait(airflow, phase, words, timeout)
    return time.monotonic() - started


def used(stack: Stack, since: datetime) -> dict[str, dict[str, int]]:
    """Return the memory (`mib`, the working set) and processor (`millicores`) of each component.

    Those are parts of the release, and `worker` all workers that run now. The figures are the
    kubelet's (its Summary API); nothing where one is older than `since`.
    """
    names = {
        pod["metadata"]["name"]: pod["metadata"]["labels"]["component"]
        for pod in stack.kube.items("pods")
        if "component" in pod["metadata"].get("labels", {})
    }
    mib, millicores = Counter[str](), Counter[str]()
    for node in stack.kube.items("nodes"):
        path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
        for pod in json.loads(stack.kube.run("get", "--raw", path).stdout)["pods"]:
            name = names.get(pod["podRef"]["name"])
            for container in pod.get("containers", []) if name else []:
                if datetime.fromisoformat(container["memory"]["time"]) < since:
                    return {}
                mib[name] += container["memory"].get("workingSetBytes", 0) >> 20
                millicores[name] += container["cpu"].get("usageNanoCores", 0) // 1_000_000
    return {"mib": dict(sorted(mib.items())), "millicores": dict(sorted(millicores.items()))}


def pods(stack: Stack, dag_id: str) -> list[dict[str, Any]]:
    """Return the pods that tasks of a DAG do their work in."""
    return stack.kube.items("pods", f"kubernetes_pod_operator=True,dag_id={label(dag_id)}")


def running(stack: Stack, dag_id: str) -> int:
    """Return how many of these pods run."""
    return [pod["status"]["phase"] for pod in pods(stack, dag_id)].count("Running")


def busy(stack: Stack, airflow: Airflow, dag_id: str, count: int, phase: Phase) -> dict[str, Any]:
    """Return what ``used`` says while this many tasks of a DAG run at once.

    Raises UserError when they do not come to that.
    """

    def now() -> int:
        found = running(stack, dag_id)
        phase.note(f"{found} of {count} tasks run")
        return found

    airflow.unpause(dag_id)
    run_id = airflow.trigger(dag_id)
    until(RUN_SECONDS, lambda: now() >= count, f"{dag_id} has not {count} pods that run")
    began = datetime.now(UTC)
    figures = until(RUN_SECONDS, lambda: used(stack, began), "the kubelet has no newer figures")
    airflow.fail(dag_id, run_id)
    until(RUN_SECONDS, lambda: now() == 0, f"pods of {dag_id} still run")
    return {"tasks": count, "mib": figures["mib"]}


def parallelism(stack: Stack) -> int:
    """Return how many workers may run at once."""
    words = ["airflow", "config", "get-value", "core", "parallelism"]
    return int(stack.in_scheduler(*words, timeout=RUN_SECONDS).splitlines()[-1])


def middle(figures: Sequence[float]) -> float:
    """Return the median, to a hundredth of a second."""
    return round(statistics.median(figures), 2)


class Turns:
    """Bare pods and tasks by turns: `pairs` of what `bare` and `tasks` return."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.pairs: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}

    def take(self, name: str, airflow: Airflow, dag_id: str, chains: int, phase: Phase) -> None:
        """Have one turn of each, and keep it under a name. Raises UserError as ``tasks``."""
        phase.note("bare pods")
        pair = bare(self.stack, chains), tasks(airflow, dag_id, chains, phase)
        self.pairs.setdefault(name, []).append(pair)
        pods, work = (one["makespan"] for one in pair)
        phase.say(f"{name}: pods {pods:.1f} s, tasks {work:.1f} s")

    def take_all(self, name: str, airflow: Airflow, dag_id: str, phase: Phase) -> None:
        """Have all turns of a chain that is alone, after one that meets everything cold."""
        phase.note("a chain that is not counted")
        tasks(airflow, dag_id, 1, phase)
        for _ in range(TURNS):
            self.take(name, airflow, dag_id, 1, phase)

    def pod(self, name: str) -> float:
        """Return the seconds of a bare pod, in the turns under a name."""
        return middle([seconds for pods, _ in self.pairs[name] for seconds in pods["pods"]])

    def task(self, name: str) -> float:
        """Return the seconds of a task of a chain, in the turns under a name."""
        return middle([work["makespan"] / len(TASKS) for _, work in self.pairs[name]])

    def figures(self, way: str) -> dict[str, Any]:
        """Return what chains alone say, of which those named ``way`` in each part."""
        runs = [work for _, work in self.pairs[way]]
        return {
            "bare_pod_s": self.pod(way),
            "task_s": {name: self.task(name) for name in self.pairs},
            "bare_pods": {name: round(self.task(name) / self.pod(name), 2) for name in self.pairs},
            "queued_s": middle([one for run in runs for one in run["queued"]]),
            "work_s": middle([one for run in runs for one in run["work"]]),
            "trigger_to_task_s": middle([run["first"] for run in runs]),
        }

    def makespans(self, side: int) -> dict[str, float]:
        """Return those of bare pods (0) or tasks (1), by name."""
        return {
            name: middle([pair[side]["makespan"] for pair in pairs])
            for name, pairs in self.pairs.items()
        }


def processor() -> str:
    """Return what the machine calls its processors, and how many there are."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0] if names else 'unknown'}"


def together(
    earlier: dict[str, Any], machine: str, way: str, now: dict[str, Any]
) -> dict[str, Any]:
    """Return the report with what was measured now, of one way to run tasks.

    What ``earlier`` has of other ways stays if it is of the same machine. What `parallel_s`,
    `commit_to_dag_s` and `idle_mib` say is one pod per task's, if that was measured. ``now`` may
    lack what is measured last.
    """
    ways = earlier.get("ways", {}) if earlier.get("machine") == machine else {}
    ways = ways | {way: now}
    shown = ways.get("one_pod", now)
    return {
        "machine": machine,
        "bare_pod_s": middle([one["bare_pod_s"] for one in ways.values()]),
        "task_s": {name: s for one in ways.values() for name, s in one["task_s"].items()},
        "bare_pods": {name: n for one in ways.values() for name, n in one["bare_pods"].items()},
        "busy": {name: of for one in ways.values() for name, of in one.get("busy", {}).items()},
        **{key: shown[key] for key in SHOWN if key in shown},
        "ways": ways,
    }


def main(stack: Stack) -> None:
    """What a task costs, and when a commit shows in Airflow (build/bench.json).

    Raises UserError where no DAG of its own can be published.
    """
    breakable(stack.cluster)  # Before anything is measured.
    phases = Phases()
    alone, at_once = Turns(stack), Turns(stack)
    at_rest = used(stack, datetime.min.replace(tzinfo=UTC))
    now: dict[str, Any] = {"idle_mib": at_rest["mib"], "idle_millicores": at_rest["millicores"]}
    earlier = json.loads(REPORT.read_text()) if REPORT.exists() else {}

    def keep(**figures: Any) -> None:
        """Write what is measured so far: the next part may not come to its end."""
        now.update(figures)
        write_report(REPORT, together(earlier, processor(), way, now))

    with ExitStack() as at_end:
        airflow = at_end.enter_context(stack.airflow())
        others = (WITH_WORKERS, *BUSY_DAG.values())
        for other in (*others, *(() if airflow.is_3 else (reference.DAG_ID,))):
            at_end.callback(remove, stack, airflow, other)
        dag = at_end.enter_context(published(stack, airflow, DAG_ID, DAG, FIRST, phases))
        way = f"airflow{airflow.version.partition('.')[0]}"
        dag_ids = {way: DAG_ID}
        if stack.settings["launch"] == "triggerer":
            dag_ids, way = {"one_pod": DAG_ID, way: WITH_WORKERS}, "one_pod"
        for dag_id in [DAG_ID, WITH_WORKERS]:
            airflow.unpause(dag_id)
        with phases.phase(f"chains of {len(TASKS)}") as phase:
            for name, dag_id in dag_ids.items():
                alone.take_all(name, airflow, dag_id, phase)
        keep(**alone.figures(way))
        for chains, count in AT_ONCE.items():
            with phases.phase(f"{chains} chains at once") as phase:
                for _ in range(count):
                    at_once.take(str(chains), airflow, DAG_ID, chains, phase)
            keep(bare_parallel_s=at_once.makespans(0), parallel_s=at_once.makespans(1))
        with phases.phase(f"{COMMITS} commits") as phase:
            words = [f"commit {number}" for number in range(1, COMMITS + 1)]
            shown = [commit(airflow, dag, DAG, one, phase) for one in words]
        keep(commit_to_dag_s=round(max(shown), 2), busy={})
        for name in dag_ids:
            with_workers = name != "one_pod"
            count = min(BUSY, parallelism(stack) if with_workers else stack.settings["maxPods"])
            # Of a DAG that sets no limit Airflow starts fewer at once.
            dag_id = BUSY_DAG[WITH_WORKERS if with_workers else DAG_ID]
            with phases.phase(f"{count} tasks at once: {name}") as phase:
                keep(busy=now["busy"] | {name: busy(stack, airflow, dag_id, count, phase)})
        if not airflow.is_3:
            dag.commit(reference.dag(stack.image, TASKS), reference.DAG_ID)
            official = at_end.enter_context(reference.installed(stack, phases))
            with phases.phase(f"the official chart: chains of {len(TASKS)}") as phase:
                alone.take_all("reference", official, reference.DAG_ID, phase)
            keep(**alone.figures(way))
    tell(now)


def tell(now: dict[str, Any]) -> None:
    """Print the figures of one way to run tasks."""
    console.print(f"a bare pod of a chain {now['bare_pod_s']:6.2f} s")
    for name, seconds in now["task_s"].items():
        words = f"{seconds:6.2f} s, {now['bare_pods'][name]:.2f} bare pods"
        console.print(f"a task of a chain     {words} ({name})")
    for count, seconds in now["parallel_s"].items():
        ratio = seconds / now["bare_parallel_s"][count]
        console.print(f"{count:>2} chains at once     {seconds:6.2f} s, {ratio:.2f} times as long")
    for name, of in now["busy"].items():
        more = sum(of["mib"].values()) - sum(now["idle_mib"].values())
        console.print(
            f"{of['tasks']:>2} tasks at once      {more:6.0f} MiB more than at rest ({name})"
        )
    console.print(f"a commit shows in     {now['commit_to_dag_s']:6.2f} s (most of {COMMITS})")
