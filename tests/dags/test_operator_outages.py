"""An API server, a node or a database that is away for a while."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from airflow.exceptions import AirflowException
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

from ml_pipelines import pod_manager
from ml_pipelines.failures import explain_refusal
from ml_pipelines.pod_manager import PatientPodManager
from tests.dags.cluster import LABELS, RUNNING, Cluster, answer, ended, until

RESULT = {"accuracy": 0.82}
WORKING = until(60, ended(0, message=json.dumps(RESULT)))
FORBIDDEN = answer(403, "Forbidden")
AWAY = [
    answer(500, "Internal Server Error"),
    answer(429, "Too Many Requests"),
    answer(503, "Service Unavailable"),
    ProtocolError("Connection aborted."),
]
REQUESTS = [
    "create_namespaced_pod",
    "read_namespaced_pod",
    "list_namespaced_pod",
    "delete_namespaced_pod",
    "read_namespaced_pod_log",
]


@pytest.fixture
def run(make_task, run_task):
    return lambda cluster, **of_run: run_task(make_task(), cluster, **of_run)


@pytest.mark.parametrize("error", AWAY, ids=["500", "429", "503", "reset"])
@pytest.mark.parametrize("begin", [0, 5, 50])
def test_an_outage_of_a_minute_costs_no_try(clock, run, error, begin: float) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(begin, begin + 60, error)
    done = run(cluster)
    assert done.error is None
    assert done.result["accuracy"] == 0.82
    assert len(cluster.created) == 1
    assert cluster.deleted == cluster.created
    assert "trying again" in done.log.text
    assert clock.passed < 60 + 60 + 10


@pytest.mark.parametrize("request_name", REQUESTS)
def test_one_kind_of_request_may_fail_for_a_while(clock, run, request_name: str) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(0, 90, AWAY[0], request_name)
    done = run(cluster)
    assert done.error is None
    assert cluster.deleted == cluster.created


def test_an_api_server_that_starts_may_refuse_for_a_moment(clock, run) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(10, 30, AWAY[3])
    cluster.trouble(30, 40, FORBIDDEN)
    assert run(cluster).error is None


@pytest.mark.parametrize("error", AWAY, ids=["500", "429", "503", "reset"])
def test_an_outage_that_lasts_fails_the_try_and_keeps_the_pod(clock, run, error) -> None:
    cluster = Cluster(clock, [(0, RUNNING)])
    cluster.trouble(10, 10_000, error)
    done = run(cluster)
    assert isinstance(done.error, ApiException | HTTPError)
    # The pod may be running well: the next try follows it.
    assert cluster.deleted == []
    stays = f"Pod {cluster.created[0]} stays as it is: {explain_refusal(done.error)}"
    assert ("warning", stays) in done.log.lines
    # Two minutes until the try ends, two more until its pod is left alone.
    assert 10 + 120 <= clock.passed <= 10 + 250


def test_the_patience_is_two_minutes(clock, make_task, run_task) -> None:
    for seconds, enough in ((115, True), (130, False)):
        cluster = Cluster(clock, until(500, ended(0)))
        cluster.trouble(10, 10 + seconds, AWAY[3])
        assert (run_task(make_task(get_logs=False), cluster).error is None) is enough


def test_a_refused_request_is_not_repeated(clock, run) -> None:
    cluster = Cluster(clock, [(0, RUNNING)])
    cluster.trouble(10, 10_000, FORBIDDEN)
    done = run(cluster)
    assert "403" in done.message
    assert clock.passed < 20
    assert cluster.deleted == []


@pytest.mark.parametrize(
    "error", [AWAY[0], FORBIDDEN], ids=["containerd is away", "nobody may read logs"]
)
def test_a_log_that_cannot_be_read_does_not_end_the_training(clock, run, error) -> None:
    cluster = Cluster(clock, until(3600, ended(0, message=json.dumps(RESULT))))
    cluster.trouble(0, 10_000, error, "read_namespaced_pod_log")
    done = run(cluster)
    assert done.error is None
    assert clock.passed < 3600 + 130
    # Not at every look.
    said = f"The log cannot be read: {error.reason}"
    assert 1 <= done.log.text.count(said) < 40


def test_a_log_that_comes_back_is_read_on(clock, run) -> None:
    cluster = Cluster(clock, until(100, ended(0)))
    cluster.trouble(0, 20, AWAY[0], "read_namespaced_pod_log")
    done = run(cluster)
    assert done.error is None
    assert "epoch 1" in done.log.text


@pytest.mark.parametrize("request_name", ["create_namespaced_pod", "delete_namespaced_pod"])
def test_what_was_done_and_not_answered_is_done_once(clock, run, request_name: str) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(0, 90, AWAY[3], request_name, done=True)
    done = run(cluster)
    assert done.error is None
    assert len(cluster.created) == 1
    assert cluster.deleted == cluster.created


def quota(used: str) -> ApiException:
    said = f'pods "x" is forbidden: exceeded quota: team, requested: pods=1, used: {used}'
    return answer(403, "Forbidden", said)


FULL = quota("pods=5, limited: pods=5")


def test_a_pod_waits_for_room_in_the_quota(clock, run) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(0, 300, FULL, "create_namespaced_pod")
    done = run(cluster)
    assert done.error is None
    assert done.log.text.count("exceeded quota: team, requested: pods=1") == 1
    assert 360 <= clock.passed < 370


def test_a_quota_that_stays_used_up_fails_the_try_at_the_limit(clock, run) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(0, 10_000, FULL, "create_namespaced_pod")
    done = run(cluster)
    assert isinstance(done.error, AirflowException)
    assert "was refused: pods " in done.message
    assert "exceeded quota: team" in done.message
    assert 600 <= clock.passed < 610
    assert cluster.created == []


def test_a_quota_in_an_outage_is_no_api_server_that_starts(clock, run) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(0, 10, AWAY[3], "create_namespaced_pod")
    cluster.trouble(10, 70, FULL, "create_namespaced_pod")
    done = run(cluster)
    assert done.error is None
    assert "waits: pods" in done.log.text


@pytest.mark.parametrize(
    "error",
    [
        answer(403, "Forbidden", "failed quota: team: must specify limits.cpu for: base"),
        answer(422, "Unprocessable Entity", 'Pod "x" is invalid'),
        answer(400, "Bad Request", "no such field"),
    ],
    ids=lambda error: str(error.status),
)
def test_a_pod_that_is_refused_for_good_fails_at_once(clock, run, error: ApiException) -> None:
    cluster = Cluster(clock, WORKING)
    cluster.trouble(0, 10_000, error, "create_namespaced_pod")
    done = run(cluster)
    assert isinstance(done.error, AirflowException)
    assert json.loads(error.body)["message"] in done.message
    assert clock.passed < 5


@pytest.mark.parametrize("get_logs", [True, False])
def test_a_lost_node_costs_a_try_in_minutes(clock, make_task, run_task, get_logs: bool) -> None:
    """The node controller deletes the pod after five minutes; nobody says that it has ended."""
    cluster = Cluster(clock, [(0, RUNNING)], lost_node=True)
    clock.at(30, lambda: cluster.trouble(0, 10_000, AWAY[0], "read_namespaced_pod_log"))
    clock.at(330, lambda: cluster.delete_namespaced_pod(cluster.created[0], "default"))
    done = run_task(make_task(get_logs=get_logs), cluster)
    assert isinstance(done.error, AirflowException)
    assert "its node was lost" in done.message
    # The API server tells whole seconds.
    assert 330 + 30 + 60 - 1 <= clock.passed < 330 + 30 + 60 + 130

    # The next try has a pod of its own, and waits for the lost one no more.
    before, cluster.timelines = clock.passed, [WORKING]
    cluster.troubles.clear()
    second = run_task(make_task(get_logs=get_logs), cluster, try_number=2)
    assert second.error is None
    assert clock.passed - before < 70


@pytest.mark.parametrize("skew", [-10, 10])
def test_clocks_that_differ_by_ten_seconds_change_nothing(clock, run, skew: float) -> None:
    cluster = Cluster(clock, WORKING, skew=skew)
    done = run(cluster)
    assert done.error is None
    assert done.result["accuracy"] == 0.82

    # A pod that is being deleted is waited for to its end.
    cluster = Cluster(clock, WORKING, skew=skew)
    cluster.add("leaving", [(0, RUNNING)], **LABELS)
    cluster.delete_namespaced_pod("leaving", "default")
    began = clock.now
    assert run(cluster).error is None
    (made,) = [cluster.made[name] for name in cluster.created]
    assert made.created - began >= 30


def test_a_database_that_is_away_costs_a_try_and_no_training(clock, make_task, run_task) -> None:
    class Away(Exception):
        """As SQLAlchemy's OperationalError."""

    def push(key: str, value: object, **_: object) -> None:
        if key == "return_value":
            raise Away

    cluster = Cluster(clock, WORKING)
    first = run_task(make_task(), cluster, xcom_push=push)
    assert isinstance(first.error, Away)
    assert cluster.deleted == []
    stays = f"Pod {cluster.created[0]} (Succeeded) stays, for the next try"
    assert ("warning", stays) in first.log.lines

    second = run_task(make_task(), cluster, try_number=2)
    assert second.error is None
    assert second.xcoms["return_value"]["accuracy"] == 0.82
    assert len(cluster.created) == 1
    assert cluster.deleted == cluster.created


@pytest.fixture
def mute_server() -> Iterator[str]:
    """The address of a server that accepts every connection and never answers, but closes it.

    Else nobody would come back who waits for an answer without a limit.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    one = listening.accept()[0]
                except OSError:
                    return
                accepted.append(one)
                closing = threading.Timer(30, one.close)
                closing.daemon = True
                closing.start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    for one in accepted:
        one.close()


def test_a_server_that_accepts_and_never_answers_is_one_that_is_away(
    mute_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_manager, "REQUEST_SECONDS", (1, 0.2))
    configuration = Configuration()
    configuration.host, configuration.retries = mute_server, False
    client = CoreV1Api(ApiClient(configuration))
    PatientPodManager.of(PodManager(client))
    with pytest.raises(ReadTimeoutError) as error:
        client.read_namespaced_pod("x", "default")
    assert pod_manager.is_transient(error.value)


def test_requests_have_a_time_limit_and_keep_their_own(clock, make_task) -> None:
    cluster = Cluster(clock, WORKING)
    asked: list[object] = []
    rest = cluster.api_client.rest_client
    rest.request = lambda *_, _request_timeout=None, **__: asked.append(_request_timeout)
    task = make_task()
    from tests.dags.conftest import hook_of

    vars(task)["hook"] = hook_of(cluster)
    client = task.pod_manager._client
    client.api_client.rest_client.request("GET", "http://x")
    client.api_client.rest_client.request("GET", "http://x", _request_timeout=(1800, 300))
    assert asked == [(5, 30), (1800, 300)]
