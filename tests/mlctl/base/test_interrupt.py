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

import psutil
import pytest

from mlctl.base import cache, processes
from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phase, run
from mlctl.base.waiting import until

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

def build_all(phases, names, ready):
    with processes.thread_pool(1) as pool:
        for one in [pool.submit(work, phases, name) for name in ("image", "next-image")]:
            one.result()

def busy(phases, names, ready):
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
        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            files = all((self.scratch / name).exists() for name in names)
            return files and len(self.children()) >= children

        until(60, there, f"no {names}", poll=0.05)

    def interrupted(self, number: signal.Signals = signal.SIGINT) -> float:
        """Send a signal, and return how many seconds the command took to end as it should."""
        started = time.monotonic()
        if number == signal.SIGTERM:
            self.process.terminate()
        else:
            # As a terminal does: to all processes in its foreground.
            os.killpg(self.process.pid, number)
        _, errors = self.process.communicate(timeout=30)
        assert (self.process.returncode, errors.splitlines()) == (130, [LINE])
        assert self.children() == []
        return time.monotonic() - started

    def children(self) -> list[psutil.Process]:
        running = psutil.process_iter(["cmdline"])
        return [one for one in running if self.mark in (one.info["cmdline"] or [])]


@pytest.fixture
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Command]:
    started = Command(tmp_path, **request.param)
    yield started
    started.process.kill()
    started.process.communicate()
    for child in started.children():
        child.kill()


@pytest.mark.parametrize("command", [{"tree": POLITE}], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_all_that_was_started(command: Command, number: signal.Signals) -> None:
    command.wait_for("cluster", "image", children=4)
    assert command.interrupted(number) < processes.END_SECONDS
    # Nothing new was begun, nothing half-made is left, and nobody holds the lock.
    assert not (command.scratch / "next-image").exists()
    assert list((command.scratch / "cache" / "unit").iterdir()) == []
    with (command.scratch / "cache" / "locks" / "bring-up-unit").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("command", [{"tree": STUBBORN}], indirect=True)
def test_a_child_that_does_not_end_is_killed(command: Command) -> None:
    command.wait_for("cluster", "image")
    assert processes.GRACE_SECONDS < command.interrupted() < processes.END_SECONDS


@pytest.mark.parametrize("command", [{"tree": POLITE, "BUSY": "1"}], indirect=True)
def test_a_busy_thread_does_not_hold_up_the_end(command: Command) -> None:
    command.wait_for("cluster", "image")
    assert processes.END_SECONDS <= command.interrupted() < 2 * processes.END_SECONDS


@pytest.mark.parametrize(
    "command", [{"tree": 'test "$0" = cluster || exit 3; ' + POLITE}], indirect=True
)
def test_an_interrupt_reaches_the_part_that_goes_on_after_a_failure(command: Command) -> None:
    command.wait_for("cluster")
    assert command.process.stdout is not None
    in_time = threading.Timer(60, command.process.kill)
    in_time.start()
    assert any("Ctrl-C ends it" in line for line in command.process.stdout)
    in_time.cancel()
    assert command.interrupted() < processes.END_SECONDS


UNSEEN = """
import contextlib, signal, threading
from mlctl.base import processes
from mlctl.base.errors import run_main

lock = threading.Lock()

def sleep():
    stopped = contextlib.suppress(processes.Interrupted)
    with stopped, processes.started(["sleep", "600"]) as child:
        print(child.pid, flush=True)
        # As if it had come before the main thread began to wait: this thread takes the signal.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

def main():
    lock.acquire()
    threading.Thread(target=sleep).start()
    lock.acquire()

run_main(main)
"""


def test_an_interrupt_just_before_a_wait_outside_a_pool_ends_command_and_children() -> None:
    process = subprocess.run(
        [sys.executable, "-c", UNSEEN], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stderr) == (130, "interrupted\n")
    assert not psutil.pid_exists(int(process.stdout))


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
