"""The client of Airflow's REST API, against a small server that answers as Airflow 3.3 does.

What does not depend on the version is in test_airflow.py.
"""

import json
import re
from datetime import datetime
from typing import Any
from unittest.mock import Mock

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from mlctl.clients.airflow import Airflow, AirflowError, Task, container_lines, telling_lines

ENTRIES = [
    {"event": "::group::Log message source details", "sources": ["/x"]},
    {"level": "info", "event": "[base] step 1 of 2", "logger": "pod_manager"},
    {"level": "info", "event": "[base] готово ✓", "logger": "pod_manager"},
    {
        "level": "error",
        "event": "Task failed with exception",
        "error_detail": [{"exc_type": "AirflowException", "exc_value": "exit code 1"}],
    },
]
LOG = "".join(
    json.dumps({"timestamp": "2026-11-27T10:00:00Z", **one}, ensure_ascii=False) + "\n"
    for one in ENTRIES
)


class Server:
    """Answers that a test sets, and what was asked."""

    def __init__(self, http: HTTPServer) -> None:
        self.url = http.url_for("").rstrip("/")
        self.asked: list[tuple[str, str, Any]] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        self.logins = 0
        http.expect_request("/auth/token", "POST").respond_with_handler(self.login)
        http.expect_request(re.compile("/api/v2/")).respond_with_handler(self.api)

    def login(self, request: Request) -> Response:
        self.logins += 1
        if request.json != {"username": "admin", "password": "right"}:
            return Response('{"detail": "Invalid credentials"}', 401)
        return Response(json.dumps({"access_token": f"token {self.logins}"}), 201)

    def api(self, request: Request) -> Response:
        path = request.environ["REQUEST_URI"].removeprefix("/api/v2/").partition("?")[0]
        # A token ends as a session does: here after a login.
        if request.headers.get("Authorization") != f"Bearer token {self.logins}":
            return Response('{"detail": "Not authenticated"}', 401)
        if "ended" in self.answers:
            self.logins += self.answers.pop("ended")[0]
            return Response('{"detail": "Token has expired"}', 401)
        self.asked.append((request.method, path, request.get_json(silent=True)))
        status, body = self.answers.get(path, (404, {"detail": "Not found"}))
        if isinstance(body, str):
            return Response(body.encode(), status, {"Content-Type": "application/x-ndjson"})
        return Response(json.dumps(body), status)


@pytest.fixture
def server(httpserver: HTTPServer) -> Server:
    return Server(httpserver)


def client(server: Server, password: str = "right") -> Airflow:
    way = Mock(spec=["url", "ensure", "close"], url=server.url)
    return Airflow(way, "admin", password, version="3.3.2")


def test_one_token_serves_until_it_ends(server: Server) -> None:
    airflow = client(server)
    server.answers["dags/x"] = (200, {"dag_id": "x", "is_stale": False})
    for _ in range(2):
        entry = airflow.dag("x")
        assert entry is not None
        assert airflow.is_active(entry)
    assert server.logins == 1
    server.answers["ended"] = (1, None)
    assert airflow.dag("x") == entry
    assert server.logins == 3


def test_a_wrong_password_is_said_at_once(server: Server) -> None:
    with pytest.raises(AirflowError, match="refuses the password of the user admin"):
        client(server, "wrong").dag("x")
    assert server.logins == 1


def test_a_run_that_is_started_has_a_date(server: Server) -> None:
    server.answers["dags/x/dagRuns"] = (409, {"detail": "is there"})
    airflow = client(server)
    run_id = airflow.trigger("x", {"a": 1})
    airflow.trigger("x", run_id="mine", logical_date="2026-01-01T00:00:00+00:00")
    first, second = (body for _, _, body in server.asked)
    assert first["dag_run_id"] == run_id
    assert first["conf"] == {"a": 1}
    assert datetime.fromisoformat(first["logical_date"]).tzinfo
    assert (second["dag_run_id"], second["logical_date"]) == ("mine", "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("status", "detail", "told"),
    [
        (
            400,
            "Invalid input for param n: 0 is less than 1\n\nFailed validating",
            "is less than 1$",
        ),
        (
            422,
            [{"loc": ["body", "conf"], "msg": "is no object", "type": "x"}],
            "conf: is no object$",
        ),
    ],
)
def test_a_refusal_is_told_in_airflows_words(
    server: Server, status: int, detail: Any, told: str
) -> None:
    server.answers["dags/x/dagRuns"] = (status, {"detail": detail})
    with pytest.raises(AirflowError, match=told):
        client(server).trigger("x", {"n": 0})
    assert len(server.asked) == 1


def test_a_log_reads_as_that_of_airflow_2(server: Server) -> None:
    server.answers["dags/x/dagRuns/r/taskInstances/a/logs/1"] = (200, LOG)
    airflow = client(server)
    log = airflow.log("x", "r", "a")
    assert container_lines(log) == ["step 1 of 2", "готово ✓"]
    # And so does its end on the claim, whose first line may be cut.
    airflow.end_of_file = lambda path: LOG[10:]
    assert container_lines(airflow.log_end("x", "r", Task("a", "running", 1, 1.0))) == [
        "step 1 of 2",
        "готово ✓",
    ]
    without = "\n".join(line for line in log.splitlines() if "[base]" not in line)
    assert telling_lines(without) == ["Task failed with exception", "AirflowException: exit code 1"]


def test_a_result_is_an_object(server: Server) -> None:
    path = "dags/x/dagRuns/r/taskInstances/a/xcomEntries/return_value"
    server.answers[path] = (200, {"value": {"accuracy": 0.9}})
    assert client(server).result("x", "r", "a") == {"accuracy": 0.9}


def test_approval_is_an_answer(server: Server) -> None:
    path = "dags/x/dagRuns/r/taskInstances/a/-1/hitlDetails"
    server.answers[path] = (200, {})
    client(server).approve("x", "r", "a")
    answer = {"chosen_options": ["Approve"], "params_input": {}}
    assert server.asked == [("PATCH", path, answer)]


def test_a_run_is_ended_by_its_id(server: Server) -> None:
    path = "dags/x/dagRuns/a%2Fb"
    server.answers[path] = (200, {})
    client(server).fail("x", "a/b")
    assert server.asked == [("PATCH", path, {"state": "failed"})]


def test_a_silent_scheduler_is_told(server: Server) -> None:
    health = {"scheduler": {"status": "unhealthy", "latest_scheduler_heartbeat": "10:00"}}
    server.answers["monitor/health"] = (200, health)
    assert "the scheduler is unhealthy" in client(server)._scheduler_words()
