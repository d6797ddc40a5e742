"""Runs of both DAGs at once, under odd ids: none meets another, and each does its work whole.

The trainings are short; what counts is that the models of all are the same.
"""

import html
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import requests

from mlctl.clients.airflow import Airflow, AirflowError
from mlctl.clients.mlflow import Mlflow
from mlctl.clients.volume import Volume
from mlctl.stack import Stack
from mlctl.trials.soak import Checked, compare, leftover_pods, look_at, wait
from tests.helpers.secret_search import PodRecorder

SECONDS = 1800
PARAMETERS = {"training_dag": {"max_steps": 20}}


def odd_ids(stamp: str) -> dict[str, list[str]]:
    """Return ids that Airflow takes and that differ little, or in what a path would swallow."""
    return {
        "training_dag": [f"..a:b{stamp}", f"..a+b{stamp}"],
        "inference_dag": [f"{stamp}".ljust(248, "x"), f"{stamp}".ljust(247, "x") + "y"],
    }


@pytest.fixture(scope="module")
def crowd_started(inference_run, client: Airflow, pods_seen: PodRecorder) -> dict[str, list[str]]:
    """Two runs of each DAG, all of one second, triggered at once; the trainings are short."""
    now = datetime.now(UTC).replace(microsecond=0)
    run_ids = odd_ids(f"{now:%H.%M.%S}")
    for dag_id, ids in run_ids.items():
        for number, run_id in enumerate(ids):
            when = (now + timedelta(microseconds=number)).isoformat(timespec="microseconds")
            client.trigger(dag_id, PARAMETERS.get(dag_id), run_id=run_id, logical_date=when)
    return run_ids


@pytest.fixture(scope="module")
def crowd(crowd_started, client: Airflow, aloud) -> dict[str, list[str]]:
    """The same runs, when all have ended."""
    with aloud("runs of both DAGs at once") as phase:
        wait(client, crowd_started, SECONDS, phase)
    return crowd_started


@pytest.mark.parametrize(
    "run_id",
    ["für ein Modell", "a/b", "a b", "$(reboot)", "-rf", "~", "..", "x" * 249],
    ids=["unicode", "slash", "space", "dollar", "option", "all-runs", "dots", "249-characters"],
)
def test_an_id_that_cannot_work_is_refused_in_plain_words(
    crowd_started, airflow: Airflow, session: requests.Session, run_id: str
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


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"max_steps": 0}, "0 is less than the minimum of 1"), ({"max_steps": "many"}, "'many'")],
    ids=["too-small", "no-number"],
)
def test_a_wrong_parameter_is_refused_when_the_run_is_triggered(
    crowd_started, airflow: Airflow, parameters: dict, said: str
) -> None:
    with pytest.raises(AirflowError, match=re.escape(said)):
        airflow.trigger("training_dag", parameters, run_id="refused")
    assert "refused" not in [run["dag_run_id"] for run in airflow.all_runs("training_dag")]


def test_the_model_says_with_which_parameters_it_was_made(crowd, airflow: Airflow, mlflow) -> None:
    uploaded = airflow.result("training_dag", crowd["training_dag"][0], "upload_model")
    tags = mlflow.version(uploaded["name"], uploaded["version"])["tags"]
    assert json.loads(tags["parameters"]) == PARAMETERS["training_dag"]


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
        labels = pod["metadata"]["labels"]
        mounts.setdefault(run, set()).update(
            f"{labels['dag_id']}/{labels['run_id']}" if "subPathExpr" in mount else "the whole"
            for mount in container["volumeMounts"]
            if mount["name"] == "training-storage"
        )
    expected = {
        f"{dag_id} {run_id}": {stack.run_path(dag_id, run_id)}
        for dag_id, ids in crowd.items()
        for run_id in ids
    }
    assert {run: mounts.get(run) for run in expected} == expected
    assert len(set.union(*expected.values())) == 4


def test_no_pod_is_left(crowd, stack: Stack) -> None:
    assert leftover_pods(stack) == []


Look = Callable[[dict[str, list[str]]], list[Checked]]


@pytest.fixture(scope="module")
def look(stack: Stack, volume: Volume, client: Airflow, mlflow: Mlflow) -> Look:
    return lambda run_ids: look_at(stack, volume, client, mlflow, run_ids)


@pytest.fixture(scope="module")
def checked(crowd, look: Look) -> list[Checked]:
    return look(crowd)


@pytest.fixture(scope="module")
def again(crowd, checked, client: Airflow, follow_run, look: Look) -> Checked:
    """An inference of the crowd once more, alone; the champion is no short training."""
    run_id = crowd["inference_dag"][0]
    body = {"dry_run": False, "only_failed": False, "reset_dag_runs": True, "dag_run_id": run_id}
    client.request("POST", "dags/inference_dag/clearTaskInstances", json=body)
    follow_run("inference_dag", run_id, SECONDS)
    (one,) = look({"inference_dag": [run_id]})
    return one


def test_a_whole_run_again_makes_its_predictions_anew(again: Checked, checked) -> None:
    assert again.faults == []
    models = {one.model_version: one.weights for one in checked if one.dag_id == "inference_dag"}
    assert models[again.model_version] == again.weights


def test_each_run_is_as_good_as_one_alone(
    checked: list[Checked], again: Checked, inference_run, look: Look
) -> None:
    assert len(checked) == 4
    compare(checked, [again, *look({"inference_dag": [inference_run.run_id]})])
    assert {f"{one.dag_id} {one.run_id}": one.faults for one in checked if one.faults} == {}
