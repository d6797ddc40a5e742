"""What a try makes of the pods of the tries before it, and how it leaves its own."""

from __future__ import annotations

import json

import pytest
from airflow.exceptions import AirflowException
from kubernetes.client import models as k8s
from urllib3.exceptions import HTTPError

from tests.dags.cluster import EVICTED, LABELS, RUNNING, STARTING, Cluster, answer, ended, until
from tests.dags.conftest import interruptions

RESULT = {"accuracy": 0.82}
SUCCEEDED = ended(0, message=json.dumps(RESULT))
# Pods of an earlier try that was made a minute ago.
RUNS_ON = [(0, RUNNING), (90, SUCCEEDED)]
HAS_SUCCEEDED = [(0, RUNNING), (30, SUCCEEDED)]
HAS_FAILED = [(0, RUNNING), (30, ended(255, "Unknown"))]
STARTED = "2026-11-23T09:00:00+00:00"
GENERATION = {"ml-pipelines/generation": f"{STARTED}/2"}


@pytest.fixture
def cluster(clock) -> Cluster:
    return Cluster(clock, until(10, SUCCEEDED))


@pytest.fixture
def run(make_task, run_task):
    def run(cluster: Cluster, arguments=None, **of_run):
        return run_task(make_task(**(arguments or {})), cluster, **{"try_number": 2} | of_run)

    return run


def test_a_pod_carries_what_tells_it_apart(run, cluster) -> None:
    done = run(cluster)
    (name,) = cluster.created
    assert cluster.labels(name).items() >= (LABELS | {"try_number": "2"}).items()
    assert cluster.pod(name)["metadata"]["annotations"] == GENERATION
    assert done.error is None


def test_a_run_without_a_start_has_pods_too(make_task, run_task, cluster) -> None:
    """As one that is only tried: Airflow does not always say when a run has started."""
    cluster.timelines = [until(1, SUCCEEDED)]
    assert run_task(make_task(), cluster, started=None).error is None
    assert cluster.pod()["metadata"]["annotations"] == {"ml-pipelines/generation": "/2"}


@pytest.mark.parametrize("timeline", [RUNS_ON, HAS_SUCCEEDED], ids=["runs", "has succeeded"])
@pytest.mark.parametrize("annotations", [GENERATION, None], ids=["ours", "the stock operator's"])
def test_a_pod_whose_worker_died_is_taken_over(run, cluster, timeline, annotations) -> None:
    cluster.add("old", timeline, annotations=annotations, **LABELS)
    done = run(cluster)
    assert done.error is None
    assert done.result["accuracy"] == 0.82
    assert cluster.created == []
    assert cluster.deleted == ["old"]


def test_failure_of_a_pod_whose_worker_died_is_told_and_not_taken_over(run, cluster) -> None:
    # A node that was switched off: the next try must not fail with the pod of the one before.
    cluster.add("old", HAS_FAILED, **LABELS)
    done = run(cluster)
    assert done.error is None
    assert ("warning", "Pod old is not followed: Unknown, exit code 255") in done.log.lines
    assert len(cluster.created) == 1
    assert cluster.deleted == cluster.created
    assert cluster.labels("old")["already_checked"] == "True"


@pytest.mark.parametrize(
    ("request_name", "arguments"),
    [
        ("patch_namespaced_pod", {}),
        ("delete_namespaced_pod", {"on_finish_action": "delete_pod"}),
    ],
    ids=["mark", "delete"],
)
def test_a_failed_pod_that_may_not_be_touched_is_no_obstacle(
    run, cluster, request_name, arguments
) -> None:
    cluster.add("old", HAS_FAILED, **LABELS)
    cluster.trouble(0, 5, answer(403, "Forbidden"), request_name)
    done = run(cluster, arguments)
    assert done.error is None
    assert len(cluster.created) == 1
    assert "old" in cluster.there


@pytest.mark.parametrize(
    "other",
    [
        {"run_id": "manual__2"},
        {"task_id": "another"},
        {"dag_id": "another"},
        {"already_checked": "True"},
        {"airflow-worker": "1"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_pods_of_others_are_left_alone(run, cluster, other: dict[str, str]) -> None:
    cluster.add("other", RUNS_ON, **(LABELS | other))
    done = run(cluster)
    assert done.error is None
    assert len(cluster.created) == 1
    assert cluster.deleted == cluster.created


def test_pods_of_other_mapped_tasks_are_left_alone(run, cluster) -> None:
    cluster.add("other", RUNS_ON, **LABELS, map_index="1")
    cluster.add("own", RUNS_ON, **LABELS, map_index="2")
    done = run(cluster, map_index=2)
    assert done.error is None
    assert cluster.deleted == ["own"]


@pytest.mark.parametrize("timeline", [RUNS_ON, HAS_SUCCEEDED, HAS_FAILED])
@pytest.mark.parametrize(
    "generation", ["2026-11-23T08:59:59.999999+00:00/2", f"{STARTED}/1"], ids=["run", "task"]
)
def test_a_pod_from_before_the_clearing_is_not_taken_over(
    clock, run, cluster, timeline, generation: str
) -> None:
    annotations = {"ml-pipelines/generation": generation}
    cluster.add("old", timeline, annotations=annotations, **LABELS)
    began = clock.now
    done = run(cluster)
    assert done.error is None
    (name,) = cluster.created
    # The old one does not write beside it.
    runs = timeline is RUNS_ON
    assert cluster.made[name].created - began >= 30 * runs
    assert ("old" in cluster.deleted) is (timeline is not HAS_FAILED)


def test_a_pod_that_is_being_deleted_is_waited_for(clock, run, cluster) -> None:
    cluster.add("old", RUNS_ON, **LABELS)
    cluster.delete_namespaced_pod("old", "default", grace_period_seconds=20)
    began = clock.now
    done = run(cluster)
    assert done.error is None
    (name,) = cluster.created
    assert 20 <= cluster.made[name].created - began <= 22


def test_of_two_pods_the_younger_is_followed_and_the_other_goes_first(run, cluster) -> None:
    cluster.add("older", RUNS_ON, age=70, **LABELS)
    cluster.add("younger", [(0, RUNNING), (200, SUCCEEDED)], age=60, **LABELS)
    done = run(cluster)
    assert done.error is None
    assert cluster.created == []
    assert cluster.deleted == ["older", "younger"]


def test_a_pod_is_deleted_though_another_was_quicker(run, cluster) -> None:
    delete = cluster.delete_namespaced_pod

    def delete_twice(name: str, namespace: str, **options) -> None:
        delete(name, namespace, grace_period_seconds=0)
        delete(name, namespace, **options)

    cluster.delete_namespaced_pod = delete_twice
    before = {"ml-pipelines/generation": "before"}
    cluster.add("old", RUNS_ON, annotations=before, **LABELS)
    done = run(cluster)
    assert done.error is None
    assert cluster.deleted == ["old", *cluster.created]


@pytest.mark.parametrize("number", range(len(interruptions()) - 1))
def test_what_ends_a_task_stays_the_reason_and_the_pod_goes(
    clock, run, cluster, number: int
) -> None:
    """A time limit is raised in the middle of anything, and Airflow then calls on_kill."""
    kind = interruptions()[number]

    def interrupt() -> None:
        raise kind("enough")

    cluster.timelines = [[(0, RUNNING)]]
    clock.at(50, interrupt)
    done = run(cluster)
    assert isinstance(done.error, kind)
    assert cluster.deleted == cluster.created
    assert cluster.there == [] or clock.passed >= 80
    (name,) = cluster.created
    ends = (f"Pod {name} failed: it was deleted", f"Pod {name} failed: its phase is Running")
    assert [line for level, line in done.log.lines if level == "error" and line in ends]
    asked = len(cluster.graces)
    done.task.on_kill()
    assert len(cluster.graces) == asked
    assert not [line for level, line in done.log.lines if level == "exception"]


def test_a_task_that_is_killed_deletes_its_pod_and_waits_for_its_end(
    clock, make_task, run_task, cluster
) -> None:
    """As Airflow 2.9's handler of SIGTERM: on_kill, then an exception."""
    terminated = interruptions()[-2]
    task = make_task()

    def kill() -> None:
        task.on_kill()
        raise terminated("SIGTERM")

    cluster.timelines = [[(0, RUNNING)]]
    clock.at(50, kill)
    done = run_task(task, cluster)
    assert isinstance(done.error, terminated)
    assert cluster.deleted == cluster.created
    # Its grace period is over: nothing writes any more.
    assert 80 <= clock.passed <= 82
    assert not [line for level, line in done.log.lines if level == "error"]


def test_a_kept_pod_runs_on_after_its_task(clock, make_task, run_task, cluster) -> None:
    kind = interruptions()[0]

    def interrupt() -> None:
        raise kind("enough")

    cluster.timelines = [[(0, RUNNING)]]
    clock.at(50, interrupt)
    done = run_task(make_task(on_finish_action="keep_pod"), cluster)
    assert isinstance(done.error, kind)
    assert cluster.deleted == []


def test_a_pod_that_is_gone_when_its_task_ends_is_told_of(clock, run, cluster) -> None:
    kind = interruptions()[0]

    def evict() -> None:
        made = cluster.made[cluster.created[0]]
        made.timeline = [(0, EVICTED)]

    def end() -> None:
        cluster.delete_namespaced_pod(cluster.created[0], "default", grace_period_seconds=0)
        raise kind("enough")

    cluster.timelines = [[(0, RUNNING)]]
    clock.at(30, evict)
    clock.at(50, end)
    done = run(cluster, {"get_logs": False})
    assert isinstance(done.error, kind)
    said = "it was evicted (EvictionByEvictionAPI: Eviction API: evicting)"
    assert ("error", f"Pod {cluster.created[0]} is gone: {said}") in done.log.lines


@pytest.mark.parametrize("done", [True, False], ids=["made", "not made"])
def test_a_task_that_is_killed_while_its_pod_is_made_leaves_none(
    clock, make_task, run_task, cluster, done: bool
) -> None:
    terminated, task = interruptions()[-2], make_task()

    def kill() -> None:
        task.on_kill()
        raise terminated("SIGTERM")

    # The answer does not come: the request is repeated.
    cluster.timelines = [[(0, RUNNING)]]
    cluster.trouble(0, 30, HTTPError(), "create_namespaced_pod", done=done)
    clock.at(1, kill)
    assert isinstance(run_task(task, cluster).error, terminated)
    clock.advance(2)  # an object goes a moment after its container
    assert cluster.there == []


def test_a_caller_that_handles_an_exception_sees_the_failure(clock, run, cluster) -> None:
    cluster.timelines = [until(10, ended(2))]
    try:
        raise AirflowException("the GPU task failed")
    except AirflowException:
        done = run(cluster)
    assert "failed: exit code 2" in done.message
    assert "return_value" not in done.xcoms


@pytest.mark.parametrize("status", ["failed", "success"])
def test_such_a_caller_sees_it_after_the_triggerer_too(run, cluster, status: str) -> None:
    """Also of a pod that has failed after the triggerer has looked, or beside its container."""
    cluster.add("old", HAS_FAILED, **LABELS)
    event = {"status": status, "name": "old", "namespace": "default", "message": "m"}
    try:
        raise ValueError("another's")
    except ValueError:
        done = run(cluster, {"deferrable": True}, event=event)
    assert "failed: " in done.message


def test_a_stranger_with_the_same_name_is_left_alone(run, cluster) -> None:
    cluster.add("fixed", RUNS_ON, **(LABELS | {"run_id": "manual__2"}))
    done = run(cluster, {"name": "fixed", "random_name_suffix": False})
    assert isinstance(done.error, AirflowException)
    assert 'refused: pods "fixed" already exists' in done.message
    assert cluster.deleted == []
    assert "return_value" not in done.xcoms
    done.task.on_kill()
    assert cluster.deleted == []


@pytest.mark.parametrize("run_id", ["manual__1", "manual__2"])
def test_a_fixed_name_is_free_for_the_next_pod_of_the_task(run, cluster, run_id: str) -> None:
    """A failed pod does not stay for a look: it would be in the way."""
    fixed = {"name": "fixed", "random_name_suffix": False}
    cluster.timelines = [until(10, ended(2)), until(10, SUCCEEDED)]
    assert run(cluster, fixed).error is not None
    done = run(cluster, fixed, try_number=3, run_id=run_id)
    assert done.error is None
    assert cluster.created == ["fixed", "fixed"]
    assert cluster.there == []


def test_a_cluster_that_mutates_pods_has_the_last_word(run, cluster, monkeypatch) -> None:
    def mutate(pod: k8s.V1Pod) -> None:
        pod.spec.runtime_class_name = "gvisor"
        pod.spec.automount_service_account_token = True
        pod.spec.enable_service_links = True
        pod.spec.termination_grace_period_seconds = 7
        pod.spec.containers.append(k8s.V1Container(name="proxy", image="p"))
        native = k8s.V1Container(name="native", image="p", restart_policy="Always")
        pod.spec.init_containers = [native]

    module = "airflow.providers.cncf.kubernetes.operators.pod.pod_mutation_hook"
    monkeypatch.setattr(module, mutate)
    done = run(cluster)
    assert done.error is None
    assert done.result["accuracy"] == 0.82
    spec = cluster.pod()["spec"]
    assert spec["runtimeClassName"] == "gvisor"
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is True
    assert spec["terminationGracePeriodSeconds"] == 7
    assert spec["initContainers"][0]["restartPolicy"] == "Always"
    # The proxy, which nobody declared, runs on for ever.
    assert cluster.deleted == cluster.created


def test_a_starting_pod_is_followed_too(run, cluster) -> None:
    cluster.add("old", [(0, STARTING), (70, RUNNING), (90, SUCCEEDED)], **LABELS)
    assert run(cluster).error is None
    assert cluster.created == []
