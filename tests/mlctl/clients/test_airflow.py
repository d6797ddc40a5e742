"""The client of Airflow's REST API, against a small server that answers as Airflow 2.9 does."""

import json
import re
from collections.abc import Iterator
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from mlctl.base.errors import UserError
from mlctl.clients.airflow import (
    Airflow,
    AirflowError,
    Task,
    container_lines,
    run_seconds,
    telling_lines,
)
from mlctl.clients.kube import KubectlError

LOG = """pod-name
*** Found local files:
[2026-11-23T16:46:13.256+0000] {local_task_job_runner.py:120} INFO - ::group::Pre task logs
[2026-11-23T16:46:14.256+0000] {pod_manager.py:471} INFO - [base] step 1 of 2
[2026-11-23T16:46:15.256+0000] {pod_manager.py:471} INFO - [base] ERROR: no column sentence
[2026-11-23T16:46:16.256+0000] {taskinstance.py:2905} ERROR - Task failed with exception
Traceback (most recent call last):
  File "x.py", line 1, in <module>
AirflowException: exit code 1
"""


class Server:
    """Answers that a test sets, and what was asked."""

    def __init__(self, http: HTTPServer) -> None:
        self.url = http.url_for("").rstrip("/")
        self.asked: list[str] = []
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.logins = 0
        self.refused_logins = 0
        self.database_is_there = Event()
        self.database_is_there.set()
        form = '<input id="csrf_token" name="csrf_token" type="hidden" value="a&#39;b">'
        http.expect_request("/login/", "GET").respond_with_data(form)
        http.expect_request("/login/", "POST").respond_with_handler(self.login)
        http.expect_request(re.compile("/api/v1/")).respond_with_handler(self.api)

    def login(self, request: Request) -> Response:
        if self.refused_logins:
            self.refused_logins -= 1
            return Response(status=429)
        self.logins += 1
        right = {"username": "admin", "password": "right", "csrf_token": "a'b"}
        good = request.form.to_dict() == right
        answer = Response(status=302, headers={"Location": "/home" if good else "/login/"})
        answer.set_cookie("session", "known" if good else "anonymous")
        return answer

    def api(self, request: Request) -> Response:
        self.database_is_there.wait()
        # As it was sent: an id may hold an encoded slash.
        path = request.environ["REQUEST_URI"].removeprefix("/api/v1/").partition("?")[0]
        self.asked.append(path)
        if request.cookies.get("session") != "known":
            return Response('{"title": "Unauthorized"}', 401)
        answers = self.answers.get(path, [(404, {"title": "Not found"})])
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(body, str):
            # As Airflow sends a log: without an encoding.
            return Response(body.encode(), status, {"Content-Type": "text/plain"})
        return Response(json.dumps(body), status)


@pytest.fixture
def server(httpserver: HTTPServer) -> Server:
    return Server(httpserver)


def client(server: Server, password: str) -> Airflow:
    return Airflow(way_to(server), "admin", password)


def way_to(server: Server) -> Mock:
    return Mock(spec=["url", "ensure", "close"], url=server.url)


@pytest.fixture
def airflow(server: Server) -> Airflow:
    return client(server, "right")


def run_entry(state: str) -> dict[str, Any]:
    return {"dag_run_id": "r", "state": state}


def task_entry(
    name: str, state: str | None, number: int = 1, map_index: int = -1
) -> dict[str, Any]:
    start = "2026-11-23T16:46:13+00:00" if state else None
    end = "2026-11-23T16:46:15+00:00" if state in {"success", "failed"} else None
    return {
        "task_id": name,
        "state": state,
        "try_number": number,
        "start_date": start,
        "end_date": end,
        "map_index": map_index,
    }


def task_list(*entries: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, {"task_instances": list(entries), "total_entries": len(entries)}


def test_it_logs_in_once(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x"] = [(200, {"dag_id": "x"})]
    assert airflow.dag("x") == {"dag_id": "x"}
    assert airflow.dag("x") == {"dag_id": "x"}
    assert server.logins == 1


def test_a_wrong_password_is_said_at_once(server: Server) -> None:
    with pytest.raises(AirflowError, match="refuses the password of the user admin"):
        client(server, "wrong").dag("x")
    assert server.logins == 1


def test_an_unknown_dag_is_none(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x"] = [(404, {"title": "DAG not found"})]
    assert airflow.dag("x") is None


def test_a_refusal_is_told_and_not_repeated(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x/dagRuns"] = [(400, {"title": "Bad Request", "detail": "bad conf"})]
    with pytest.raises(AirflowError, match="400 Bad Request bad conf"):
        airflow.trigger("x")
    assert len(server.asked) == 1


def test_an_ended_session_and_a_restart_are_ridden_out(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x"] = [(401, {}), (503, "starting"), (200, {"dag_id": "x"})]
    assert airflow.dag("x") == {"dag_id": "x"}
    # The session outlives the web server.
    assert server.logins == 2
    assert airflow.connection.close.call_count == 2


def test_a_limit_of_logins_is_waited_out(
    server: Server, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlctl.clients.airflow.LOGIN_PAUSE_SECONDS", 0.01)
    server.refused_logins = 2
    server.answers["dags/x"] = [(200, {"dag_id": "x"})]
    assert airflow.dag("x") == {"dag_id": "x"}
    assert server.logins == 1


def test_a_server_that_stays_away_is_given_up(server: Server, airflow: Airflow) -> None:
    airflow.patience = 0
    server.answers["dags/x"] = [(503, "starting")]
    with pytest.raises(AirflowError, match=r"does not answer \(\d+ s\): status 503; `make status`"):
        airflow.dag("x")


@pytest.fixture
def going() -> Iterator[HTTPServer]:
    """A web server that a test stops and starts, on the same port."""
    with HTTPServer(threaded=True) as http:
        yield http


def test_a_page_that_goes_away_in_the_middle_of_a_run_is_waited_for(
    going: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlctl.clients.airflow.TELL_SECONDS", 0)
    server, told = Server(going), []

    def come_back(text: str) -> None:
        told.append(text)
        if len(told) == 2:
            going.start()

    airflow = Airflow(way_to(server), "admin", "right", tell=come_back, patience=60)
    server.answers["dags/x/dagRuns/r"] = [(200, run_entry("running")), (200, run_entry("success"))]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [
        task_list(task_entry("a", "running")),
        task_list(task_entry("a", "success")),
    ]
    changes = []

    def changed(_: str, task: Task) -> None:
        changes.append(task.state)
        if task.state == "running":
            going.stop()

    assert airflow.wait_for_run("x", "r", timeout=60, on_change=changed)["state"] == "success"
    assert changes == ["running", "success"]
    assert len(told) == 2
    for line in told:
        assert re.fullmatch(r"Airflow does not answer \(\d+ s\), waiting: ConnectionError", line)


def test_a_page_that_takes_requests_and_never_answers_is_waited_for(
    going: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlctl.clients.airflow.TELL_SECONDS", 0)
    monkeypatch.setattr("mlctl.clients.airflow.REQUEST_SECONDS", 0.1)
    server, told = Server(going), []
    server.database_is_there.clear()

    def come_back(text: str) -> None:
        told.append(text)
        monkeypatch.setattr("mlctl.clients.airflow.REQUEST_SECONDS", 60)
        server.database_is_there.set()

    server.answers["dags/x"] = [(200, {"dag_id": "x"})]
    airflow = Airflow(way_to(server), "admin", "right", tell=come_back, patience=60)
    assert airflow.dag("x") == {"dag_id": "x"}
    assert [line.endswith("waiting: ReadTimeout") for line in told] == [True]


def test_without_a_pod_behind_the_service_the_page_is_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlctl.clients.airflow.TELL_SECONDS", 0)
    way, told = way_to(server), []
    no_way = UserError("no way to the service web: error: pod is not running")
    way.ensure.side_effect = [no_way, no_way, None]
    airflow = Airflow(way, "admin", "right", tell=told.append)
    server.answers["dags/x"] = [(200, {"dag_id": "x"})]
    assert airflow.dag("x") == {"dag_id": "x"}
    assert [line.endswith("waiting: " + str(no_way)) for line in told] == [True, True]


def test_a_refused_parameter_is_told_without_its_schema(server: Server, airflow: Airflow) -> None:
    detail = (
        "Invalid input for param max_steps: 0 is less than the minimum of 1\n\nFailed validating"
    )
    server.answers["dags/x/dagRuns"] = [(400, {"title": "Bad Request", "detail": detail})]
    with pytest.raises(AirflowError, match=r"param max_steps: 0 is less than the minimum of 1$"):
        airflow.trigger("x", {"max_steps": 0})


def test_the_dags_are_those_of_all_pages(server: Server, airflow: Airflow) -> None:
    server.answers["dags"] = [
        (200, {"dags": [{"dag_id": name}], "total_entries": 2}) for name in ("churn", "x")
    ]
    assert [dag["dag_id"] for dag in airflow.dags()] == ["churn", "x"]


def test_an_id_may_be_in_any_script(server: Server, airflow: Airflow) -> None:
    server.answers["dags/%D0%BC%D0%BE%D0%B4%D0%B5%D0%BB%D1%8C"] = [(200, {"dag_id": "модель"})]
    assert airflow.dag("модель") == {"dag_id": "модель"}


def test_mapped_tasks_are_apart(server: Server, airflow: Airflow) -> None:
    entries = [task_entry("score", "success", map_index=index) for index in range(3)]
    both = {"total_entries": 4}
    # Rows that change move: here one is on both pages.
    server.answers["dags/x/dagRuns/r/taskInstances"] = [
        (200, both | {"task_instances": entries[:2]}),
        (200, both | {"task_instances": entries[1:]}),
    ]
    tasks = airflow.tasks("x", "r")
    assert [task.name for task in tasks] == ["score[0]", "score[1]", "score[2]"]
    read: list[str] = []
    airflow.end_of_file = lambda path: read.append(path) or LOG
    airflow.log_end("x", "r", tasks[2])
    assert read == ["dag_id=x/run_id=r/task_id=score/map_index=2/attempt=1.log"]


def test_of_many_tasks_at_once_a_few_are_looked_at(server: Server, airflow: Airflow) -> None:
    running = [task_entry("score", "running", map_index=index) for index in range(20)]
    server.answers["dags/x/dagRuns/r"] = [(200, run_entry("running")), (200, run_entry("success"))]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [task_list(*running)]
    read: list[str] = []
    airflow.end_of_file = lambda path: read.append(path) or LOG
    notes: list[str] = []
    airflow.wait_for_run("x", "r", timeout=60, note=notes.append)
    assert len(read) == 3
    assert notes[0].endswith("| 17 more run")


def test_a_repeated_trigger_is_no_second_run(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x/dagRuns"] = [(409, {"title": "Conflict"})]
    assert airflow.trigger("x").startswith("manual__")


def test_a_dag_that_has_just_appeared_is_started_as_soon_as_it_can_be(
    server: Server, airflow: Airflow
) -> None:
    not_found = (404, {"title": "DAG not found"})
    server.answers["dags/x/dagRuns"] = [not_found, not_found, (200, {})]
    server.answers["dags/x"] = [(200, {"dag_id": "x"})]
    assert airflow.trigger("x", run_id="a") == "a"
    assert server.asked.count("dags/x/dagRuns") == 3


def test_a_dag_that_is_not_there_is_not_waited_for(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x/dagRuns"] = [(404, {"title": "DAG not found"})]
    server.answers["dags/x"] = [(404, {"title": "DAG not found"})]
    with pytest.raises(AirflowError, match="DAG not found"):
        airflow.trigger("x")


def test_a_run_id_can_be_chosen(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x/dagRuns"] = [(200, {})]
    assert airflow.trigger("x", run_id="a+b") == "a+b"


def test_many_runs_are_one_request_and_older_ones_one_each(
    server: Server, airflow: Airflow
) -> None:
    newest = [{"dag_run_id": name, "state": "running"} for name in ("c", "b", "other")]
    server.answers["dags/x/dagRuns"] = [(200, {"dag_runs": newest})]
    server.answers["dags/x/dagRuns/a"] = [(200, {"dag_run_id": "a", "state": "success"})]
    found = airflow.runs("x", ["a", "b", "c"])
    assert [(one["dag_run_id"], one["state"]) for one in found] == [
        ("a", "success"),
        ("b", "running"),
        ("c", "running"),
    ]
    assert len(server.asked) == 2


def test_all_runs_come_page_by_page(server: Server, airflow: Airflow) -> None:
    pages = [["a", "b"], ["c"]]
    server.answers["dags/x/dagRuns"] = [
        (200, {"dag_runs": [{"dag_run_id": name} for name in page], "total_entries": 3})
        for page in pages
    ]
    assert [one["dag_run_id"] for one in airflow.all_runs("x")] == ["a", "b", "c"]


def test_a_result_is_the_value_and_not_its_text(server: Server, airflow: Airflow) -> None:
    path = "dags/x/dagRuns/a%2Fb/taskInstances/t/xcomEntries/return_value"
    server.answers[path] = [(200, {"value": "{'accuracy': 0.9, 'note': None}"})]
    assert airflow.result("x", "a/b", "t") == {"accuracy": 0.9, "note": None}
    for no_object in ("12", "three words here", "<object at 0x7f>"):
        server.answers[path] = [(200, {"value": no_object})]
        assert airflow.result("x", "a/b", "t") == {}
    server.answers[path] = [(404, {})]
    assert airflow.result("x", "a/b", "t") == {}


def test_waiting_ends_with_the_run_and_tells_every_change_once(
    server: Server, airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlctl.clients.airflow.POLL_SECONDS", 0.01)
    server.answers["dags/x/dagRuns/r"] = [
        (200, run_entry("running")),
        (200, run_entry("running")),
        (200, run_entry("failed")),
    ]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [
        task_list(task_entry("a", "running"), task_entry("b", None, 0)),
        task_list(task_entry("a", "success"), task_entry("b", "running")),
        task_list(task_entry("b", "failed"), task_entry("a", "success")),
    ]
    airflow.end_of_file = {
        f"dag_id=x/run_id=r/task_id={name}/attempt=1.log": LOG for name in "ab"
    }.get
    changes: list[tuple[str, str]] = []
    notes: list[str] = []
    run = airflow.wait_for_run(
        "x",
        "r",
        timeout=60,
        on_change=lambda _, task: changes.append((task.task_id, task.state)),
        note=notes.append,
    )
    assert run["state"] == "failed"
    assert [change for change in changes if change[1] != "none"] == [
        ("a", "running"),
        ("a", "success"),
        ("b", "running"),
        ("b", "failed"),
    ]
    assert notes[0].startswith("a ")
    assert notes[0].endswith("ERROR: no column sentence")
    assert notes[1].startswith("b ")
    # Airflow would read the whole of a running task's log for each look at it.
    assert not [asked for asked in server.asked if "/logs/" in asked]


def test_a_log_that_is_not_on_the_claim_is_asked_of_airflow(
    server: Server, airflow: Airflow
) -> None:
    server.answers["dags/x/dagRuns/r/taskInstances/a/logs/2"] = [(200, LOG)]
    assert airflow.log_end("x", "r", Task("a", "failed", 2, 1.0)) == LOG


def test_a_log_may_be_in_any_script(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x/dagRuns/r/taskInstances/a/logs/1"] = [(200, "готово ✓")]
    assert airflow.log("x", "r", "a") == "готово ✓"


def test_a_log_that_cannot_be_read_is_no_end_of_the_waiting(
    server: Server, airflow: Airflow
) -> None:
    def no_scheduler(path: str) -> str:
        raise KubectlError("the scheduler is not there")

    airflow.end_of_file = no_scheduler
    server.answers["dags/x/dagRuns/r"] = [(200, run_entry("running")), (200, run_entry("success"))]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [task_list(task_entry("a", "running"))]
    notes: list[str] = []
    assert airflow.wait_for_run("x", "r", timeout=60, note=notes.append)["state"] == "success"
    assert notes[0].endswith("its pod starts")


def test_a_task_that_the_triggerer_runs_is_at_work(server: Server, airflow: Airflow) -> None:
    going = [(200, run_entry("running"))] * 3
    server.answers["dags/x/dagRuns/r"] = [*going, (200, run_entry("success"))]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [
        task_list(task_entry("a", state))
        for state in ("scheduled", "deferred", "running", "success")
    ]
    changes: list[str] = []
    airflow.wait_for_run("x", "r", timeout=60, on_change=lambda _, task: changes.append(task.stage))
    assert changes == ["scheduled", "running", "success"]


@pytest.mark.parametrize(
    ("task_id", "state"), [("approve_model", "deferred"), ("ask", "awaiting_input")]
)
def test_a_person_who_is_waited_for_is_told_of(
    server: Server, airflow: Airflow, task_id: str, state: str
) -> None:
    server.answers["dags/x/dagRuns/r"] = [(200, run_entry("running")), (200, run_entry("success"))]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [task_list(task_entry(task_id, state))]
    notes: list[str] = []
    assert airflow.wait_for_run("x", "r", timeout=60, note=notes.append)["state"] == "success"
    assert notes[0].endswith(f"{task_id}: waiting for a person (the page, or `make approve`)")
    assert not [asked for asked in server.asked if "/logs/" in asked]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("healthy", "the scheduler decides"),
        ("unhealthy", "the scheduler is unhealthy, its last sign of life was at 10:00"),
    ],
)
def test_a_run_that_nobody_starts_is_told_by_the_schedulers_health(
    server: Server, airflow: Airflow, status: str, told: str
) -> None:
    server.answers["health"] = [
        (200, {"scheduler": {"status": status, "latest_scheduler_heartbeat": "10:00"}})
    ]
    server.answers["dags/x/dagRuns/r"] = [(200, run_entry("queued")), (200, run_entry("success"))]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [task_list()]
    notes: list[str] = []
    airflow.wait_for_run("x", "r", timeout=60, note=notes.append)
    assert notes[0].startswith(told)


def test_waiting_too_long_names_the_states(server: Server, airflow: Airflow) -> None:
    server.answers["dags/x/dagRuns/r"] = [(200, run_entry("running"))]
    server.answers["dags/x/dagRuns/r/taskInstances"] = [task_list(task_entry("a", "queued"))]
    with pytest.raises(UserError, match="after 0 s: x has not ended: a queued"):
        airflow.wait_for_run("x", "r", timeout=0)


def test_lines_of_the_container() -> None:
    assert container_lines(LOG) == ["step 1 of 2", "ERROR: no column sentence"]


def test_a_failure_is_told_by_the_container_else_by_airflow() -> None:
    assert telling_lines(LOG, 1) == ["ERROR: no column sentence"]
    without = "\n".join(line for line in LOG.splitlines() if "[base]" not in line)
    assert telling_lines(without, 4) == [
        "Task failed with exception",
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in <module>',
        "AirflowException: exit code 1",
    ]
    assert "pod-name" not in telling_lines(without, 99)


def test_seconds_of_a_run() -> None:
    start, end = "2026-11-23T16:46:13.250000+00:00", "2026-11-23T16:46:24.500000+00:00"
    assert run_seconds({"start_date": start, "end_date": end}) == 11.2
    assert run_seconds({"start_date": start, "end_date": None}) is None
