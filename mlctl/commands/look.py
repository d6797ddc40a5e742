"""Looking at what is there: status, logs, the pages and their password."""

import json
import subprocess
import sys
import time
from typing import Any

from mlctl.base.names import (
    AIRFLOW_PORT,
    AIRFLOW_SERVICE,
    MLFLOW_PORT,
    MLFLOW_SERVICE,
    RELEASE,
)
from mlctl.base.progress import console, gib, show_table
from mlctl.clients.airflow import container_lines, telling_lines
from mlctl.clients.forward import Forward, free_port
from mlctl.cluster.provider import Provider
from mlctl.commands.state import state_of
from mlctl.commands.telling import PASSWORD_COMMAND, say
from mlctl.stack import Stack

LOG_LINES = 12
"""How many of a task's lines `logs` shows."""


def status(stack: Stack, as_json: bool = False) -> int:
    """Print cluster, release, pods, newest runs, model, storage and pages; status 1 without one.

    JSON=1: one object, for scripts.
    """
    rows = stack.cluster.status()
    release = stack.release().status() if rows else None
    if as_json:
        cluster = {
            "name": stack.cluster.name,
            "kind": stack.cluster.kind,
            "parts": rows,
            "remarks": stack.cluster.remarks(),
        }
        found = {"cluster": cluster} | (state_of(stack, release) if release else {})
        print(json.dumps(found, indent=2))
        return 0 if release else 1
    show_cluster(stack.cluster, rows)
    if release:
        show(state_of(stack, release))
    elif rows:
        say(f"release {RELEASE}: not installed (`make up`)")
    return 0 if release else 1


def show(found: dict[str, Any]) -> None:
    """Print what `state_of` returns."""
    say(f"release {RELEASE}: {found['release']['state']}, revision {found['release']['revision']}")
    show_table(
        ("pod", "", "state", "restarts"),
        (
            (
                pod["name"],
                "ready" if pod["ready"] else "NOT READY",
                pod["state"],
                pod["restarts"] or None,
            )
            for pod in found["pods"]
        ),
    )
    if not found["triggerer"]:
        say("the triggerer is off: deferrable tasks wait for ever (airflow.triggerer.enabled)")
    if found["dags"] is None:
        say("Airflow's page does not serve, so its DAGs are not known")
    else:
        show_table(
            ("DAG", "newest run", "", "what it came to"),
            (
                (
                    f"{dag['dag_id']}{' (paused)' if dag['paused'] else ''}",
                    dag["state"] or "no run yet",
                    dag["run_id"],
                    "; ".join(dag["told"]),
                )
                for dag in found["dags"]
            ),
        )
    model = found["model"]
    versions = [
        f"{what} {'not known' if version is None else version or 'none yet'}"
        for what, version in ((model["alias"], model["champion"]), ("newest", model["newest"]))
    ]
    say(f"model {model['name']} in {model['registry']}: {', '.join(versions)}")
    storage = found["storage"]
    show_table(
        ("claim", "", "size", "in use"),
        (
            (
                one["name"],
                one["phase"],
                one["size"],
                "" if one["used"] is None else gib(one["used"]),
            )
            for one in storage["claims"]
        ),
    )
    for node in storage["nodes"]:
        say(f"disk of {node['name']}: {gib(node['used'])} of {gib(node['capacity'])} in use")
    pages = found["pages"]
    login = f"user {pages['user']}, password: `{PASSWORD_COMMAND}`"
    airflow, mlflow = (pages[name] or "`make ui`" for name in ("airflow", "mlflow"))
    say(f"pages: Airflow {airflow} ({login}), MLflow {mlflow}")
    say(f"kubeconfig: {pages['kubeconfig']}")


def logs(stack: Stack, part: str | None, wanted: str | None) -> int:
    """Task states and last log lines of the newest run of each DAG, or of one.

    With C the log of a part of the cluster.
    """
    if part:
        return part_log(stack.cluster, part)
    with stack.airflow() as airflow:
        for dag_id in [wanted] if wanted else [dag["dag_id"] for dag in airflow.dags()]:
            newest = airflow.newest_run(dag_id)
            if newest is None:
                say(f"{dag_id}: no run yet")
                continue
            say(f"{dag_id}: {newest['dag_run_id']} {newest['state']}")
            for task in airflow.tasks(dag_id, newest["dag_run_id"]):
                seconds = f" {task.seconds:.1f} s" if task.seconds is not None else ""
                say(f"  {task.name}: {task.state}{seconds}")
                if task.try_number < 1:
                    continue
                log = airflow.log_end(dag_id, newest["dag_run_id"], task)
                bad = task.state in {"failed", "up_for_retry"}
                shown = telling_lines(log, LOG_LINES) if bad else container_lines(log)[-LOG_LINES:]
                for line in shown:
                    say(f"    {line}")
    parts = ", ".join(stack.cluster.log_files())
    if parts:
        say(f"the cluster's own parts, each by `make logs C=name`: {parts}")
    return 0


def password(stack: Stack) -> None:
    """Print the password of the Airflow pages."""
    print(stack.credentials()[1])


def ui(stack: Stack) -> None:
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


def cluster_status(cluster: Provider) -> int:
    """Print a table of the cluster's parts; status 1 when it is down."""
    return show_cluster(cluster, cluster.status())


def show_cluster(cluster: Provider, rows: list[dict[str, Any]]) -> int:
    """Print what `Provider.status` returns; status 1 when a part of it is down."""
    if not rows:
        print(f"cluster {cluster.name} ({cluster.kind}) is down: `make up`")
        return 1
    columns = [key for key in rows[0] if key != "exit_codes"]
    title = f"cluster {cluster.name} ({cluster.kind})"
    show_table(columns, ([row[key] for key in columns] for row in rows), title)
    for line in cluster.remarks():
        console.print(line, markup=False)
    return 0 if all(row["state"] == "running" for row in rows) else 1


def part_log(cluster: Provider, component: str) -> int:
    """Show one log with the user's pager, or say which there are."""
    logs = cluster.log_files()
    if component not in logs:
        print(f"name one of: {' '.join(logs) or '(none yet)'}   (C=NAME make logs)")
        return 1
    viewer = ["less", "+G"] if sys.stdout.isatty() else ["tail", "-n", "200"]
    return subprocess.run([*viewer, str(logs[component])]).returncode
