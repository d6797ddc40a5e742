"""A release of Airflow 2 becomes one of Airflow 3, or stays what it was.

`make test-long` runs it, on a cluster of its own that it deletes at the end.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlctl.stack import Stack
from tests.helpers.checkouts import clone_of_the_checkout

RUNS = 10
CONNECTION = "postgresql://somebody:s3cret@store.example:5432/sales"
SECONDS = 120
HOURLY = r"""
from datetime import UTC, datetime

from airflow import DAG

from ml_pipelines import PodOperator

with DAG("hourly", schedule="@hourly", start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False):
    greet = "echo hello; echo '{\"rows\": 3}' > /dev/termination-log"
    PodOperator(task_id="greet", cmds=["sh", "-c", greet])
"""
BROKEN = """
from airflow import DAG
from airflow.operators.subdag import SubDagOperator
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a DAG that has a schedule, whose commands begin with Airflow 2."""
    monkeypatch.delenv("AIRFLOW", raising=False)
    made = clone_of_the_checkout(tmp_path)
    commit(made, "hourly.py", HOURLY)
    return made


def commit(clone: Path, name: str, text: str) -> None:
    """Commit a DAG file; an empty one goes."""
    file = clone / "dags" / name
    if text:
        file.write_text(text)
    else:
        file.unlink()
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for words in (
        ["add", "--all", "dags"],
        [*identity, "commit", "--quiet", "-m", f"Change {name}"],
    ):
        subprocess.run(["git", *words], cwd=clone, check=True)


def make(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, as somebody at a terminal who has said YES."""
    command = ["make", *words, "YES=1"]
    return subprocess.run(command, cwd=clone, text=True, capture_output=True, check=False)


def made(clone: Path, *words: str) -> str:
    done = make(clone, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(clone: Path) -> str:
    done = make(clone, "upgrade-airflow")
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def in_airflow(stack: Stack, *words: str) -> str:
    return stack.in_scheduler("airflow", *words, timeout=SECONDS)


def plant(stack: Stack) -> None:
    """What people make by hand."""
    in_airflow(stack, "variables", "set", "answer", "forty-two")
    in_airflow(stack, "connections", "add", "store", "--conn-uri", CONNECTION)
    in_airflow(stack, "pools", "set", "narrow", "3", "three at once")
    person = ["--username", "vera", "--email", "vera@example.com", "--role", "Viewer"]
    name = ["--firstname", "Vera", "--lastname", "E", "--password", "a-password"]
    in_airflow(stack, "users", "create", *person, *name)


def told(stack: Stack, *words: str) -> list[dict[str, Any]]:
    """Return what a command of Airflow prints as JSON, which its warnings stand before."""
    text = in_airflow(stack, *words, "--output", "json")
    return json.loads(text[text.index("[{") :])


def facts(stack: Stack) -> dict[str, Any]:
    """What people would miss, by Airflow's own commands and pages."""
    with stack.airflow() as client:
        runs = {run["dag_run_id"]: run["state"] for run in client.all_runs("hourly")}
        results = {run_id: client.result("hourly", run_id, "greet") for run_id in runs}
        log = client.log("hourly", min(runs), "greet")
        dag = client.dag("hourly") or {}
        pool = client.get("pools/narrow")["slots"]
    return {
        "runs": runs,
        "results": results,
        "greeted": "hello" in log,
        "paused": dag["is_paused"],
        "pool": pool,
        "variable": in_airflow(stack, "variables", "get", "answer").strip().splitlines()[-1],
        "password": told(stack, "connections", "get", "store")[0]["password"],
        "users": {(one["username"], str(one["roles"])) for one in told(stack, "users", "list")},
        "login": stack.credentials(),
    }


# It waits for two upgrades, and for one that is undone.
@pytest.mark.timeout(5400)
def test_airflow_2_becomes_3_with_all_that_it_has(stack: Stack, clone: Path) -> None:
    made(clone, "up")
    made(clone, "trigger", "DAG=hourly", f"N={RUNS}")
    plant(stack)
    before = facts(stack)
    assert len(before["runs"]) >= RUNS
    assert set(before["runs"].values()) == {"success"}

    # A file that Airflow 3 can't read is named, and nothing is changed.
    commit(clone, "old.py", BROKEN)
    made(clone, "sync")
    assert "old.py" in refused(clone)
    commit(clone, "old.py", "")
    made(clone, "sync")

    # A migration that breaks off is undone.
    with stack.database() as database:
        database.query("create table dag_version (id int)")
    revision = stack.release().status()
    assert "the upgrade failed" in refused(clone)
    assert stack.release().status().revision > revision.revision
    assert facts(stack) == before
    with stack.database() as database:
        database.query("drop table dag_version")

    text = made(clone, "upgrade-airflow")
    assert f"runs: {len(before['runs'])} before, {len(before['runs'])} now" in text
    assert stack.release().installed_values()["airflow"]["airflowVersion"].startswith("3.")
    assert facts(stack) == before
    assert "success" in made(clone, "trigger", "DAG=hourly")
    assert "runs Airflow 3" in made(clone, "upgrade-airflow")
