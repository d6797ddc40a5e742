"""The commands of the Makefile that need the whole stack: run, up, train, infer, status ...

`run` does everything and leaves its summary in build/run.json:

    {"cluster": {...}, "phases": [{"name", "seconds"}],
     "training_dag": {"state", "run_id", "seconds", "accuracy", "baseline_accuracy",
                      "model_version"},
     "inference_dag": {"state", "run_id", "seconds", "rows", "predictions"}}

A key whose value is not known (the run failed before it) is null.
"""

import argparse
import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ml_pipelines.runs import run_directory
from mlctl.base.cache import lock
from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import BUILD, RUN_REPORT
from mlctl.base.progress import Phase, Phases, console
from mlctl.clients.airflow import Airflow, Task, container_lines, run_seconds, telling_lines
from mlctl.clients.forward import Forward, free_port
from mlctl.clients.kube import is_ready, restarts, state
from mlctl.commands.cluster import show_logs, show_status
from mlctl.release.release import NAMESPACE, RELEASE
from mlctl.stack import (
    AIRFLOW_PORT,
    AIRFLOW_SERVICE,
    DAG_IDS,
    MLFLOW_PORT,
    MLFLOW_SERVICE,
    Stack,
)

RUN_SECONDS = 3600
"""Limit for one `training_dag` or `inference_dag` run; a task's own limits are in the values."""

PREDICTIONS = BUILD / "predictions.csv"
PASSWORD_COMMAND = "make password"


def say(text: str = "") -> None:
    """Print a line as it is (brackets are no markup)."""
    console.print(text, markup=False)


# run, up


def run(stack: Stack) -> int:
    """Bring everything up, run both DAGs and say what came out. Returns the exit status."""
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
        RUN_REPORT.parent.mkdir(parents=True, exist_ok=True)
        RUN_REPORT.write_text(json.dumps(report, indent=2) + "\n")
    summary(stack, report)
    return 0


def up(stack: Stack) -> int:
    """Bring everything up, without a DAG run."""
    bring_up(stack, Phases())
    say(f"ready: `make ui` opens the pages, `make train` starts {DAG_IDS[0]}")
    return 0


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
            commit = stack.publish(phase)
            phase.say(f"Airflow shows {commit[:10]}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stack.after_interrupt()) from None


def cluster_report(stack: Stack) -> dict[str, Any]:
    """Return what build/run.json says about the cluster."""
    version = json.loads(stack.kube.run("version", "--output", "json").stdout)
    return {
        "name": stack.cluster.name,
        "kubernetes": version["serverVersion"]["gitVersion"],
        "kubeconfig": str(stack.cluster.kubeconfig),
        "nodes": [node["metadata"]["name"] for node in stack.kube.items("nodes")],
        "namespace": NAMESPACE,
        "release": RELEASE,
    }


# DAG runs


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


@contextmanager
def going_on_after_interrupt() -> Iterator[None]:
    """Say after a Ctrl-C that it ended the waiting only."""
    try:
        yield
    except KeyboardInterrupt:
        words = "what was triggered goes on in Airflow, `make logs` shows it"
        raise KeyboardInterrupt(words) from None


def dag_report(
    dag_id: str, ended: dict[str, Any], results: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the entry of a run for build/run.json, from its state and its tasks' results."""
    report = {
        "state": ended["state"],
        "run_id": ended["dag_run_id"],
        "seconds": run_seconds(ended),
    }
    if dag_id == "training_dag":
        trained = results.get("train_model", {})
        report["accuracy"] = trained.get("accuracy")
        report["baseline_accuracy"] = trained.get("baseline_accuracy")
        report["model_version"] = results.get("upload_model", {}).get("version")
    else:
        predicted = results.get("run_inference", {})
        report["rows"] = predicted.get("rows")
        report["predictions"] = None
    return report


def tell_change(tell: Callable[[str], None], task: Task, prefix: str = "") -> None:
    """Tell that a task began or ended; the states between are no news."""
    seconds = f" in {task.seconds:.1f} s" if task.seconds is not None else ""
    words = {
        "running": "started" if task.try_number < 2 else f"started (try {task.try_number})",
        "success": f"succeeded{seconds}",
        "failed": f"FAILED{seconds}",
        "up_for_retry": "failed, will be tried again",
        "upstream_failed": "not started: a task before it failed",
    }
    if task.state in words:
        tell(f"{prefix}{task.task_id} {words[task.state]}")


def fetch_predictions(stack: Stack, report: dict[str, Any], phase: Phase) -> None:
    """Copy the run's predictions from the training storage to build/predictions.csv.

    Raises UserError when the file is missing or has another number of rows than the run said.
    """
    path = f"{stack.run_path('inference_dag', report['run_id'])}/pred.csv"
    text = stack.read_volume(path)
    rows = sum(1 for _ in csv.DictReader(io.StringIO(text)))
    if rows != report["rows"]:
        raise UserError(f"{path} has {rows} rows, the run wrote {report['rows']}")
    PREDICTIONS.write_text(text)
    report["predictions"] = str(PREDICTIONS)
    phase.say(f"{rows} rows, on the claim {stack.settings['storage']['claimName']} at {path}")


def explain_failure(airflow: Airflow, dag_id: str, run_id: str) -> None:
    """Print why a run failed: the last log lines of the failed tasks, and what to try."""
    for task in airflow.tasks(dag_id, run_id):
        if task.state != "failed":
            continue
        say(f"\n{dag_id}: {task.task_id} failed in try {task.try_number}; its last lines:")
        for line in telling_lines(airflow.log(dag_id, run_id, task.task_id, task.try_number)):
            say(f"    {line}")
    command = "make train" if dag_id == "training_dag" else "make infer"
    say("\nwhat to try:")
    say("    make logs      the newest runs, task by task")
    say("    make status    pods that are not well")
    say("    make ui        the whole log, in the grid view of the run")
    say(f"    {command:<14} the run again, when the cause is mended (`make run` works too)")


def tell_failed_cleaning(airflow: Airflow, dag_id: str, run_id: str) -> None:
    """Say what a successful run has left behind when its clean_up, a teardown, has failed."""
    for task in airflow.tasks(dag_id, run_id):
        if task.state == "failed":
            say(
                f"{dag_id}: the run succeeded, but {task.task_id} failed: files are left in "
                f"{dag_id}/{run_directory(run_id)} on the training storage. Its log says why; "
                f"clear {task.task_id} of {run_id} in the page to try again"
            )


def summary(stack: Stack, report: dict[str, Any]) -> None:
    """Print what `make run` did."""
    trained, predicted = report["training_dag"], report["inference_dag"]
    user, _ = stack.credentials()
    rows = [
        ("training_dag", f"{trained['state']} in {trained['seconds']:.0f} s"),
        ("  accuracy", f"{trained['accuracy']:.3f} (baseline {trained['baseline_accuracy']:.3f})"),
        ("  model", f"{stack.settings['registry']['modelName']} {trained['model_version']}"),
        ("inference_dag", f"{predicted['state']} in {predicted['seconds']:.0f} s"),
        ("  predictions", f"{predicted['predictions']} ({predicted['rows']} rows)"),
        ("pages", f"`make ui` forwards Airflow and MLflow; user {user}"),
        ("password", f"`{PASSWORD_COMMAND}` prints it"),
        ("kubeconfig", report["cluster"]["kubeconfig"]),
        ("this summary", str(RUN_REPORT)),
    ]
    say()
    for name, text in rows:
        say(f"{name:<15} {text}")


def trigger(stack: Stack, dag_id: str) -> int:
    """Trigger N runs of a DAG (variable N, default 1), wait for all, and return the status."""
    count = run_count()
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
            if dag_id == "inference_dag" and report["rows"] is not None:
                report["predictions"] = (
                    f"{stack.settings['storage']['claimName']}:"
                    f"{stack.run_path(dag_id, one['dag_run_id'])}/pred.csv"
                )
            say(" ".join(f"{key}={value}" for key, value in report.items()))
        for one in ended:
            tell = explain_failure if one in failed else tell_failed_cleaning
            tell(airflow, dag_id, one["dag_run_id"])
    return 1 if failed else 0


def run_count(default: int = 1) -> int:
    """Return the variable N. Raises UserError when it is no number from 1 to 100."""
    text = os.environ.get("N") or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise UserError(f"N={text} is not a number from 1 to 100")
    return int(text)


# Looking


def status(stack: Stack) -> int:
    """Print the cluster, the release, its pods and the newest runs."""
    if show_status(stack.cluster) != 0 and not stack.cluster.status():
        return 1
    found = stack.release().status()
    if found is None:
        say(f"release {RELEASE}: not installed (`make up`)")
        return 1
    say(f"release {RELEASE}: {found.state}, revision {found.revision}")
    pods = stack.kube.items("pods")
    for pod in pods:
        times = f", {restarts(pod)} restarts" if restarts(pod) else ""
        mark = "ready" if is_ready(pod) else "NOT READY"
        say(f"  {pod['metadata']['name']:<55} {mark} ({state(pod)}{times})")
    with stack.airflow() as airflow:
        for dag_id in DAG_IDS:
            newest = airflow.newest_run(dag_id)
            words = f"{newest['state']}, {newest['dag_run_id']}" if newest else "no run yet"
            say(f"{dag_id}: {words}")
    return 0


def logs(stack: Stack, lines: int = 12) -> int:
    """Print the tasks of the newest run of each DAG, with the last lines of their logs.

    With the variable C: the log of that part of the cluster.
    """
    if os.environ.get("C"):
        return show_logs(stack.cluster, os.environ["C"])
    with stack.airflow() as airflow:
        for dag_id in DAG_IDS:
            newest = airflow.newest_run(dag_id)
            if newest is None:
                say(f"{dag_id}: no run yet")
                continue
            say(f"{dag_id}: {newest['dag_run_id']} {newest['state']}")
            for task in airflow.tasks(dag_id, newest["dag_run_id"]):
                seconds = f" {task.seconds:.1f} s" if task.seconds is not None else ""
                say(f"  {task.task_id}: {task.state}{seconds}")
                if task.try_number < 1:
                    continue
                log = airflow.log(dag_id, newest["dag_run_id"], task.task_id, task.try_number)
                bad = task.state in {"failed", "up_for_retry"}
                shown = telling_lines(log, lines) if bad else container_lines(log)[-lines:]
                for line in shown:
                    say(f"    {line}")
    parts = ", ".join(stack.cluster.log_files())
    if parts:
        say(f"the cluster's own parts, each by `make logs C=name`: {parts}")
    return 0


def password(stack: Stack) -> int:
    """Print the password of the Airflow pages."""
    print(stack.credentials()[1])
    return 0


def ui(stack: Stack) -> int:
    """Forward the pages until Ctrl-C."""
    user, _ = stack.credentials()
    pages = [("Airflow", AIRFLOW_SERVICE, AIRFLOW_PORT), ("MLflow", MLFLOW_SERVICE, MLFLOW_PORT)]
    forwards = []
    for name, service, port in pages:
        if stack.kube.get("service", service) is None:
            say(f"{name}: not part of this release")
            continue
        forward = Forward(stack.kube, service, port, free_port(port))
        forward.ensure()
        forwards.append(forward)
        login = f"   user {user}, password: {PASSWORD_COMMAND}" if name == "Airflow" else ""
        say(f"{name:<8} {forward.url}{login}")
    say("Ctrl-C ends it")
    try:
        while True:
            for forward in forwards:
                forward.ensure(timeout=600)
            time.sleep(1)
    except KeyboardInterrupt:
        say()
    finally:
        for forward in forwards:
            forward.close()
    return 0


def sync(stack: Stack) -> int:
    """Publish the working tree's dags/, committed or not, and wait until Airflow shows it."""
    with Phases().phase("publish the working tree") as phase:
        commit = stack.publish(phase, worktree=True)
    say(f"Airflow shows {commit[:10]}, made from the files as they are now")
    return 0


COMMANDS: dict[str, Callable[[Stack], int]] = {
    "run": run,
    "up": up,
    "train": lambda stack: trigger(stack, "training_dag"),
    "infer": lambda stack: trigger(stack, "inference_dag"),
    "status": status,
    "logs": logs,
    "password": password,
    "ui": ui,
    "sync": sync,
}


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Run the pipelines on a cluster.")
    parser.add_argument("command", choices=COMMANDS)
    return COMMANDS[parser.parse_args().command](Stack())


if __name__ == "__main__":
    run_main(main)
