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
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Authorization of each."""
    address: str = ""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    record = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            record.requests.append((self.path, self.headers.get("Authorization", "")))
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
    assert recorder.requests == [("/graphql", f"Basic {ENCODED}")]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b'{"data": {"viewer": null}}', "does not know the API key"),
        (200, b"<html>hello</html>", "{} is no W&B server; check WANDB_BASE_URL"),
        *((status, b"{}", f"answers with HTTP {status}") for status in (404, 429, 500, 503)),
    ],
)
def test_odd_answers_are_named(
    cli: Cli, command: tuple, recorder: Recorder, status: int, body: bytes, told: str
):
    recorder.status, recorder.body = status, body
    error = failure(cli(*command, env=variables(recorder.address)))
    assert told.format(recorder.address) in error


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:9", "cannot be reached (Connection refused)"),
        ("http://wandb.invalid", "W&B at http://wandb.invalid"),
    ],
)
def test_server_that_is_not_there(cli: Cli, command: tuple, address: str, told: str):
    assert told in failure(cli(*command, env=variables(address)))


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
