"""Tasks that Airflow 3's triggerer runs without workers: one_pod.yaml on top of Airflow 3.

    VALUES=tests/e2e/one_pod.yaml make test-e2e AIRFLOW=3 K='test_one_pod or test_inference'

What one try does is proven in tests/dags; here it has an Airflow, a kubelet and rights.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mlctl.base.labels import label
from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.clients.kube import Kube
from mlctl.cluster.provider import Breakable
from mlctl.stack import Stack
from mlctl.trials.own_dag import published
from tests.e2e.conftest import FollowRun, Run
from tests.helpers.secret_search import PodRecorder

FIRST = "one_pod_dag"
TEXT = (Path(__file__).parent / f"{FIRST}.py").read_text()
HELD, STEADY, MANY, LIMITED = "held_dag", "steady_dag", "many_dag", "limited_dag"
MAX_PODS = 4
SECONDS = 900
WAIT_SECONDS = 300


@pytest.fixture(scope="module", autouse=True)
def dags(stack: Stack, client: Airflow, pods_seen: PodRecorder) -> Iterator[None]:
    if stack.settings["launch"] != "triggerer":
        pytest.skip("pipelines.launch is not triggerer")
    assert stack.settings["maxPods"] == MAX_PODS
    with published(stack, client, FIRST, TEXT, FIRST, Phases()):
        for dag_id in (FIRST, HELD, STEADY, MANY, LIMITED):
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


@pytest.fixture
def cluster(stack: Stack) -> Breakable:
    if not isinstance(stack.cluster, Breakable):
        pytest.skip("the cluster's parts are not on this machine")
    return stack.cluster


@pytest.fixture
def two_triggerers(cluster: Breakable, stack: Stack) -> Iterator[dict[str, dict]]:
    """The pods of two triggerers by name; afterwards there is one again."""
    (deployment,) = stack.kube.items("deployments", "component=triggerer")
    name = f"deployment/{deployment['metadata']['name']}"

    def ready() -> dict[str, dict]:
        found = stack.kube.items("pods", "component=triggerer")
        states = [one["status"].get("containerStatuses") or [{}] for one in found]
        going = len(found) == 2 and all(one.get("ready") for state in states for one in state)
        return {one["metadata"]["name"]: one for one in found} if going else {}

    stack.kube.run("scale", name, "--replicas=2")
    try:
        yield until(WAIT_SECONDS, ready, "there are no two triggerers")
    finally:
        stack.kube.run("scale", name, "--replicas=1")


@contextmanager
def frozen(pod: dict) -> Iterator[None]:
    """Stop all processes of a pod for the time of a block."""
    of_pod = []
    for cgroup in Path("/proc").glob("[0-9]*/cgroup"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
            if f"pod{pod['metadata']['uid']}" in cgroup.read_text():
                of_pod.append(int(cgroup.parent.name))
    assert of_pod, "the pod has no processes on this machine"
    try:
        for process in of_pod:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in of_pod:
            with suppress(ProcessLookupError):  # its liveness probe may have ended it
                os.kill(process, signal.SIGCONT)


def followed_by(client: Airflow, run_id: str) -> set[str]:
    """The triggerers that follow the tasks of a steady run; "" where none does."""
    path = f"dags/{STEADY}/dagRuns/{run_id}/taskInstances"
    jobs = [one["triggerer_job"] for one in client.get(path)["task_instances"]]
    return {job["hostname"] if job else "" for job in jobs}


@pytest.fixture
def steady(client: Airflow, stack: Stack) -> Callable[[], str]:
    """Start a run of four tasks that talk, and give its id once all of them do."""

    def start() -> str:
        run_id = client.trigger(STEADY)
        for number in range(4):
            pod_of(stack, STEADY, f"talks_{number}")
        return run_id

    return start


def check_steady(run: Run, pods_seen: PodRecorder) -> None:
    """All is as if nothing had happened: one try, one pod and one whole log for each task."""
    assert run.state == "success", run.told()
    assert {task.try_number for task in run.tasks.values()} == {1}
    for name, log in run.logs.items():
        lines = [line.split("line ")[-1] for line in log.splitlines() if "line " in line]
        assert lines == [str(number) for number in range(1, 31)], f"{name}: {log}"
    labels = [pod["metadata"].get("labels", {}) for pod in pods_seen.pods()]
    uids = {
        (pod["metadata"]["uid"], its["task_id"])
        for pod, its in zip(pods_seen.pods(), labels, strict=True)
        if its.get("dag_id") == STEADY and its.get("run_id") == label(run.run_id)
    }
    assert sorted(task for _, task in uids) == [f"talks_{number}" for number in range(4)]


def test_a_frozen_triggerer_is_relieved_by_the_other(
    two_triggerers: dict[str, dict],
    steady: Callable[[], str],
    client: Airflow,
    follow_run: FollowRun,
    pods_seen: PodRecorder,
) -> None:
    run_id = steady()
    holder = next(iter(followed_by(client, run_id)))
    (other,) = two_triggerers.keys() - {holder}
    with frozen(two_triggerers[holder]):
        until(
            WAIT_SECONDS,
            lambda: followed_by(client, run_id) <= {other},
            f"{other} has not taken over from {holder}",
        )
    # Both meet in the same pods for a moment.
    check_steady(follow_run(STEADY, run_id, SECONDS), pods_seen)


def test_a_killed_api_server_costs_no_try(
    cluster: Breakable,
    steady: Callable[[], str],
    follow_run: FollowRun,
    pods_seen: PodRecorder,
) -> None:
    run_id = steady()
    cluster.signal("kube-apiserver", signal.SIGKILL)
    cluster.component("restart", "kube-apiserver")
    check_steady(follow_run(STEADY, run_id, SECONDS), pods_seen)


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
            states = [one["state"] for one in pod["status"].get("containerStatuses", [])]
            # The phase says so a second later.
            ended = states and all("terminated" in state for state in states)
            (active.discard if ended else active.add)(pod["metadata"]["name"])
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
