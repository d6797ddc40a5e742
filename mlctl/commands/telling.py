"""Sentences about runs and their tasks, for people at a terminal."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlctl.base.labels import run_directory
from mlctl.base.names import DAG_IDS, INFERENCE, NAMESPACE, RELEASE, TRAINING
from mlctl.base.paths import RUN_REPORT
from mlctl.base.progress import console, show_table
from mlctl.clients.airflow import Airflow, Task, run_seconds, telling_lines
from mlctl.stack import Stack

IMAGE_KEYS = ("image", "image_digest")
"""What the operator adds to each result."""
PASSWORD_COMMAND = "make password"
COMMANDS = {TRAINING: "make train", INFERENCE: "make infer"}


def say(text: str = "") -> None:
    """Print a line as it is (brackets are no markup)."""
    console.print(text, markup=False)


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
    """Return the entry of a run for build/run.json, from its state and its tasks' results.

    For a DAG that is not this project's, the results are in it as they are.
    """
    report = {
        "state": ended["state"],
        "run_id": ended["dag_run_id"],
        "seconds": run_seconds(ended),
    }
    if ended.get("conf"):
        report["params"] = ended["conf"]
    if dag_id == TRAINING:
        trained = results.get("train_model", {})
        report["accuracy"] = trained.get("accuracy")
        report["baseline_accuracy"] = trained.get("baseline_accuracy")
        report["model_version"] = results.get("upload_model", {}).get("version")
        gate = results.get("gate_model", {})
        report["gate"] = f"{gate['decision']}: {gate['reason']}" if gate else None
    elif dag_id == INFERENCE:
        # Of shards the results are those of parts.
        predicted = results.get("join_predictions") or results.get("run_inference", {})
        report["rows"] = predicted.get("rows")
        report["predictions"] = None
    else:
        report |= {
            f"{task_id}.{key}": value
            for task_id, result in results.items()
            for key, value in result.items()
            if key not in IMAGE_KEYS
        }
    return report


def tell_change(tell: Callable[[str], None], task: Task, prefix: str = "") -> None:
    """Tell that a task began or ended; what is between is no news."""
    seconds = f" in {task.seconds:.1f} s" if task.seconds is not None else ""
    words = {
        "running": "started" if task.try_number < 2 else f"started (try {task.try_number})",
        "success": f"succeeded{seconds}",
        "failed": f"FAILED{seconds}",
        "up_for_retry": "failed, will be tried again",
        "skipped": "skipped",
        "upstream_failed": "not started: a task before it failed",
    }
    if task.waits_for_a_person:
        tell(f"{prefix}{task.name} waits for a person: approve in its page, or by `make approve`")
    elif task.stage in words:
        tell(f"{prefix}{task.name} {words[task.stage]}")


def explain_failure(airflow: Airflow, dag_id: str, run_id: str) -> None:
    """Print why a run failed: the last log lines of the failed tasks, and what to try."""
    for task in airflow.tasks(dag_id, run_id):
        if task.state != "failed":
            continue
        say(f"\n{dag_id}: {task.name} failed in try {task.try_number}; its last lines:")
        for line in telling_lines(airflow.log_end(dag_id, run_id, task)):
            say(f"    {line}")
    command = COMMANDS.get(dag_id, f"make trigger DAG={dag_id}")
    say("\nwhat to try:")
    say("    make logs      the newest runs, task by task")
    say("    make status    pods that are not well")
    say("    make ui        the whole log, in the grid view of the run")
    say(f"    {command}    the run again, when the cause is mended (`make run` works too)")


def tell_failed_cleaning(airflow: Airflow, dag_id: str, run_id: str) -> None:
    """Say which task of a successful run has failed: clean_up, a teardown, leaves files behind."""
    for task in airflow.tasks(dag_id, run_id):
        if task.state == "failed":
            place = f"{run_directory(dag_id, run_id)} on the training storage"
            left = f": files are left in {place}" if dag_id in DAG_IDS else ""
            say(
                f"{dag_id}: the run succeeded, but {task.name} failed{left}. Its log says why; "
                f"clear {task.name} of {run_id} in the page to try again"
            )


def summary(stack: Stack, report: dict[str, Any]) -> None:
    """Print what `make run` did."""
    trained, predicted = report["training_dag"], report["inference_dag"]
    user, _ = stack.credentials()
    gate = f" ({trained['gate']})" if trained["gate"] else ""
    rows = [
        ("training_dag", f"{trained['state']} in {trained['seconds']:.0f} s"),
        ("  accuracy", f"{trained['accuracy']:.3f} (baseline {trained['baseline_accuracy']:.3f})"),
        ("  model", f"{stack.settings['model']['name']} {trained['model_version']}{gate}"),
        ("inference_dag", f"{predicted['state']} in {predicted['seconds']:.0f} s"),
        ("  predictions", f"{predicted['predictions']} ({predicted['rows']} rows)"),
        ("pages", f"`make ui` forwards Airflow and MLflow; user {user}"),
        ("password", f"`{PASSWORD_COMMAND}` prints it"),
        ("kubeconfig", report["cluster"]["kubeconfig"]),
        ("this summary", str(RUN_REPORT)),
    ]
    say()
    show_table(("", ""), rows)
