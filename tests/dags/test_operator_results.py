"""What becomes of a pod's result, and how soon."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from kubernetes.client import models as k8s

from ml_pipelines.operator import AirflowFailException
from tests.dags.cluster import (
    DIGEST,
    LABELS,
    RUNNING,
    RUNNING_STATE,
    STARTING,
    Cluster,
    Status,
    ended,
    terminated,
    until,
)

RESULT = {"accuracy": 0.82, "baseline_accuracy": 0.78, "steps": 200}
IMAGE = "ghcr.io/kyryl-opens-ml/classic-example:main"
# What the operator adds to a result.
RAN = {"image": IMAGE, "image_digest": DIGEST}
SUCCEEDED = ended(0, message=json.dumps(RESULT))


@pytest.fixture
def run(clock, make_task, run_task):
    """Run a task whose pod ends like this after a minute."""

    def run(status: Status = SUCCEEDED, cluster: Cluster | None = None, **arguments):
        cluster = cluster or Cluster(clock, until(60, status))
        return run_task(make_task(**arguments), cluster)

    return run


def test_result_of_the_container_is_returned_and_pushed(run) -> None:
    done = run()
    assert done.error is None
    assert done.result == done.xcoms["return_value"] == RESULT | RAN
    assert done.xcoms["pod_name"] == done.cluster.created[0]
    assert len(done.cluster.created) == 1
    assert done.cluster.deleted == done.cluster.created
    assert "epoch 1" in done.log.text


@pytest.mark.parametrize(
    ("message", "result"),
    [
        ("", RAN),
        ("no json", RAN),
        ("x" * 4096 + "y", None),
        ("{}", RAN),
        ("[1]", [1]),
        ('"text"', "text"),
        ("0", 0),
        ("null", RAN),
        ('["' + "x" * 4090 + '"]', ["x" * 4090]),
        ('["' + "x" * 4094, None),
        ('["' + "ü" * 2047, None),
        ('["' + "x" * 4093, RAN),
    ],
    ids=lambda value: str(value)[:12],
)
def test_result_is_json_and_fails_the_task_only_when_it_was_cut_off(run, message, result) -> None:
    done = run(ended(0, message=message))
    if result is None:
        # To run it again would change nothing.
        assert isinstance(done.error, AirflowFailException)
        assert "4096 bytes" in done.message
        assert "do_xcom_push=True" in done.message
        assert "return_value" not in done.xcoms
    else:
        assert done.error is None
        assert done.result == result
    assert done.cluster.deleted == done.cluster.created
    is_json = message and message[0] in '{[n"0' and message[-1] in '}]l"0'
    told = bool(message) and result is not None and not is_json
    assert ("Not a result" in done.log.text) is told


@pytest.mark.parametrize(
    ("image_id", "digest"),
    [
        (f"docker.io/library/classic-example@{DIGEST}", DIGEST),
        # An image that was imported and not pulled has no name with a digest.
        (DIGEST, DIGEST),
        (f"docker-pullable://classic-example@{DIGEST}", DIGEST),
        ("", None),
        ("classic-example:main", None),
    ],
)
def test_result_says_which_image_has_run(run, image_id: str, digest: str | None) -> None:
    done = run(Status(terminated(0, message=json.dumps(RESULT)), image_id=image_id))
    assert done.result.get("image_digest") == digest
    assert done.result["image"] == IMAGE


def test_result_says_what_ran_and_not_what_the_values_say_now(clock, run) -> None:
    """The next try follows a pod that was made before the values changed."""
    cluster = Cluster(clock)
    cluster.add("before", until(120, SUCCEEDED), **LABELS)
    done = run(cluster=cluster)
    assert done.error is None
    assert done.result["image"] == "ghcr.io/example/before:1"


@pytest.mark.parametrize("lead", [0, 0.6, 1.5])
def test_end_of_the_container_is_noticed_at_once(clock, run, lead: float) -> None:
    # Still "running" for a moment after the log stream has ended.
    done = run(cluster=Cluster(clock, until(60, SUCCEEDED), log_lead=lead))
    assert done.error is None
    assert 60 <= clock.passed <= 60.5


@pytest.mark.parametrize("get_logs", [True, False])
def test_end_of_a_pod_is_noticed_at_once_without_its_log(clock, run, get_logs: bool) -> None:
    done = run(get_logs=get_logs)
    assert done.error is None
    assert 60 <= clock.passed <= 60.5
    assert ("epoch 1" in done.log.text) is get_logs


def test_with_do_xcom_push_false_there_is_no_result(run) -> None:
    done = run(do_xcom_push=False)
    assert done.error is None
    assert done.result is None
    assert "return_value" not in done.xcoms


@pytest.mark.parametrize(
    "name", ["istio-proxy", "linkerd-proxy", "vault-agent"], ids=lambda name: name
)
@pytest.mark.parametrize(("exit_code", "fails"), [(0, False), (3, True)])
def test_an_injected_sidecar_does_not_hold_the_task_up(
    clock, run, name: str, exit_code: int, fails: bool
) -> None:
    sidecar = k8s.V1Container(name=name, image="i")
    status = ended(exit_code, message=json.dumps(RESULT))
    done = run(cluster=Cluster(clock, until(60, status), injected=[sidecar]))
    assert bool(done.error) is fails
    assert clock.passed < 62 + 31 * fails
    # The sidecar of a pod that has failed would run for ever.
    assert done.cluster.deleted == done.cluster.created
    if fails:
        assert done.message.endswith(f" failed: exit code 3: {json.dumps(RESULT)}")
    else:
        assert done.result == RESULT | RAN


def test_an_injected_sidecar_is_known_by_any_name_of_the_container(clock, run) -> None:
    cluster = Cluster(clock, until(60, SUCCEEDED), injected=[k8s.V1Container(name="istio-proxy")])
    done = run(cluster=cluster, base_container_name="main")
    assert done.error is None
    assert clock.passed < 62


@pytest.mark.parametrize("injected", [True, False])
def test_containers_of_values_and_of_the_tasks_own_pod_are_declared(
    make_task, settings_file, injected: bool
) -> None:
    def named(*names: str) -> list[k8s.V1Container]:
        return [k8s.V1Container(name=name, image="i") for name in names]

    beside = {"name": "uploader", "image": "i"}
    settings_file({"pod": {"spec": {"containers": [{"name": "base", "image": IMAGE}, beside]}}})
    own = k8s.V1Pod(spec=k8s.V1PodSpec(containers=named("base", "cache")))
    task = make_task(full_pod_spec=own)
    there = named("base", "uploader", "cache", *(["istio-proxy"] if injected else []))
    pod = k8s.V1Pod(spec=k8s.V1PodSpec(containers=there))
    vars(task)["pod_manager"] = SimpleNamespace(last_seen=None)
    assert task.is_istio_enabled(pod) is injected
    task.full_pod_spec = k8s.V1Pod()
    assert task.is_istio_enabled(pod) is True


def test_a_declared_container_is_waited_for(clock, run, settings_file) -> None:
    beside = {"name": "uploader", "image": "i"}
    settings_file({"pod": {"spec": {"containers": [{"name": "base", "image": IMAGE}, beside]}}})
    first = Status(terminated(0, message=json.dumps(RESULT)), others={"uploader": RUNNING_STATE})
    last = Status(first.base, others={"uploader": terminated(0)})
    done = run(cluster=Cluster(clock, [(0, STARTING), (1, RUNNING), (20, first), (50, last)]))
    assert done.error is None
    assert done.result == RESULT | RAN
    assert 50 <= clock.passed <= 51


def test_a_declared_container_that_fails_fails_the_task(clock, run, settings_file) -> None:
    beside = {"name": "uploader", "image": "i"}
    settings_file({"pod": {"spec": {"containers": [{"name": "base", "image": IMAGE}, beside]}}})
    status = Status(terminated(0), others={"uploader": terminated(4, message="ERROR: no bucket")})
    done = run(status)
    assert "failed: container uploader: exit code 4: ERROR: no bucket" in done.message
    assert "return_value" not in done.xcoms
