"""W&B before the key is accepted: a local server that records what it is sent.

What comes after that is in test_wandb_models.py.
"""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from workload_helpers import Cli, Ended

LIMIT = 30
KEY = "5ecre7" + "0123456789" * 3 + "abcd"
ENCODED = base64.b64encode(f"api:{KEY}".encode()).decode()


@dataclass
class Recorder:
    """A server that answers each request with one status and body, and keeps what it got."""

    status: int = 401
    body: bytes = b"{}"
    # Seconds before each answer to a request after the first.
    delay: float = 0
    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    record = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = (self.path, self.headers.get("Authorization", ""), body)
            record.requests.append(sent)
            if len(record.requests) > 1:
                time.sleep(record.delay)
            self.send_response(record.status)
            self.send_header("Content-Length", str(len(record.body)))
            self.end_headers()
            self.wfile.write(record.body)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    record.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield record
    server.shutdown()


def variables(address: str, key: str = KEY, **more: str) -> dict[str, str]:
    return {"REGISTRY": "wandb", "WANDB_BASE_URL": address, "WANDB_API_KEY": key, **more}


@pytest.fixture(params=["upload-to-registry", "load-from-registry"])
def command(request: pytest.FixtureRequest, trained: tuple[Ended, Path], tmp_path: Path) -> tuple:
    """Return the arguments of a command that speaks to the registry."""
    if request.param == "upload-to-registry":
        return request.param, "airflow-pipeline", trained[1]
    return request.param, "airflow-pipeline:latest", tmp_path / "results"


def failure(ended: Ended) -> str:
    """Return the error line of a command that failed in time and kept its secret."""
    assert ended.seconds < LIMIT
    assert KEY not in ended.output
    assert ENCODED not in ended.output
    return ended.error


def test_missing_key(cli: Cli, command: tuple):
    error = failure(cli(*command, env=variables("http://127.0.0.1:9", key="")))
    assert error.startswith("ERROR: WANDB_API_KEY is not set")


def test_refused_key_is_sent_once_and_never_printed(
    cli: Cli, command: tuple, recorder: Recorder, tmp_path: Path
):
    error = failure(cli(*command, env=variables(recorder.address)))
    assert f"W&B at {recorder.address} refuses the API key (HTTP 401)" in error
    assert [(path, sent) for path, sent, _ in recorder.requests] == [
        ("/graphql", f"Basic {ENCODED}")
    ]
    assert not (tmp_path / "results").exists()


def test_unknown_key(cli: Cli, command: tuple, recorder: Recorder):
    recorder.status, recorder.body = 200, json.dumps({"data": {"viewer": None}}).encode()
    error = failure(cli(*command, env=variables(recorder.address)))
    assert "does not know the API key" in error


def test_address_of_something_else(cli: Cli, command: tuple, recorder: Recorder):
    recorder.status, recorder.body = 200, b"<html>hello</html>"
    error = failure(cli(*command, env=variables(recorder.address)))
    assert f"{recorder.address} is no W&B server; check WANDB_BASE_URL" in error


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_other_answers_are_named(cli: Cli, command: tuple, recorder: Recorder, status: int):
    recorder.status = status
    error = failure(cli(*command, env=variables(recorder.address)))
    assert f"answers with HTTP {status}" in error


def test_refused_connection(cli: Cli, command: tuple):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = failure(cli(*command, env=variables(f"http://127.0.0.1:{port}")))
    assert "cannot be reached" in error
    assert "Connection refused" in error


def test_name_that_does_not_resolve(cli: Cli, command: tuple):
    error = failure(cli(*command, env=variables("http://wandb.invalid")))
    assert "W&B at http://wandb.invalid" in error


def test_server_that_never_answers(cli: Cli, command: tuple):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        error = failure(cli(*command, env=variables(address)))
    assert "did not answer within 8 s" in error


def test_server_that_hangs_after_the_key_was_accepted(cli: Cli, command: tuple, recorder: Recorder):
    recorder.status, recorder.delay = 200, 60
    recorder.body = json.dumps({"data": {"viewer": {"id": "1", "entity": "team"}}}).encode()
    error = failure(cli(*command, env=variables(recorder.address)))
    assert "W&B" in error


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_mode_that_loses_the_model_is_refused(cli: Cli, command: tuple, mode: str):
    error = failure(cli(*command, env=variables("http://127.0.0.1:9", WANDB_MODE=mode)))
    assert f"WANDB_MODE={mode} would keep the model inside this container" in error
