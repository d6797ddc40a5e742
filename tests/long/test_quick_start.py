"""The quick start of the README, typed where nothing of the project has ever been built.

What the terminal showed is left in build/quick-start.txt.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from mlctl.base.paths import BUILD
from tests.helpers.checkouts import clone_of_the_checkout
from tests.helpers.pages import blocks
from tests.helpers.ports import free_port

SECONDS = 3600
Type = Callable[[str], str]


@pytest.fixture
def type_in(tmp_path: Path) -> Iterator[Type]:
    """Run a command in a clone with empty caches and return what it printed.

    `make ui` gets Ctrl-C when it has told all there is to tell.
    """
    clone = clone_of_the_checkout(tmp_path)
    environ = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "ML_PIPELINES_CACHE": "",  # it would be taken instead
        "CLUSTER": "embedded",
        "CLUSTER_NAME": "ml-pipelines-quick",
        "API_PORT": str(free_port()),
        "YES": "1",
    }
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "quick-start.txt").open("w", buffering=1) as transcript:

        def run(command: str) -> str:
            began = time.monotonic()
            transcript.write(f"$ {command}\n")
            said = []
            with subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=clone,
                env=environ,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # As in a terminal: what a script starts in the background ignores Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            ) as process:
                for line in process.stdout:
                    said.append(line)
                    transcript.write(line)
                    if line.startswith("Ctrl-C ends it"):
                        (url,) = re.findall(r"^Airflow +(\S+)", "".join(said), re.MULTILINE)
                        assert requests.get(f"{url}/login/", timeout=60).ok
                        os.killpg(process.pid, signal.SIGINT)
            transcript.write(f"({time.monotonic() - began:.0f} s)\n\n")
            assert process.returncode == 0 or "Ctrl-C ends it\n" in said, "".join(said[-40:])
            return "".join(said)

        yield run
        run("make clean")


@pytest.mark.timeout(2 * SECONDS)
def test_five_lines_lead_to_a_model_that_is_served(type_in: Type) -> None:
    (quick_start, *_) = blocks("README.md", "sh")
    commands = [line.partition("#")[0].strip() for line in quick_start.text.splitlines()]
    assert len(commands) == 5
    said = {command: type_in(command) for command in commands}
    assert re.search(r"accuracy +0\.8", said["make run"])
    assert re.search(r"champion v1\b", said["make status"])
    assert re.fullmatch(r"\S+\n", said["make password"])
    assert re.search(r"^MLflow +http://", said["make ui"], re.MULTILINE)
