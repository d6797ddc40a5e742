"""The image below the workload's code, from which the MLflow server runs."""

import socket
import time
import urllib.request
from pathlib import Path

import pytest

from tools.in_image.container import Command, Container, Image, run

SECONDS = 120


@pytest.fixture(scope="module")
def environment(images: dict[str, Image]) -> Image:
    return images["classic-example-environment"]


def test_it_holds_none_of_the_workloads_code(environment: Image):
    ended = run(environment, Command(arguments=["python", "-c", "import classic_example"]))
    assert "No module named 'classic_example'" in ended.stdout


def test_mlflow_serves_from_a_read_only_image(environment: Image, disk: Path):
    """With what the chart mounts and sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = "--backend-store-uri=sqlite:////mlflow/mlflow.db"
    server = ["mlflow", "server", database, "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    mounts = {}
    for name in ("mlflow", "tmp"):
        (disk / name).mkdir()
        (disk / name).chmod(0o777)
        mounts[disk / name] = f"/{name}"
    command = Command(
        arguments=server,
        env={"HOME": "/tmp", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        workdir="/mlflow",
        mounts=mounts,
        read_only=True,
    )
    with Container(environment, command) as container:
        container.wait_for_file(disk / "mlflow" / "mlflow.db", SECONDS)
        health = f"http://127.0.0.1:{port}/health"
        assert answer(health, container) == b"OK"


def answer(url: str, container: Container) -> bytes:
    """What a server says, once it does."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return reply.read()
        except OSError:
            ended = container.process.poll() is not None
            if ended or time.monotonic() > deadline:
                container.process.kill()
                raise AssertionError(container.process.communicate()[0]) from None
            time.sleep(0.1)
