"""Every test suite of the project, one after the other, and one line that sums them up.

    python -m tools.test                 all suites
    python -m tools.test chart e2e       these

The variable K is what pytest's -k takes. Each suite leaves build/test/<suite>.xml (JUnit). With
CI=true a skip fails the whole unless tests/allowed-skips.txt names it.
"""

import os
import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.bootstrap import environment
from tools.errors import UserError, run_main
from tools.paths import BUILD, ROOT

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
    # The environment is made when the suite's turn has come.
    return lambda suite: _pytest(environment([lock, "dag-tests"]), "tests/dags")(suite)


def _in_image(suite: str) -> list[str]:
    return [sys.executable, "-m", "images", "test", *_options(suite)]


SUITES: dict[str, Callable[[str], list[str]]] = {
    "lint": _pytest(sys.executable, "tests/lint/test_lint.py"),
    "tools": _pytest(sys.executable, "tests/tools"),
    "chart": _pytest(sys.executable, "tests/chart"),
    "dags": _with_airflow("airflow"),
    "dags-airflow3": _with_airflow("airflow3"),
    "cluster": _pytest(sys.executable, "tests/cluster"),
    # Needs what the cluster's build has compiled: on an empty cache it would build it all.
    "vet": _pytest(sys.executable, "tests/lint/test_vet.py"),
    "images": _pytest(sys.executable, "tests/images"),
    "workload": _in_image,
    "e2e": _pytest(sys.executable, "tests/e2e"),
}
"""Cheap ones first: what is wrong in a line of code shows before anything is built."""


def run_suite(suite: str) -> Result:
    """Run one suite, with its output on the terminal, and return what it came to."""
    file = RESULTS / f"{suite}.xml"
    file.unlink(missing_ok=True)
    print(f"\n##### {suite}", flush=True)
    started = time.monotonic()
    try:
        status = _run_aloud(suite, SUITES[suite](suite))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return Result(errors=1, seconds=time.monotonic() - started, bad=[f"{suite}: {error}"])
    result = read_junit(suite, file)
    # 0 and 1 are pytest's "all passed" and "some failed"; 5, nothing collected, is fine only
    # where K chose no test of this suite.
    nothing_chosen = status == 5 and bool(os.environ.get("K"))
    if status not in {0, 1} and not nothing_chosen and not result.errors:
        result.errors += 1
        result.bad.append(f"{suite}: pytest ended with status {status}")
    result.seconds = time.monotonic() - started
    return result


def _run_aloud(suite: str, command: list[str]) -> int:
    """Run a command; its output passes through, and long silence is broken by a line."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": os.environ.get("COLUMNS", "100")},
    )
    assert process.stdout is not None
    started = last = time.monotonic()
    ended = threading.Event()

    def break_silence() -> None:
        while not ended.wait(1):
            if time.monotonic() - last >= SILENCE_SECONDS:
                say(f"\n    {time.monotonic() - started:4.0f}s {suite}: still at it\n".encode())

    def say(text: bytes) -> None:
        nonlocal last
        last = time.monotonic()
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    watcher = threading.Thread(target=break_silence, daemon=True)
    watcher.start()
    try:
        while text := os.read(process.stdout.fileno(), 65536):
            say(text)
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        ended.set()
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
    for name in names:
        result = run_suite(name)
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
