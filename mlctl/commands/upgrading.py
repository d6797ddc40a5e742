"""The way from Airflow 2 to Airflow 3, with all that the release has gathered."""

import json
import os
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.names import RELEASE
from mlctl.base.progress import Phases, confirmed
from mlctl.clients.airflow import Airflow
from mlctl.clients.database import Database
from mlctl.clients.helper_pod import HelperPod
from mlctl.commands.backup import AIRFLOW, DATABASE, back_up
from mlctl.commands.telling import say
from mlctl.publishing import PARSE, PARSE_SECONDS, broken, publish
from mlctl.release.release import Release, airflow_version
from mlctl.stack import Stack

KEPT = {
    "runs": "dag_run",
    "task instances": "task_instance",
    "Variables": "variable",
    "Connections": "connection",
    "pools": "slot_pool",
    "users": "ab_user",
}
"""What is counted before and after, and the table that it is in; both majors call it so."""

NOT_CARRIED = {
    "results (XCom) that are pickled; they stay in the table _xcom_archive": (
        "SELECT count(*) FROM xcom WHERE get_byte(value, 0) = 128"
    ),
    "records of missed SLAs": "SELECT count(*) FROM sla_miss",
    "records of failed tries (a view of durations that is gone)": "SELECT count(*) FROM task_fail",
}
"""What Airflow 3 has no place for (its migrations 0044 and 0049, and no code for SLAs)."""


def upgrade_airflow(stack: Stack) -> int:
    """Take a release of Airflow 2 to Airflow 3, with its runs, Variables, Connections and users.

    A run that goes on, and a DAG file that Airflow 3 can't read, are refused before anything is
    changed. The database is dumped first; a failed migration is undone with that.
    """
    if os.environ.get("AIRFLOW", "3") != "3":
        raise UserError(f"AIRFLOW={os.environ['AIRFLOW']}: the way goes to 3 only")
    there = airflow_version(stack.release().installed_values())
    if not there.startswith("2."):
        say(f"the release {RELEASE} runs Airflow {there}")
        return 0
    with stack.airflow() as airflow:
        _refuse_active_runs(airflow)
    # From here on everything that is asked for is that of Airflow 3.
    os.environ["AIRFLOW"] = "3"
    phases = Phases()
    release = stack.prepare(phases)
    with phases.phase("read the DAG files with Airflow 3") as phase:
        phase.say(f"{len(_readable(stack, release))} DAGs")
    with stack.database() as database:
        _tell_not_carried(database)
        if not confirmed("stop Airflow 2 and go on?"):
            raise UserError("nothing was changed")
        with phases.phase("stop Airflow 2") as phase:
            replicas = stack.stop(AIRFLOW, phase)
        try:
            counts = _counts(database)
            backup = back_up(stack)
        except BaseException:
            stack.scale(replicas)
            raise
        say(f"the backup is {backup}")
        # Airflow 3 reads them when a password is set, and cannot: they are in another format.
        database.query("DELETE FROM session")
        _deploy(stack, release, database, backup, phases)
        after = _counts(database)
    with phases.phase("publish the DAGs") as phase:
        publish(stack, phase)
    for name, count in counts.items():
        say(f"{name}: {count} before, {after[name]} now")
    if lost := [name for name, count in counts.items() if after[name] < count]:
        raise UserError(f"fewer than before: {', '.join(lost)}; what was before it is in {backup}")
    return 0


def _refuse_active_runs(airflow: Airflow) -> None:
    runs = airflow.get("dags/~/dagRuns", state=["queued", "running"], limit=100)["dag_runs"]
    if runs:
        names = "\n".join(f"  {run['dag_id']} {run['dag_run_id']} ({run['state']})" for run in runs)
        raise UserError(
            f"these runs go on, and their workers would not know the new database:\n{names}\n"
            "wait for their end, or mark them as failed in the page; pause DAGs with a schedule"
        )


def _readable(stack: Stack, release: Release) -> list[str]:
    """Return the ids of the DAGs, as the next DAG processor will read them.

    Raises UserError that names every file which it can't.
    """
    template = _template(release.next_objects(), "dag-processor")
    spec = {key: part for key, part in template["spec"].items() if key != "serviceAccountName"}
    for kind, name in {
        "containers": "dag-processor",
        # It clones the DAGs; the other one waits for the migration.
        "initContainers": "git-sync-init",
    }.items():
        spec[kind] = [_without_what_comes(one) for one in spec[kind] if one["name"] == name]
    labels = template["metadata"]["labels"]
    with HelperPod(stack.kube, "airflow3", "the DAGs in Airflow 3", spec, labels) as pod:
        told = pod.run("python", "-c", PARSE, timeout=PARSE_SECONDS)
    found = json.loads(told.splitlines()[-1])
    if found["errors"]:
        raise UserError(
            f"{broken(found['errors'])}\nnothing was changed; docs/upgrading.md says what is other "
            "in Airflow 3, and `make test-dags` tries the files on both"
        )
    return found["dags"]


def _without_what_comes(container: dict[str, Any]) -> dict[str, Any]:
    """Return a container that starts without the keys of Secrets that come with Airflow 3."""
    given = []
    for one in container.get("env", []):
        source = one.get("valueFrom", {})
        if "secretKeyRef" in source:
            source = {"secretKeyRef": source["secretKeyRef"] | {"optional": True}}
            one = one | {"valueFrom": source}
        given.append(one)
    return container | {"env": given}


def _template(objects: list[dict[str, Any]], component: str) -> dict[str, Any]:
    """Return the template of the pods of a component, from the objects of a release."""
    for one in objects:
        template = one.get("spec", {}).get("template", {})
        labels = template.get("metadata", {}).get("labels", {})
        if component in (labels.get("component"), labels.get("app.kubernetes.io/component")):
            return template
    raise UserError(f"the release has no {component}")


def _counts(database: Database) -> dict[str, int]:
    return {name: database.number(f"SELECT count(*) FROM {table}") for name, table in KEPT.items()}


def _tell_not_carried(database: Database) -> None:
    say("not carried over:")
    for name, sql in NOT_CARRIED.items():
        say(f"  {database.number(sql)} {name}")
    say("  the parameters (conf) of runs that are no JSON, and logins: everybody logs in again")


def _deploy(
    stack: Stack, release: Release, database: Database, backup: Path, phases: Phases
) -> None:
    status = release.status()
    assert status is not None
    try:
        with phases.phase("release") as phase:
            release.deploy(phase, other_airflow=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"`make up AIRFLOW=3` goes on; what was before it is in {backup}"
        ) from None
    except UserError as error:
        say(f"error: {error}")
        try:
            _go_back(stack, release, database, backup, status.revision, phases)
        except UserError as failure:
            back = f"`helm rollback {RELEASE} {status.revision}`"
            raise UserError(
                f"the way back failed too: {failure}\nthe database from before is in {backup}: "
                f"{back}, then `make restore DIR={backup} YES=1`"
            ) from failure
        raise UserError(
            f"the upgrade failed, for the reason above; the release and its database are those "
            f"from before it (also in {backup})"
        ) from error


def _go_back(
    stack: Stack,
    release: Release,
    database: Database,
    backup: Path,
    revision: int,
    phases: Phases,
) -> None:
    with phases.phase("back to Airflow 2") as phase:
        stack.stop(AIRFLOW, phase)
        # Its pod would migrate again what is restored.
        setup = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=setup"
        stack.kube.run("delete", "jobs", "--selector", setup, "--cascade=foreground")
        database.restore(backup / DATABASE)
        release.back_to(revision, phase)
