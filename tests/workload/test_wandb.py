"""W&B before the key is accepted: a local server that records what it is sent.

What comes after that is in test_wandb_models.py.
"""

import base64
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from classic_example.errors import WorkloadError
from classic_example.registry import base
from classic_example.registry.base import ModelRef
from classic_example.registry.wandb_registry import WandbRegistry
from workload_helpers import Cli, write_model

LIMIT = 30
KEY = "5ecre7" + "0123456789" * 3 + "abcd"
ENCODED = base64.b64encode(f"api:{KEY}".encode()).decode()


@dataclass
class Recorder:
    """A server that answers each request with one status and body, and keeps what it got."""

    status: int = 401
    body: bytes = b"{}"
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Authorization of each."""
    address: str = ""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    record = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            record.requests.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(record.status)
            self.send_header("Content-Length", str(len(record.body)))
            self.end_headers()
            self.wfile.write(record.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        record.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield record
        server.shutdown()


def refusal(monkeypatch: pytest.MonkeyPatch, address: str, **more: str) -> str:
    """Return the error of a first call."""
    for name, value in {"BASE_URL": address, "API_KEY": KEY, **more}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with pytest.raises(WorkloadError) as error:
        WandbRegistry().find(ModelRef("m"))
    return str(error.value)


@pytest.mark.parametrize("command", ["upload-to-registry", "load-from-registry"])
def test_refused_key_is_sent_once_and_never_printed(
    cli: Cli, recorder: Recorder, tmp_path: Path, command: str
):
    directory = tmp_path / "results"
    if command == "upload-to-registry":
        directory = write_model(tmp_path / "model")
    env = {"REGISTRY": "wandb", "WANDB_BASE_URL": recorder.address, "WANDB_API_KEY": KEY}
    ended = cli(command, "airflow-pipeline", directory, env=env)
    assert f"W&B at {recorder.address} refuses the API key (HTTP 401)" in ended.error
    assert ended.seconds < LIMIT
    assert KEY not in ended.output
    assert ENCODED not in ended.output
    assert recorder.requests == [("/graphql", f"Basic {ENCODED}")]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b'{"data": {"viewer": null}}', "refuses the API key"),
        (200, b"<html>hello</html>", "is no W&B server; check WANDB_BASE_URL"),
        (200, b'{"data": null}', "is no W&B server; check WANDB_BASE_URL"),
        *((status, b"{}", f"cannot be used ({status} ") for status in (404, 429, 503)),
    ],
)
def test_odd_answers_are_named(
    monkeypatch: pytest.MonkeyPatch, recorder: Recorder, status: int, body: bytes, told: str
):
    recorder.status, recorder.body = status, body
    error = refusal(monkeypatch, recorder.address)
    assert error.startswith(f"W&B at {recorder.address} {told}")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:9", "cannot be used (Connection refused)"),
        ("http://user:password@wandb.invalid", "W&B at http://***@wandb.invalid "),
    ],
)
def test_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, address: str, told: str):
    assert told in refusal(monkeypatch, address)


def test_server_that_never_answers(monkeypatch: pytest.MonkeyPatch):
    assert base.PREFLIGHT_SECONDS <= LIMIT / 2
    monkeypatch.setattr(base, "PREFLIGHT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert refusal(monkeypatch, address) == f"W&B at {address} did not answer within 0 s"


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_mode_that_loses_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, mode: str):
    error = refusal(monkeypatch, "http://127.0.0.1:9", MODE=mode)
    assert error == f"WANDB_MODE={mode} would keep the model inside this container; unset it"


def test_deadline_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    error = refusal(monkeypatch, "http://127.0.0.1:9", TIMEOUT_SECONDS="1h")
    assert error == "WANDB_TIMEOUT_SECONDS=1h is no number of seconds"
