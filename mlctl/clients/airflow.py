"""The Airflow of a release, through its REST API: v1 of Airflow 2, v2 of Airflow 3."""

import ast
import html
import json as json_text
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote

import requests

from mlctl.base.errors import UserError
from mlctl.base.names import APPROVAL
from mlctl.base.waiting import until

FINISHED_RUN = {"success", "failed"}
PAGE = 100
"""As many runs as Airflow gives in one answer."""
POLL_SECONDS = 1.0
LOG_SECONDS = 4.0
"""How often the end of a running task's log is read for its last line."""
LOGS = 3
"""Of so many tasks of a run: a mapped one may have hundreds at once."""
PATIENCE_SECONDS = 420.0
"""How long a page may be away: five minutes (of a database, say), and the last try's own time."""
REQUEST_SECONDS = 60.0
FORWARD_SECONDS = 5.0
"""For a new way to the page; without one it is tried again."""
TELL_SECONDS = 5.0
"""How often it is told that Airflow does not answer."""
LOGIN_PAUSE_SECONDS = 10.0
"""Airflow takes five logins in 40 seconds, and counts refused ones; a session outlives its pod."""
SHOWN_SECONDS = 120.0
"""Until a DAG that shows can be started."""

_LOG_LINE = re.compile(r"^\[[^]]*\] \{[^}]*\} (?P<level>[A-Z]+) - (?P<text>.*)$")
_BASE_CONTAINER = re.compile(r"^\[base\] ?")
_CSRF = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"')


class AirflowError(UserError):
    """Airflow refused a request; the text is its answer."""


class Connection(Protocol):
    """What leads to the web server; mlctl.clients.forward.Forward is one."""

    @property
    def url(self) -> str:
        """Address of the web server."""

    def ensure(self, timeout: float) -> None:
        """Make the way there if it is not; UserError when that can't be done in the seconds."""

    def close(self) -> None:
        """Give the way up: the next ``ensure`` makes it anew."""


@dataclass(frozen=True)
class Task:
    """One task of a run, at one moment."""

    task_id: str
    state: str
    try_number: int
    seconds: float | None
    """Seconds of work so far of the present try, None before it began."""
    map_index: int = -1
    """Which one of a mapped task; -1 for any other."""

    @property
    def name(self) -> str:
        """The id of the task, of a mapped one with its index: ``score[3]``."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"

    @property
    def waits_for_a_person(self) -> bool:
        """Say whether it waits for an answer in the page, or by `make approve`."""
        # Airflow 2 has no state for that.
        named = self.task_id == APPROVAL and self.state == "deferred"
        return named or self.state == "awaiting_input"

    @property
    def stage(self) -> str:
        """Its state; `running` also while the triggerer runs it, or waits for it (`deferred`)."""
        waits = self.state == "deferred" and not self.waits_for_a_person
        return "running" if waits else self.state


class Airflow:
    """Session with the web server of a release.

    It logs in through the page's form, the one way that needs no setting in Airflow 2's chart, and
    gets a token from Airflow 3. A page that is away (no pod is ready, the forward broke, its
    database does not answer) is waited for, for ``patience`` seconds; requests can be repeated
    safely because a run is triggered under a chosen id.
    """

    def __init__(
        self,
        connection: Connection,
        user: str,
        password: str,
        *,
        version: str = "2.9.3",
        end_of_file: Callable[[str], str] = lambda path: "",
        tell: Callable[[str], None] = lambda text: None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """``version`` is Airflow's.

        ``end_of_file`` gives the end of a file in Airflow's log directory, '' without one.

        ``tell`` is called every TELL_SECONDS of waiting for the page, with words on it.
        """
        self.connection = connection
        self.version = version
        self.is_3 = not version.startswith("2.")
        self.end_of_file = end_of_file
        self.user = user
        self.password = password
        self.tell = tell
        self.patience = patience
        self._session: requests.Session | None = None

    # Requests

    def login(self) -> requests.Session:
        """Log in and return the session. Raises AirflowError when the password is refused."""
        session = requests.Session()
        # Proxy settings of the machine are not for a port on it.
        session.trust_env = False
        if self.is_3:
            session.headers["Authorization"] = f"Bearer {self._token(session)}"
            return session
        page = session.get(f"{self.connection.url}/login/", timeout=30)
        page.raise_for_status()
        found = _CSRF.search(page.text)
        if not found:
            raise AirflowError("the login page of Airflow holds no form")
        form = {
            "username": self.user,
            "password": self.password,
            "csrf_token": html.unescape(found[1]),
        }
        answer = session.post(
            f"{self.connection.url}/login/", data=form, timeout=30, allow_redirects=False
        )
        answer.raise_for_status()
        if answer.status_code != 302 or "/login" in answer.headers.get("Location", ""):
            raise self._refused()
        return session

    def _token(self, session: requests.Session) -> str:
        login = {"username": self.user, "password": self.password}
        answer = session.post(f"{self.connection.url}/auth/token", json=login, timeout=30)
        if answer.status_code == 401:
            raise self._refused()
        answer.raise_for_status()
        return answer.json()["access_token"]

    def _refused(self) -> AirflowError:
        return AirflowError(f"Airflow refuses the password of the user {self.user}")

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: dict[str, Any] | None = None,
        accept: str = "application/json",
        good: tuple[int, ...] = (),
    ) -> requests.Response:
        """Send a request to the API. Raises AirflowError on a refusal not listed in ``good``."""
        headers = {"Accept": accept}
        path_of_api = f"api/v{2 if self.is_3 else 1}/{path}"
        answer = self._send(method, path_of_api, json=json, params=params, headers=headers)
        if answer.ok or answer.status_code in good:
            return answer
        raise _error(method, path, answer)

    def page(self, path: str) -> requests.Response:
        """Return a page of the web server, as the user sees it after the login."""
        return self._send("GET", path)

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        since = told = time.monotonic()
        while True:
            pause = 1.0
            try:
                self.connection.ensure(FORWARD_SECONDS)
                if self._session is None:
                    self._session = self.login()
                url = f"{self.connection.url}/{path}"
                answer = self._session.request(method, url, timeout=REQUEST_SECONDS, **arguments)
            except AirflowError:
                raise
            except UserError as error:
                problem = str(error)
            except requests.RequestException as error:
                problem = type(error).__name__
                if error.response is not None:  # to the login
                    problem = f"status {error.response.status_code}"
                    if error.response.status_code == 429:
                        problem, pause = "no more logins for a while", LOGIN_PAUSE_SECONDS
            else:
                if answer.status_code == 401:
                    problem = "the session has ended"
                    self._session = None
                elif answer.status_code >= 500:
                    problem = f"status {answer.status_code}"
                else:
                    return answer
            now = time.monotonic()
            if now - since > self.patience:
                raise AirflowError(
                    f"Airflow does not answer ({now - since:.0f} s): {problem}; "
                    "`make status` shows its pods"
                )
            if now - told >= TELL_SECONDS:
                told = now
                self.tell(f"Airflow does not answer ({now - since:.0f} s), waiting: {problem}")
            self.connection.close()
            time.sleep(pause)

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON answer to a GET."""
        return self.request("GET", path, params=params).json()

    # DAGs

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """Return a DAG's entry, or None while Airflow does not know it."""
        answer = self.request("GET", _dag_path(dag_id), good=(404,))
        return answer.json() if answer.ok else None

    def is_active(self, entry: dict[str, Any]) -> bool:
        """Say whether there is a file of a DAG, by its entry."""
        return not entry["is_stale"] if self.is_3 else entry["is_active"]

    def dags(self) -> list[dict[str, Any]]:
        """Return the entries of all DAGs that there are files of, by id."""
        return self._pages("dags", "dags", order_by="dag_id")

    def import_errors(self) -> list[dict[str, Any]]:
        """Return the import errors: ``filename``, ``stack_trace``, ``timestamp``."""
        return self.get("importErrors")["import_errors"]

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler start the DAG's runs."""
        self.request("PATCH", _dag_path(dag_id), json={"is_paused": False})

    # Runs

    def trigger(
        self,
        dag_id: str,
        conf: dict[str, Any] | None = None,
        *,
        run_id: str = "",
        logical_date: str = "",
    ) -> str:
        """Start a run, under a new id and at this moment unless others are given; return its id.

        A logical date is in ISO 8601; Airflow takes each once for a DAG. ``conf`` are the run's
        parameters.

        Raises AirflowError with Airflow's own words when it does not know the DAG, or refuses the
        id or a parameter.
        """
        now = datetime.now(UTC).isoformat()
        run_id = run_id or f"manual__{now}"
        if self.is_3:
            # Without one the run has no date (ds, data_interval_start) for its templates.
            logical_date = logical_date or now
        run: dict[str, Any] = {"dag_run_id": run_id, "conf": conf or {}}
        if logical_date:
            run["logical_date"] = logical_date

        path = f"{_dag_path(dag_id)}/dagRuns"

        def started() -> bool:
            # A repeated request after a lost answer finds the run there: 409 is as good.
            answer = self.request("POST", path, json=run, good=(404, 409))
            if answer.status_code == 404 and self.dag(dag_id) is None:
                raise _error("POST", path, answer)
            return answer.status_code != 404

        # Airflow 3 shows a DAG a moment before it can start a run of it.
        until(SHOWN_SECONDS, started, f"Airflow shows {dag_id}, but does not start it")
        return run_id

    def fail(self, dag_id: str, run_id: str) -> None:
        """End a run as failed, with all of its tasks."""
        self.request("PATCH", _run_path(dag_id, run_id), json={"state": "failed"})

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a run's entry."""
        return self.get(_run_path(dag_id, run_id))

    def runs(self, dag_id: str, run_ids: Collection[str]) -> list[dict[str, Any]]:
        """Return the entries of several runs, in the order of their ids, in as few requests as
        Airflow allows: asking for each alone keeps its web server busy while tasks wait for it.
        """
        path = f"{_dag_path(dag_id)}/dagRuns"
        order = "-logical_date" if self.is_3 else "-execution_date"
        page = self.get(path, limit=PAGE, order_by=order)
        newest = {one["dag_run_id"]: one for one in page["dag_runs"]}
        return [newest.get(run_id) or self.run(dag_id, run_id) for run_id in run_ids]

    def all_runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the entries of all runs of a DAG."""
        return self._pages(f"{_dag_path(dag_id)}/dagRuns", "dag_runs")

    def _pages(self, path: str, key: str, **params: Any) -> list[dict[str, Any]]:
        """Return a list that Airflow gives by pages."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(path, limit=PAGE, offset=len(found), **params)
            found += page[key]
            if not page[key] or len(found) >= page["total_entries"]:
                return found

    def newest_run(self, dag_id: str) -> dict[str, Any] | None:
        """Return the entry of the newest run, or None."""
        answer = self.request(
            "GET",
            f"{_dag_path(dag_id)}/dagRuns",
            params={"limit": 1, "order_by": "-start_date"},
            good=(404,),
        )
        runs = answer.json()["dag_runs"] if answer.ok else []
        return runs[0] if runs else None

    def tasks(self, dag_id: str, run_id: str) -> list[Task]:
        """Return the tasks of a run, in the order in which they began; of a mapped task each."""
        found = self._pages(f"{_run_path(dag_id, run_id)}/taskInstances", "task_instances")
        found.sort(key=lambda one: (one["start_date"] is None, one["start_date"] or ""))
        tasks = [
            Task(
                *(one["task_id"], one["state"] or "none", one["try_number"], _task_seconds(one)),
                one["map_index"],
            )
            for one in found
        ]
        # Pages have no order: what changes between two of them may be in both.
        return list({task.name: task for task in tasks}.values())

    def log_end(self, dag_id: str, run_id: str, task: Task) -> str:
        """Return the end of the log of a task's present try, at one price whatever its length.

        (Airflow reads all of it for each answer, and holds it in memory several times, also when
        it's asked for what is new only.) Of logs that are not on the claim it is the whole.
        """
        number = max(1, task.try_number)
        mapped = f"map_index={task.map_index}/" if task.map_index >= 0 else ""
        directory = f"dag_id={dag_id}/run_id={run_id}/task_id={task.task_id}/{mapped}"
        end = self.end_of_file(f"{directory}attempt={number}.log")
        return (
            self._lines(end)
            if end
            else self.log(dag_id, run_id, task.task_id, number, task.map_index)
        )

    def log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """Return the whole log of one try of a task."""
        answer = self.request(
            "GET",
            f"{_task_path(dag_id, run_id, task_id)}/logs/{max(1, try_number)}",
            params={"full_content": True, "map_index": map_index},
            accept="application/x-ndjson" if self.is_3 else "text/plain",
        )
        # Airflow does not say which encoding it is, and requests would take it for Latin-1.
        return self._lines(answer.content.decode(errors="replace"))

    def _lines(self, log: str) -> str:
        """Return a log in the form of Airflow 2; that of 3 is JSON."""
        return "\n".join(map(_as_text, log.splitlines())) if self.is_3 else log

    def approve(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Let a task that waits for a person go on."""
        path = _task_path(dag_id, run_id, task_id)
        if self.is_3:
            answer = {"chosen_options": ["Approve"], "params_input": {}}
            self.request("PATCH", f"{path}/-1/hitlDetails", json=answer)
        else:
            self.request("PATCH", path, json={"dry_run": False, "new_state": "success"})

    def result(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return the object that a task handed over (XCom ``return_value``), {} for any other."""
        path = f"{_task_path(dag_id, run_id, task_id)}/xcomEntries/return_value"
        answer = self.request("GET", path, good=(404,))
        if not answer.ok:
            return {}
        value = answer.json()["value"]
        if isinstance(value, str):
            # Airflow 2.9 answers with the text of the Python value.
            with suppress(ValueError, SyntaxError):
                value = ast.literal_eval(value)
        return value if isinstance(value, dict) else {}

    def results(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return the results of all tasks of a run but the mapped ones, by task id."""
        tasks = self.tasks(dag_id, run_id)
        return {
            task.task_id: self.result(dag_id, run_id, task.task_id)
            for task in tasks
            if task.map_index < 0
        }

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout: float,
        on_change: Callable[[str, Task], None] = lambda run_id, task: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> dict[str, Any]:
        """Wait as ``wait_for_runs`` does, and return the entry of the one run."""
        (run,) = self.wait_for_runs(
            dag_id, [run_id], timeout=timeout, on_change=on_change, note=note
        )
        return run

    def wait_for_runs(
        self,
        dag_id: str,
        run_ids: list[str],
        *,
        timeout: float,
        on_change: Callable[[str, Task], None] = lambda run_id, task: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> list[dict[str, Any]]:
        """Wait until the runs have ended, well or badly, and return their entries.

        ``on_change`` is called with the run id and each task that came to another stage,
        ``note`` with a few words on what runs now and its last log line.

        Raises UserError after ``timeout`` seconds, with the states of that moment.
        """
        seen: dict[tuple[str, str], tuple[str, int]] = {}
        ended: dict[str, dict[str, Any]] = {}
        going: dict[str, list[Task]] = {}
        read_at = 0.0

        def all_ended() -> bool:
            nonlocal read_at
            for run_id in [one for one in run_ids if one not in ended]:
                # The run before its tasks: when it has ended, their states are the last ones.
                run = self.run(dag_id, run_id)
                going[run_id] = self.tasks(dag_id, run_id)
                for task in going[run_id]:
                    if (task.stage, task.try_number) != seen.get((run_id, task.name)):
                        seen[run_id, task.name] = (task.stage, task.try_number)
                        on_change(run_id, task)
                        read_at = 0.0  # What was noted of it is over.
                if run["state"] in FINISHED_RUN:
                    ended[run_id] = run
                    del going[run_id]
            if going and time.monotonic() - read_at > LOG_SECONDS:
                read_at = time.monotonic()
                note(" || ".join(self._activity(dag_id, *item) for item in going.items()))
            return not going

        def problem() -> str:
            states = ", ".join(f"{t.name} {t.state}" for ts in going.values() for t in ts)
            return f"{dag_id} has not ended: {states}"

        until(timeout, all_ended, problem, poll=POLL_SECONDS)
        return [ended[run_id] for run_id in run_ids]

    def _activity(self, dag_id: str, run_id: str, tasks: list[Task]) -> str:
        words = []
        asking = [task.name for task in tasks if task.waits_for_a_person]
        running = [task for task in tasks if task.stage == "running"]
        for task in running[:LOGS]:
            try:
                lines = container_lines(self.log_end(dag_id, run_id, task))
            except UserError:
                lines = []  # A log that can't be read now is no reason to stop waiting.
            # The result is for programs.
            lines = [line for line in lines if not line.startswith("RESULT ")]
            last = lines[-1] if lines else "its pod starts"
            words.append(f"{task.name} {task.seconds or 0:.0f} s: {last}")
        if len(running) > LOGS:
            words.append(f"{len(running) - LOGS} more run")
        if asking:
            words.append(f"{', '.join(asking)}: waiting for a person (the page, or `make approve`)")
        if words:
            return " | ".join(words)
        waiting = [task.name for task in tasks if task.state in {"queued", "scheduled"}]
        if waiting:
            return f"{', '.join(waiting)}: waiting for its worker"
        return self._scheduler_words()

    def _scheduler_words(self) -> str:
        """What the scheduler is doing when no task of a run is under way."""
        try:
            scheduler = self.get("monitor/health" if self.is_3 else "health")["scheduler"]
        except AirflowError:
            return "Airflow does not answer"
        if scheduler["status"] == "healthy":
            return "the scheduler decides"
        return (
            f"the scheduler is {scheduler['status']}, its last sign of life was at "
            f"{scheduler['latest_scheduler_heartbeat']} (`make status` shows its pod)"
        )


def _as_text(line: str) -> str:
    try:
        entry = json_text.loads(line)
        when, words = entry.get("timestamp") or "", str(entry["event"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return line  # Of another program, or cut.
    level = str(entry.get("level") or "info").upper()
    errors = [f"{one['exc_type']}: {one['exc_value']}" for one in entry.get("error_detail") or []]
    return "\n".join([f"[{when}] {{{entry.get('logger') or ''}}} {level} - {words}", *errors])


def container_lines(log: str) -> list[str]:
    """Return what the task's container wrote, out of the log of the task."""
    lines = []
    for line in log.splitlines():
        found = _LOG_LINE.match(line)
        text = found["text"] if found else ""
        if _BASE_CONTAINER.match(text):
            lines.append(_BASE_CONTAINER.sub("", text))
    return [line for line in lines if line.strip()]


def telling_lines(log: str, count: int = 15) -> list[str]:
    """Return the lines of a failed task's log that say why.

    The container's own last lines when it wrote any, else the last warnings, errors and
    tracebacks of Airflow (the pod did not start, the time was over).
    """
    own = container_lines(log)
    if own:
        return own[-count:]
    trouble: list[str] = []
    begun = False
    for line in log.splitlines():
        found = _LOG_LINE.match(line)
        begun = begun or bool(found)  # Before that: where Airflow has found the log.
        if not begun:
            continue
        if not found or found["level"] in {"WARNING", "ERROR", "CRITICAL"}:
            trouble.append(found["text"] if found else line)
    return trouble[-count:]


# An id may hold any letter, that of a run `/` and `?` too.


def _dag_path(dag_id: str) -> str:
    return f"dags/{quote(dag_id, safe='')}"


def _run_path(dag_id: str, run_id: str) -> str:
    return f"{_dag_path(dag_id)}/dagRuns/{quote(run_id, safe='')}"


def _task_path(dag_id: str, run_id: str, task_id: str) -> str:
    return f"{_run_path(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}"


def run_seconds(run: dict[str, Any]) -> float | None:
    """Return how many seconds a run took, by Airflow's clock; None while it goes on."""
    if not run.get("start_date") or not run.get("end_date"):
        return None
    start, end = (datetime.fromisoformat(run[key]) for key in ("start_date", "end_date"))
    return round((end - start).total_seconds(), 1)


def _task_seconds(entry: dict[str, Any]) -> float | None:
    if entry["start_date"] is None:
        return None
    start = datetime.fromisoformat(entry["start_date"])
    end = datetime.fromisoformat(entry["end_date"]) if entry["end_date"] else datetime.now(UTC)
    return max(0.0, (end - start).total_seconds())


def _error(method: str, path: str, answer: requests.Response) -> AirflowError:
    return AirflowError(f"Airflow: {method} {path}: {_refusal(answer)}")


def _refusal(answer: requests.Response) -> str:
    try:
        body = answer.json()
        detail = body.get("detail") or ""
        if isinstance(detail, list):  # Of Airflow 3, of a request that has not its form.
            detail = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in detail)
        # What is wrong with a parameter is followed by its schema.
        detail = str(detail).partition("\n\n")[0]
        return f"{answer.status_code} {body.get('title', '')} {detail}".strip()
    except ValueError:
        return f"{answer.status_code} {answer.reason}"
