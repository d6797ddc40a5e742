"""Tasks that Airflow 3's triggerer runs without workers: one_pod.yaml on top of Airflow 3.

    VALUES=tests/e2e/one_pod.yaml make test-e2e AIRFLOW=3 K='test_one_pod or test_inference'

What one try does is proven in tests/dags; here it has an Airflow, a kubelet and rights.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlctl.base.labels import label
from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.clients.kube import Kube
from mlctl.stack import Stack
from mlctl.trials.own_dag import published
from tests.e2e.conftest import FollowRun, Run
from tests.helpers.secret_search import PodRecorder

FIRST = "one_pod_dag"
TEXT = (Path(__file__).parent / f"{FIRST}.py").read_text()
HELD, MANY, LIMITED = "held_dag", "many_dag", "limited_dag"
MAX_PODS = 4
SECONDS = 900
WAIT_SECONDS = 300


@pytest.fixture(scope="module", autouse=True)
def dags(stack: Stack, client: Airflow, pods_seen: PodRecorder) -> Iterator[None]:
    if stack.settings["launch"] != "triggerer":
        pytest.skip("pipelines.launch is not triggerer")
    assert stack.settings["maxPods"] == MAX_PODS
    with published(stack, client, FIRST, TEXT, FIRST, Phases()):
        for dag_id in (FIRST, HELD, MANY, LIMITED):
            client.unpause(dag_id)
        yield


@pytest.fixture(scope="module")
def run(dags, client: Airflow, stack: Stack, follow_run: FollowRun) -> Run:
    """One run of the first DAG, in whose middle the triggerer was killed."""
    run_id = client.trigger(FIRST)
    pod_of(stack, FIRST, "talks")
    until(
        WAIT_SECONDS,
        lambda: "line 3" in client.log(FIRST, run_id, "talks"),
        "the page has no log of a task that runs",
    )
    assert task_of(client, FIRST, run_id, "talks")["state"] == "deferred"
    kill = ["delete", "pods", "--selector", "component=triggerer", "--grace-period=0", "--force"]
    stack.kube.run(*kill)
    return follow_run(FIRST, run_id, SECONDS)


def pods(stack: Stack, dag_id: str, task_id: str) -> list[dict]:
    return stack.kube.items("pods", f"dag_id={label(dag_id)},task_id={task_id}")


def pod_of(stack: Stack, dag_id: str, task_id: str, not_uid: str = "") -> dict:
    """The pod of a task once it runs."""

    def there() -> dict | None:
        found = [one for one in pods(stack, dag_id, task_id) if one["metadata"]["uid"] != not_uid]
        return next((one for one in found if one["status"].get("phase") == "Running"), None)

    return until(WAIT_SECONDS, there, f"{task_id} has no pod")


def gone(stack: Stack, pod: dict) -> None:
    until(
        WAIT_SECONDS,
        lambda: stack.kube.get("pod", pod["metadata"]["name"]) is None,
        f"{pod['metadata']['name']} is still there",
    )


def task_of(client: Airflow, dag_id: str, run_id: str, task_id: str) -> dict:
    return client.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")


def test_tasks_end_as_with_workers(run: Run) -> None:
    assert {name: (task.state, task.try_number) for name, task in run.tasks.items()} == {
        "talks": ("success", 1),  # a killed triggerer costs no try
        "again": ("success", 2),
        "late": ("failed", 1),
        "skipped": ("skipped", 1),
        "parts": ("success", 1),
        "each[0]": ("success", 1),
        "each[1]": ("success", 1),
        "after": ("upstream_failed", 0),
        "clean": ("success", 1),
    }, run.told()
    assert run.state == "failed"


def test_a_log_is_whole_after_its_triggerer_was_killed(run: Run) -> None:
    lines = [line.split("line ")[-1] for line in run.logs["talks"].splitlines() if "line " in line]
    assert lines == [str(number) for number in range(1, 31)], run.logs["talks"]


def test_a_time_limit_ends_the_pod(run: Run, stack: Stack) -> None:
    assert "DeadlineExceeded" in run.logs["late"], run.logs["late"]
    running = [one for one in pods(stack, FIRST, "late") if one["status"]["phase"] == "Running"]
    assert running == []


def test_results_are_objects(run: Run) -> None:
    assert run.results["again"]["said"] == "second"
    assert run.results["again"]["image_digest"].startswith("sha256:")


def test_only_what_needs_a_worker_has_one(run: Run, pods_seen: PodRecorder) -> None:
    workers = {
        pod["metadata"]["annotations"]["task_id"]
        for pod in pods_seen.pods()
        if pod["metadata"].get("labels", {}).get("kubernetes_executor") == "True"
        and pod["metadata"]["annotations"]["dag_id"] == FIRST
    }
    assert workers == {"each"}


@pytest.fixture
def held(client: Airflow, stack: Stack) -> Callable[[], tuple[str, dict]]:
    """Start a run that sleeps, and give its id and its pod."""

    def start() -> tuple[str, dict]:
        run_id = client.trigger(HELD)
        return run_id, pod_of(stack, HELD, "sleeps")

    return start


def test_marking_and_clearing_end_the_pod(held, client: Airflow, stack: Stack) -> None:
    run_id, first = held()
    clear = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["sleeps"]}
    clear |= {"only_failed": False, "only_running": False}
    client.request("POST", f"dags/{HELD}/clearTaskInstances", json=clear)
    gone(stack, first)
    second = pod_of(stack, HELD, "sleeps", not_uid=first["metadata"]["uid"])
    path = f"dags/{HELD}/dagRuns/{run_id}/taskInstances/sleeps"
    client.request("PATCH", path, json={"new_state": "failed"})
    gone(stack, second)
    assert client.wait_for_run(HELD, run_id, timeout=SECONDS)["state"] == "failed"


def test_many_ready_tasks_do_not_make_as_many_pods(
    client: Airflow, pods_seen: PodRecorder, follow_run: FollowRun
) -> None:
    run = follow_run(MANY, client.trigger(MANY), SECONDS)
    assert run.state == "success", run.told()
    active, most = set(), 0
    for pod in pods_seen.pods():
        if pod["metadata"].get("labels", {}).get("dag_id") == MANY:
            name, phase = pod["metadata"]["name"], pod["status"].get("phase")
            (active.discard if phase in ("Succeeded", "Failed") else active.add)(name)
            most = max(most, len(active))
    assert 1 < most <= MAX_PODS


def test_limits_of_airflow_are_kept(client: Airflow, follow_run: FollowRun) -> None:
    """A pool of one slot: the scheduler keeps to it, as its tasks have workers."""
    narrow = {"name": "narrow", "slots": 1, "include_deferred": False}
    client.request("POST", "pools", json=narrow, good=(409,))
    run = follow_run(LIMITED, client.trigger(LIMITED), SECONDS)
    assert run.state == "success", run.told()
    told = client.get(f"dags/{LIMITED}/dagRuns/{run.run_id}/taskInstances")["task_instances"]
    (_, end), (start, _) = sorted((task["start_date"], task["end_date"]) for task in told)
    assert end <= start


def test_nothing_runs_any_more(run: Run, stack: Stack) -> None:
    kube: Kube = stack.kube
    going = [
        pod["metadata"]["name"]
        for pod in kube.items("pods", "kubernetes_pod_operator=True")
        if pod["status"]["phase"] not in ("Succeeded", "Failed")
    ]
    assert going == []
