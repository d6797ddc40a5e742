"""Every test suite of the project in two lanes, and one line that sums them up.

    python -m tools.test                 all suites
    python -m tools.test chart e2e       these

The suites of a lane run one after the other; each line that they print begins with the suite's
name. What some need built is built beside those that need nothing.

The variable K is what pytest's -k takes. Each suite leaves build/test/<suite>.xml (JUnit), and the
whole build/test/summary.json. With CI=true a skip fails the whole unless tests/allowed-skips.txt
names it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import BUILD, ROOT

RESULTS = BUILD / "test"
ALLOWED_SKIPS = ROOT / "tests" / "allowed-skips.txt"
SLOWEST = 20
NAMES_SHOWN, LINES_SHOWN, LINE_WIDTH = 3, 20, 240
"""Of each reason for which tests failed; build/test/<suite>.xml holds the rest."""

SILENCE_SECONDS = 10.0
END_SECONDS = 120.0
"""How long suites may take to take down what their fixtures made, when all is to end."""

PYTEST = [sys.executable, "-m", "pytest"]
# The environment is made by the suite's own process: its output stays together.
WITH_LOCKS = [sys.executable, "-m", "tools.with_locks"]
IN_IMAGE = [sys.executable, "-m", "tools.in_image.pytest_in_image"]
# Once is enough.
NO_AIRFLOW = ["tests/dags/test_settings.py"]


@dataclass(frozen=True)
class Suite:
    """A command that takes pytest's options, and how long it should take."""

    command: list[str]
    budget: float
    """Seconds on a good machine that has built everything; more is told and fails nothing."""
    built: bool = False
    """It needs what the step BUILD builds, and would build it itself, one part after the other."""


BUILD_STEP = "build"
SUITES = {
    "lint": Suite([*PYTEST, "tests/lint"], 20),
    "mlctl": Suite([*PYTEST, "tests/mlctl", "tests/tools"], 90),
    # A hundred times helm, which is one program after the other: two at a time.
    "chart": Suite([*PYTEST, "-n", "2", "tests/chart"], 60),
    "dags": Suite([*WITH_LOCKS, "airflow,dag-tests", "-m", "pytest", "tests/dags"], 90),
    "dags-airflow3": Suite(
        [
            *WITH_LOCKS,
            "airflow3,dag-tests",
            "-m",
            "pytest",
            "tests/dags",
            *(f"--ignore={one}" for one in NO_AIRFLOW),
        ],
        90,
    ),
    BUILD_STEP: Suite([sys.executable, "-m", "tools.build"], 30),
    "cluster": Suite([*PYTEST, "tests/cluster"], 180, built=True),
    "images": Suite([*PYTEST, "tests/images"], 180, built=True),
    # Half of its time is waiting, for servers that do not answer: two files at a time.
    "workload": Suite([*IN_IMAGE, "-n", "2", "--dist", "loadfile"], 300, built=True),
    "e2e": Suite([*WITH_LOCKS, "tools,browser", "-m", "pytest", "tests/e2e"], 1080, built=True),
}
"""In the order in which they are summed up."""

LANES = (
    (BUILD_STEP,),
    ("lint", "mlctl", "chart", "cluster", "images", "e2e"),
    ("dags", "dags-airflow3", "workload"),
)
"""Lanes run beside each other: only one has a cluster of its own."""


@dataclass
class Result:
    """What the tests of a suite, or of all, came to."""

    counts: Counter[str] = field(default_factory=Counter)
    """How many ``failed``, ``passed``, were ``skipped`` or met an ``error`` outside the test."""
    seconds: float = 0.0
    skips: list[str] = field(default_factory=list)
    """``suite: test id: reason`` of each skipped test."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Id of each test that failed or broke, or suite that could not run, and why."""
    phases: list[tuple[float, str]] = field(default_factory=list)
    """Seconds of each test and of the fixtures made for it."""

    @classmethod
    def broken(cls, suite: str, why: str) -> "Result":
        """Return what a suite came to that did not get as far as its tests."""
        return cls(Counter(error=1), bad=[(suite, why)])

    @property
    def good(self) -> bool:
        """Say whether tests ran and none of them failed."""
        return self.counts["passed"] > 0 and not self.bad

    def line(self) -> str:
        """Return the closing line that pytest would print."""
        counts = [(self.counts[name], name) for name in ("failed", "passed", "skipped", "error")]
        words = [
            f"{count} {name}{'s' * (name == 'error' and count > 1)}"
            for count, name in counts
            if count
        ]
        minutes, seconds = divmod(int(self.seconds), 60)
        clock = f" ({minutes // 60}:{minutes % 60:02}:{seconds:02})" if minutes else ""
        text = ", ".join(words) or "no tests ran"
        return f" {text} in {self.seconds:.2f}s{clock} ".center(80, "=")


def read_junit(suite: str, file: Path) -> Result:
    """Return what a JUnit file of pytest says; a missing or broken file is one error."""
    result = Result()
    try:
        cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Result.broken(suite, "it ended before its tests did")
    for case in cases:
        name = f"{suite}: {case.get('classname', '')}::{case.get('name', '')}"
        # A test may fail and then break in its teardown: pytest counts both.
        kinds = {"failure": "failed", "error": "error", "skipped": "skipped"}
        found = [part for part in case if part.tag in kinds]
        result.counts.update([kinds[part.tag] for part in found] or ["passed"])
        result.bad += [(name, reason(part)) for part in found if part.tag != "skipped"]
        result.skips += [f"{name}: {part.get('message')}" for part in case.iter("skipped")]
        # tests/conftest.py notes them; the time of the whole case is their sum.
        for phase in case.iter("property"):
            what = name if phase.get("name") == "call" else f"{name} ({phase.get('name')})"
            result.phases.append((float(phase.get("value", 0)), what))
    return result


def reason(fault: ElementTree.Element) -> str:
    """Return what pytest marks as the error in the report of a test, without the code around it."""
    lines = (fault.text or "").splitlines()
    marked = [line[1:].strip() for line in lines if re.match(r"E( |$)", line)]
    return "\n".join(marked) or fault.get("message", "")


def failures(bad: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines that tell what failed and why, once for all that have failed for one reason.

    A fixture that breaks fails each test that asks for it.
    """
    by_reason: dict[str, list[str]] = {}
    for name, why in bad:
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        for name in names[:NAMES_SHOWN]:
            yield f"FAILED {name}"
        if more := names[NAMES_SHOWN:]:
            yield f"FAILED {len(more)} more in the same way"
        lines = why.splitlines()
        if len(lines) > LINES_SHOWN:
            half = LINES_SHOWN // 2
            lines = [*lines[:half], "...", *lines[-half:]]
        yield from (f"    {line[:LINE_WIDTH]}".rstrip() for line in lines)


def unexpected_skips(skips: list[str], allowed: str) -> list[str]:
    """Return the skips that no line of the allow-list matches."""
    lines = (line.strip() for line in allowed.splitlines())
    patterns = [line for line in lines if line and not line.startswith("#")]
    return [skip for skip in skips if not any(re.search(pattern, skip) for pattern in patterns)]


class Runner:
    """Suites on their way, and their processes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [name for name in SUITES if name in names]
        self.running: dict[str, subprocess.Popen[str]] = {}
        self._ended = False
        self._lock = threading.Lock()
        self._printed = time.monotonic()

    def results(self) -> dict[str, Result]:
        """Run the suites and return their results in the order of SUITES.

        When the caller or a signal ends this early, it ends the suites.
        """
        pool = ThreadPoolExecutor(len(self.names))
        runs: dict[str, Future[Result]] = {}
        for lane in LANES:
            before: list[Future[Result]] = []
            for name in (name for name in lane if name in self.names):
                build = [runs[BUILD_STEP]] if SUITES[name].built and BUILD_STEP in runs else []
                runs[name] = pool.submit(self._run, name, before, build)
                before = [runs[name]]
        started = time.monotonic()
        try:
            while wait(runs.values(), timeout=1).not_done:
                if time.monotonic() - self._printed >= SILENCE_SECONDS:
                    age = time.monotonic() - started
                    self._say("", f"{age:4.0f}s still at it: {', '.join(self.running)}")
            return {name: runs[name].result() for name in self.names}
        finally:
            self._end_all()
            pool.shutdown()

    def _say(self, suite: str, line: str) -> None:
        self._printed = time.monotonic()
        print(f"{suite:<14}{line}".rstrip(), flush=True)

    def _run(self, suite: str, before: list[Future[Result]], build: list[Future[Result]]) -> Result:
        """Run one suite after others and return what it came to."""
        wait([*before, *build])
        if any(one.result().bad for one in build):
            return Result.broken(suite, "not run, what it needs is not built")
        file = RESULTS / f"{suite}.xml"
        file.unlink(missing_ok=True)
        started = time.monotonic()
        if suite == BUILD_STEP:
            status = self._run_aloud(suite, SUITES[suite].command)
            why = f"ended with status {status}"
            result = Result() if status == 0 else Result.broken(suite, why)
        else:
            status = self._run_aloud(suite, [*SUITES[suite].command, *pytest_options(file)])
            result = read_junit(suite, file)
        # 0 and 1 are pytest's "all passed" and "some failed"; 5, nothing collected, is fine only
        # where K chose no test of this suite.
        nothing_chosen = status == 5 and bool(os.environ.get("K"))
        if status not in {0, 1} and not nothing_chosen and not result.counts["error"]:
            result.counts["error"] += 1
            result.bad.append((suite, f"pytest ended with status {status}"))
        result.seconds = time.monotonic() - started
        return result

    def _run_aloud(self, suite: str, command: list[str]) -> int:
        """Run a command with the suite's name before each line of it, and return its status."""
        with self._lock:
            if self._ended:
                return signal.SIGTERM
            process = self.running[suite] = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={"COLUMNS": "100"} | os.environ | {"PYTHONUNBUFFERED": "1"},
                # What it leaves can be told by that, and a Ctrl-C reaches it from here alone.
                start_new_session=True,
            )

        def reap() -> None:
            process.wait()
            # What is left may hold the pipe open.
            kill_session(process.pid)

        reaper = threading.Thread(target=reap)
        reaper.start()
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._say(suite, line)
        reaper.join()
        del self.running[suite]
        return process.returncode

    def _end_all(self) -> None:
        """End the suites: pytest takes down what its fixtures made, such as a cluster."""
        with self._lock:
            self._ended = True
        left = list(self.running.values())
        try:
            for process in left:
                process.terminate()
            deadline = time.monotonic() + END_SECONDS
            for process in left:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            # Also on a second Ctrl-C.
            for process in left:
                kill_session(process.pid)


def pytest_options(report: Path) -> list[str]:
    """Return the options that every suite is run with."""
    expression = ["-k", os.environ["K"]] if os.environ.get("K") else []
    return ["-v", "--tb=short", f"--junitxml={report}", *expression]


def kill_session(leader: int) -> None:
    """Kill what is left of a suite: one that ended by force has taken nothing down."""
    for process in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
        with suppress(ProcessLookupError):
            if os.getsid(process) == leader:
                os.kill(process, signal.SIGKILL)


def summary(results: dict[str, Result], seconds: float) -> dict[str, Any]:
    """Return what build/test/summary.json holds; an error counts as a failure there."""
    suites = [
        {
            "name": name,
            "seconds": round(result.seconds, 1),
            "passed": result.counts["passed"],
            "failed": result.counts["failed"] + result.counts["error"],
            "skipped": result.counts["skipped"],
        }
        for name, result in results.items()
    ]
    phases = sorted((phase for result in results.values() for phase in result.phases), reverse=True)
    slowest = [{"test": test, "seconds": round(took, 1)} for took, test in phases[:SLOWEST]]
    return {"seconds": round(seconds, 1), "suites": suites, "slowest": slowest}


def main() -> int:
    """Run the suites that the command line names, all when it names none."""
    names = sys.argv[1:] or list(SUITES)
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise UserError(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results = Runner(names).results()
    total = Result(seconds=time.monotonic() - started)
    print("\n##### summary")
    for name, result in results.items():
        total.counts += result.counts
        total.bad += result.bad
        total.skips += result.skips
        budget = SUITES[name].budget
        over = f"   over its budget of {budget:.0f} s" if result.seconds > budget else ""
        what = result.line().strip("= ") if name != BUILD_STEP else f"{result.seconds:.2f}s"
        print(f"{name:<14}{what}{over}")
    told = summary(results, total.seconds)
    (RESULTS / "summary.json").write_text(json.dumps(told, indent=2) + "\n")
    print(f"the {SLOWEST} slowest tests and fixtures:")
    for one in told["slowest"]:
        print(f"{one['seconds']:8.1f} s  {one['test']}")
    for line in failures(total.bad):
        print(line)
    surprises = unexpected_skips(total.skips, ALLOWED_SKIPS.read_text())
    for skip in surprises:
        print(f"SKIPPED {skip}")
    in_ci = os.environ.get("CI") == "true"
    if surprises and in_ci:
        print("a skip that tests/allowed-skips.txt does not name fails the whole in CI")
    print(total.line(), flush=True)
    return 0 if total.good and not (surprises and in_ci) else 1


if __name__ == "__main__":
    run_main(main)
