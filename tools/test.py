"""Every test suite of the project, and one line that sums them up.

    python -m tools.test                 all suites
    python -m tools.test chart e2e       these

Suites that need nothing but a processor run two at a time; their output is shown suite by suite
all the same.

The variable K is what pytest's -k takes. Each suite leaves build/test/<suite>.xml (JUnit). With
CI=true a skip fails the whole unless tests/allowed-skips.txt names it.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import BUILD, ROOT

RESULTS = BUILD / "test"
ALLOWED_SKIPS = ROOT / "tests" / "allowed-skips.txt"
SILENCE_SECONDS = 10.0


@dataclass
class Result:
    """What the tests of one or more suites came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    errors: int = 0
    seconds: float = 0.0
    skips: list[str] = field(default_factory=list)
    """``test id: reason`` of each skipped test."""
    bad: list[str] = field(default_factory=list)
    """Ids of the tests that failed or broke, and of suites that could not run."""

    def add(self, other: "Result") -> None:
        """Count another result in."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.errors += other.errors
        self.seconds += other.seconds
        self.skips += other.skips
        self.bad += other.bad

    @property
    def good(self) -> bool:
        """Say whether tests ran and none of them failed."""
        return self.passed > 0 and not self.failed and not self.errors

    def line(self) -> str:
        """Return the closing line that pytest would print."""
        counts = [
            (self.failed, "failed"),
            (self.passed, "passed"),
            (self.skipped, "skipped"),
            (self.errors, "error" if self.errors == 1 else "errors"),
        ]
        words = ", ".join(f"{count} {name}" for count, name in counts if count)
        minutes = f" ({_clock(self.seconds)})" if self.seconds >= 60 else ""
        return f" {words or 'no tests ran'} in {self.seconds:.2f}s{minutes} ".center(80, "=")


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def read_junit(suite: str, file: Path) -> Result:
    """Return what a JUnit file of pytest says; a missing or broken file is one error."""
    result = Result()
    try:
        cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Result(errors=1, bad=[f"{suite}: it ended before its tests did"])
    for case in cases:
        name = f"{suite}: {case.get('classname', '')}::{case.get('name', '')}"
        # A test may fail and then break in its teardown: pytest counts both.
        if case.find("failure") is not None:
            result.failed += 1
            result.bad.append(name)
        if case.find("error") is not None:
            result.errors += 1
            result.bad.append(name)
        skipped = case.find("skipped")
        if skipped is not None:
            result.skipped += 1
            result.skips.append(f"{name}: {skipped.get('message', '')}")
        if all(case.find(kind) is None for kind in ("failure", "error", "skipped")):
            result.passed += 1
    return result


def unexpected_skips(skips: list[str], allowed: list[str]) -> list[str]:
    """Return the skips that no pattern of the allow-list matches."""
    return [skip for skip in skips if not any(re.search(pattern, skip) for pattern in allowed)]


def allowed_skips() -> list[str]:
    """Return the patterns of tests/allowed-skips.txt."""
    lines = (line.strip() for line in ALLOWED_SKIPS.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _pytest(python: Path | str, *paths: str) -> Callable[[str], list[str]]:
    return lambda suite: [str(python), "-m", "pytest", *_options(suite), *paths]


def _options(suite: str) -> list[str]:
    expression = ["-k", os.environ["K"]] if os.environ.get("K") else []
    return ["-v", "--tb=short", f"--junitxml={RESULTS / suite}.xml", *expression]


def _with_airflow(lock: str) -> Callable[[str], list[str]]:
    # The environment is made by the suite's own process: its output stays together.
    script = 'python=$("$0" tools/bootstrap.py "$1" dag-tests); shift; exec "$python" "$@"'

    def command(suite: str) -> list[str]:
        python, *words = _pytest(sys.executable, "tests/dags")(suite)
        return ["sh", "-euc", script, python, lock, *words]

    return command


def _in_image(suite: str) -> list[str]:
    return [sys.executable, "-m", "tools.in_image.pytest_in_image", *_options(suite)]


SUITES: dict[str, Callable[[str], list[str]]] = {
    "lint": _pytest(sys.executable, "tests/lint/test_lint.py"),
    "mlctl": _pytest(sys.executable, "tests/mlctl", "tests/tools"),
    # A hundred times helm, which is one program after the other: two at a time.
    "chart": _pytest(sys.executable, "-n", "2", "tests/chart"),
    "dags": _with_airflow("airflow"),
    "dags-airflow3": _with_airflow("airflow3"),
    "cluster": _pytest(sys.executable, "tests/cluster"),
    # Needs what the cluster's build has compiled: before that it would compile it all.
    "vet": _pytest(sys.executable, "tests/lint/test_vet.py"),
    "images": _pytest(sys.executable, "tests/images"),
    "workload": _in_image,
    "e2e": _pytest(sys.executable, "tests/e2e"),
}
"""Cheap ones first: what is wrong in a line of code shows before anything is built."""


BESIDE = frozenset({"lint", "mlctl", "chart", "dags", "dags-airflow3"})
"""These may run at the same time: no cluster, no image, nothing that is only there once."""

AT_ONCE = 2


class Screen:
    """What a suite prints: kept until the suite's turn has come, then passed on as it comes.

    Long silence of the suite that is shown is broken by a line.
    """

    def __init__(self, suite: str, out: BinaryIO) -> None:
        self.suite = suite
        self._out = out
        self._kept: bytearray | None = bytearray()
        self._lock = threading.Lock()
        self._started = self._last = time.monotonic()

    def write(self, text: bytes) -> None:
        """Print, now or when the turn has come."""
        with self._lock:
            if self._kept is None:
                self._pass_on(text)
            else:
                self._kept += text

    def show(self) -> None:
        """Let the suite have its turn."""
        with self._lock:
            kept, self._kept = self._kept or bytearray(), None
            self._pass_on(bytes(kept))

    def break_silence(self) -> None:
        """Print that the suite is still at it if it is shown and has been silent for long."""
        with self._lock:
            if self._kept is None and time.monotonic() - self._last >= SILENCE_SECONDS:
                age = time.monotonic() - self._started
                self._pass_on(f"\n    {age:4.0f}s {self.suite}: still at it\n".encode())

    def _pass_on(self, text: bytes) -> None:
        self._last = time.monotonic()
        self._out.write(text)
        self._out.flush()


def groups(names: Sequence[str]) -> list[list[str]]:
    """Return the suites in their order, those that may run at the same time together."""
    found: list[list[str]] = []
    for name in names:
        if found and name in BESIDE and found[-1][-1] in BESIDE:
            found[-1].append(name)
        else:
            found.append([name])
    return found


def run_group(names: Sequence[str], out: BinaryIO) -> Iterator[Result]:
    """Run suites two at a time and yield their results in order, each after its whole output."""
    screens = [Screen(name, out) for name in names]
    if len(names) > 1:
        screens[0].write(f"\n##### {AT_ONCE} at a time: {', '.join(names)}\n".encode())
    pool = ThreadPoolExecutor(AT_ONCE)
    ended = threading.Event()
    try:
        runs = [
            pool.submit(run_suite, name, screen, ended)
            for name, screen in zip(names, screens, strict=True)
        ]
        for run, screen in zip(runs, screens, strict=True):
            screen.show()
            yield run.result()
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def run_suite(suite: str, screen: Screen, ended: threading.Event) -> Result:
    """Run one suite and return what it came to; ``ended`` ends it early."""
    file = RESULTS / f"{suite}.xml"
    file.unlink(missing_ok=True)
    screen.write(f"\n##### {suite}\n".encode())
    started = time.monotonic()
    status = _run_aloud(SUITES[suite](suite), screen, ended)
    result = read_junit(suite, file)
    # 0 and 1 are pytest's "all passed" and "some failed"; 5, nothing collected, is fine only
    # where K chose no test of this suite.
    nothing_chosen = status == 5 and bool(os.environ.get("K"))
    if status not in {0, 1} and not nothing_chosen and not result.errors:
        result.errors += 1
        result.bad.append(f"{suite}: pytest ended with status {status}")
    result.seconds = time.monotonic() - started
    return result


def _run_aloud(command: list[str], screen: Screen, ended: threading.Event) -> int:
    """Run a command with its output on a screen, and return its status."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": os.environ.get("COLUMNS", "100")},
        # A Ctrl-C reaches it once, from below, also where only this process was told.
        process_group=0,
    )
    assert process.stdout is not None
    closed = threading.Event()

    def watch() -> None:
        while not closed.wait(0.5):
            screen.break_silence()
            if ended.is_set():
                # pytest takes down what its fixtures made, such as a cluster.
                process.send_signal(signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()

    try:
        while text := os.read(process.stdout.fileno(), 65536):
            screen.write(text)
        return process.wait()
    finally:
        closed.set()
        watcher.join()
        process.stdout.close()


def main() -> int:
    """Run the suites that the command line names, all when it names none."""
    names = sys.argv[1:] or list(SUITES)
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise UserError(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    total = Result()
    lines = []
    for group in groups(names):
        for name, result in zip(group, run_group(group, sys.stdout.buffer), strict=True):
            total.add(result)
            lines.append(f"{name:<14}{result.line().strip('= ')}")
    total.seconds = time.monotonic() - started
    print("\n##### summary")
    print("\n".join(lines))
    for bad in total.bad:
        print(f"FAILED {bad}")
    surprises = unexpected_skips(total.skips, allowed_skips())
    for skip in surprises:
        print(f"SKIPPED {skip}")
    in_ci = os.environ.get("CI") == "true"
    if surprises and in_ci:
        print("a skip that tests/allowed-skips.txt does not name fails the whole in CI")
    print(total.line(), flush=True)
    return 0 if total.good and not (surprises and in_ci) else 1


if __name__ == "__main__":
    run_main(main)
