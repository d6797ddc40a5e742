"""The image below the workload's code, from which the MLflow server runs."""

from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from tools.in_image.container import Command, Container, Image, run

SECONDS = 120


@pytest.fixture(scope="module")
def environment(images: dict[str, Image]) -> Image:
    return images["classic-example-environment"]


def test_it_holds_none_of_the_workloads_code(environment: Image):
    ended = run(environment, Command(arguments=["python", "-c", "import classic_example"]))
    assert "No module named 'classic_example'" in ended.stdout


def test_mlflow_serves_from_a_read_only_image(environment: Image, disk: Path, port: int):
    """With what the chart mounts and sets."""
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

    def answer() -> bytes:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.read()
        return b""

    with Container(environment, command) as container:
        assert container.until(SECONDS, answer) == b"OK"
    assert (disk / "mlflow" / "mlflow.db").exists()
