"""What a Ctrl-C leaves of a command whose threads wait for child processes: nothing."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlctl.base import cache, processes
from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phase, run

COMMAND = """
import os, sys, time
from pathlib import Path
from mlctl.base import processes
from mlctl.base.cache import cached, lock
from mlctl.base.errors import run_main
from mlctl.base.progress import Phases, run
from mlctl.commands.bring_up import bring_up
from mlctl.stack import Stack, images_build

scratch, tree = Path(os.environ["SCRATCH"]), os.environ["TREE"]

def work(phases, name):
    with phases.phase(name) as phase:
        build = lambda at: run(["sh", "-c", tree, name], log=scratch / "log", phase=phase)
        cached("unit", name, build)

class Cluster:
    kind, name, made_here = "stand-in", "unit", True
    def host_packages(self): return []
    def doctor(self): pass
    def status(self): return [{"name": "node", "state": "running"}]
    def up(self, phases): work(phases, "cluster")

def build_all(phases, ready):
    with processes.thread_pool(1) as pool:
        for one in [pool.submit(work, phases, name) for name in ("image", "next-image")]:
            one.result()

def busy(phases, ready):
    (scratch / "image").touch()
    time.sleep(600)

images_build.HOST_PACKAGES = []
images_build.build_all = busy if "BUSY" in os.environ else build_all
run_main(lambda: bring_up(Stack(Cluster()), Phases()))
"""
"""`make run` with stand-ins for the cluster and the images: each part is a tree of processes."""

POLITE = 'sleep $SECONDS_ & touch "$SCRATCH/$0"; sleep $SECONDS_'
STUBBORN = f"trap '' TERM; {POLITE}; {POLITE}"
LINE = (
    "interrupted; `make run` goes on where it stopped; "
    "the cluster goes on running, `make down` stops it"
)


class Command:
    """The command in a process group of its own, as a shell starts it."""

    def __init__(self, scratch: Path, tree: str, **env: str) -> None:
        # Its processes are known by how long they sleep.
        self.mark = f"{random.randrange(10**6, 10**7)}"
        self.scratch = scratch
        variables = {"SCRATCH": str(scratch), "TREE": tree, "SECONDS_": self.mark, **env}
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            cwd=ROOT,
            env=os.environ | {"ML_PIPELINES_CACHE": str(scratch / "cache")} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def wait_for(self, *names: str, children: int = 0) -> None:
        deadline = time.monotonic() + 60
        while not all((self.scratch / name).exists() for name in names) or (
            len(self.children()) < children
        ):
            assert time.monotonic() < deadline, f"no {names} within 60 s"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def end(self) -> tuple[int, float, list[str]]:
        """Return status, seconds and the lines of standard error."""
        started = time.monotonic()
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - started, errors.splitlines()

    def children(self) -> list[str]:
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes().split(b"\0")
            except OSError:
                continue
            if self.mark.encode() in words:
                found.append(file.parent.name)
        return found


@pytest.fixture
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Command]:
    started = Command(tmp_path, **request.param)
    yield started
    started.process.kill()
    started.process.communicate()
    for child in started.children():
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("command", [{"tree": POLITE}], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_all_that_was_started(command: Command, number: signal.Signals) -> None:
    command.wait_for("cluster", "image", children=4)
    if number == signal.SIGTERM:
        command.process.terminate()
    else:
        # As a terminal does: to all processes in its foreground.
        os.killpg(command.process.pid, number)
    status, seconds, errors = command.end()
    assert status == 130
    assert seconds < processes.END_SECONDS
    assert errors == [LINE]
    assert command.children() == []
    # Nothing new was begun, nothing half-made is left, and nobody holds the lock.
    assert not (command.scratch / "next-image").exists()
    assert list((command.scratch / "cache" / "unit").iterdir()) == []
    with (command.scratch / "cache" / "locks" / "bring-up-unit").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("command", [{"tree": STUBBORN}], indirect=True)
def test_a_child_that_does_not_end_is_killed(command: Command) -> None:
    command.wait_for("cluster", "image")
    os.killpg(command.process.pid, signal.SIGINT)
    status, seconds, errors = command.end()
    assert (status, errors) == (130, [LINE])
    assert processes.GRACE_SECONDS < seconds < processes.END_SECONDS
    assert command.children() == []


@pytest.mark.parametrize("command", [{"tree": POLITE, "BUSY": "1"}], indirect=True)
def test_a_busy_thread_does_not_hold_up_the_end(command: Command) -> None:
    command.wait_for("cluster", "image")
    os.killpg(command.process.pid, signal.SIGINT)
    status, seconds, errors = command.end()
    assert (status, errors) == (130, [LINE])
    assert processes.END_SECONDS <= seconds < 2 * processes.END_SECONDS
    assert command.children() == []


@pytest.mark.parametrize(
    "command", [{"tree": 'test "$0" = cluster || exit 3; ' + POLITE}], indirect=True
)
def test_an_interrupt_reaches_the_part_that_goes_on_after_a_failure(command: Command) -> None:
    command.wait_for("cluster")
    assert command.process.stdout is not None
    in_time = threading.Timer(60, command.process.kill)
    in_time.start()
    told = ""
    while "Ctrl-C ends it" not in told:
        told = command.process.stdout.readline()
        assert told, "the failure was not told"
    in_time.cancel()
    os.killpg(command.process.pid, signal.SIGINT)
    status, seconds, errors = command.end()
    assert (status, errors) == (130, [LINE])
    assert seconds < processes.END_SECONDS
    assert command.children() == []


def test_what_a_killed_build_left_is_removed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    (tmp_path / "unit" / ".key.left").mkdir(parents=True)
    (tmp_path / "unit" / ".other.left").mkdir()
    cache.cached("unit", "key", lambda directory: (directory / "made").touch())
    assert {path.name for path in (tmp_path / "unit").iterdir()} == {"key", ".other.left"}
    assert (tmp_path / "unit" / "key" / "made").exists()


def test_who_waits_for_a_lock_can_be_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    monkeypatch.setattr(processes, "_interrupted", interrupted := threading.Event())
    with cache.lock("unit"), pytest.raises(processes.Interrupted):
        with cache.lock("unit", interrupted.set):
            pytest.fail("the lock was held by somebody else")


def test_a_command_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match=r"sh ended with status 4; whole log: .*\n    reason"):
        run(["sh", "-c", "read word; echo $word; exit 4"], log=log, stdin="reason\n")
    assert log.read_text() == "$ sh -c read word; echo $word; exit 4\nreason\n"


def test_the_heartbeat_shows_the_last_line(tmp_path: Path) -> None:
    phase = Phase("unit")
    run(["printf", "one\ntwo\n\n"], log=tmp_path / "log", phase=phase)
    assert phase.detail == "two"
