"""Runs of both DAGs at once, under odd ids: none meets another, and each does its work whole."""

import html
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from mlctl.base.progress import Phase
from mlctl.clients.airflow import Airflow, container_lines
from mlctl.clients.mlflow import Mlflow
from mlctl.stack import Stack
from mlctl.trials.soak import Checked, compare, leftover_pods, look_at, wait
from tests.helpers.secret_search import PodRecorder

SECONDS = 2400
FAILING_SECONDS = 300


def odd_ids(stamp: str) -> dict[str, list[str]]:
    """Return ids that Airflow takes and that differ little, or in what a path would swallow."""
    return {
        "training_dag": [f"..{stamp}", f"a+b{stamp}", f"{stamp}".ljust(248, "x")],
        "inference_dag": [f"a:b{stamp}", f"a+b{stamp}", f"{stamp}".ljust(247, "x") + "y"],
    }


@pytest.fixture(scope="module")
def crowd(
    training_run, inference_run, stack: Stack, client: Airflow, pods_seen: PodRecorder, aloud
) -> dict[str, list[str]]:
    """Three runs of each DAG, all of one second, that were triggered at once and have ended."""
    now = datetime.now(UTC).replace(microsecond=0)
    run_ids = odd_ids(f"{now:%H.%M.%S}")
    with aloud("runs of both DAGs at once") as phase:
        for dag_id, ids in run_ids.items():
            for number, run_id in enumerate(ids):
                when = (now + timedelta(microseconds=number)).isoformat(timespec="microseconds")
                client.trigger(dag_id, run_id=run_id, logical_date=when)
        wait(client, run_ids, SECONDS, phase)
    return run_ids


@pytest.fixture
def checked(crowd, inference_run, stack: Stack, airflow: Airflow, mlflow: Mlflow) -> list[Checked]:
    found = look_at(stack, airflow, mlflow, crowd)
    alone = look_at(stack, airflow, mlflow, {"inference_dag": [inference_run.run_id]})
    compare(found, alone)
    return found


def test_each_run_is_as_good_as_one_alone(checked: list[Checked]) -> None:
    assert len(checked) == 6
    assert {f"{one.dag_id} {one.run_id}": one.faults for one in checked if one.faults} == {}


def test_they_were_under_way_at_the_same_time(crowd, airflow: Airflow) -> None:
    runs = [run for dag_id, ids in crowd.items() for run in airflow.runs(dag_id, ids)]
    assert max(run["start_date"] for run in runs) < min(run["end_date"] for run in runs)
    assert len({run["logical_date"][:19] for run in runs}) == 1


def test_every_pod_had_the_directory_of_its_own_run_and_no_other(
    crowd, stack: Stack, pods_seen: PodRecorder
) -> None:
    mounts: dict[str, set[str]] = {}
    for pod in pods_seen.pods():
        container = pod["spec"]["containers"][0]
        env = {one["name"]: one.get("value") for one in container.get("env", [])}
        if "ML_PIPELINES_RUN_DIRECTORY" not in env:
            continue
        run = f"{env['ML_PIPELINES_DAG_ID']} {env['ML_PIPELINES_RUN_ID']}"
        mounts.setdefault(run, set()).update(
            mount.get("subPath", "the whole claim")
            for mount in container["volumeMounts"]
            if mount["name"] == "training-storage"
        )
    expected = {
        f"{dag_id} {run_id}": {stack.run_path(dag_id, run_id)}
        for dag_id, ids in crowd.items()
        for run_id in ids
    }
    assert {run: mounts.get(run) for run in expected} == expected
    assert len(set.union(*expected.values())) == 6


def test_no_pod_is_left(crowd, stack: Stack) -> None:
    assert leftover_pods(stack) == []


@pytest.mark.parametrize(
    "run_id",
    ["für ein Modell", "a/b", "a b", "$(reboot)", "-rf", "~", "..", "x" * 249],
    ids=["unicode", "slash", "space", "dollar", "option", "all-runs", "dots", "249-characters"],
)
def test_an_id_that_cannot_work_is_refused_in_plain_words(
    airflow: Airflow, session: requests.Session, run_id: str
) -> None:
    text = trigger_in_the_page(airflow, session, run_id)
    assert f"The provided run ID '{run_id}' is invalid" in html.unescape(html.unescape(text))
    ids = {run["dag_run_id"] for run in airflow.get("dags/inference_dag/dagRuns")["dag_runs"]}
    assert run_id not in ids


@pytest.fixture(scope="module")
def session(client: Airflow) -> requests.Session:
    """One login for all: Airflow takes five of them in 40 seconds."""
    client.get("version")
    return client.login()


def trigger_in_the_page(airflow: Airflow, session: requests.Session, run_id: str) -> str:
    """Fill in the form of "Trigger DAG w/ config" and return the page that answers."""
    url = f"{airflow.connection.url}/dags/inference_dag/trigger"
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', session.get(url, timeout=60).text)
    assert token
    form = {"csrf_token": token[1], "run_id": run_id, "conf": "{}"}
    return session.post(url, data=form, timeout=60).text


def test_a_single_task_of_an_ended_run_is_refused_in_plain_words_and_the_whole_run_works(
    crowd, checked: list[Checked], airflow: Airflow, stack: Stack, mlflow: Mlflow, aloud
) -> None:
    run_id = crowd["inference_dag"][0]
    (before,) = (one for one in checked if one.run_id == run_id and one.rows)

    with aloud("run_inference alone, again") as phase:
        again(airflow, run_id, {"task_ids": ["run_inference"]}, phase)
    task = next(t for t in airflow.tasks("inference_dag", run_id) if t.task_id == "run_inference")
    assert task.state == "failed"
    log = airflow.log("inference_dag", run_id, "run_inference", task.try_number)
    assert container_lines(log) == [
        "ERROR: /tmp/data/test.csv is gone: clean_up removes the files of a run when it ends; "
        "clear all tasks of this run, or start a new one"
    ]
    assert airflow.run("inference_dag", run_id)["state"] == "failed"

    with aloud("the whole run, again") as phase:
        again(airflow, run_id, {}, phase)
    (after,) = look_at(stack, airflow, mlflow, {"inference_dag": [run_id]})
    # Its predictions are made anew, by the newest model, which has the same weights.
    assert after.faults == []
    assert after.predictions == before.predictions


def again(airflow: Airflow, run_id: str, which: dict[str, Any], phase: Phase) -> None:
    """Clear tasks of a run of inference_dag, all of them unless ``which`` says so, and wait."""
    body = {"dry_run": False, "only_failed": False, "reset_dag_runs": True, "dag_run_id": run_id}
    airflow.request("POST", "dags/inference_dag/clearTaskInstances", json=body | which)
    airflow.wait_for_run("inference_dag", run_id, timeout=FAILING_SECONDS, note=phase.note)
