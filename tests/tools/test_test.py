"""The runner of the suites: what it reads from JUnit files and how it sums up."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import test as runner
from tools.test import (
    BESIDE,
    SUITES,
    Result,
    Screen,
    groups,
    read_junit,
    run_group,
    unexpected_skips,
)

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" tests="5">
<testcase classname="tests.a" name="good" time="0.1"/>
<testcase classname="tests.a" name="bad"><failure message="no">trace</failure></testcase>
<testcase classname="tests.a" name="left_out"><skipped message="no Docker"/></testcase>
<testcase classname="tests.a" name="broken"><error message="setup">trace</error></testcase>
<testcase classname="tests.a" name="bad_twice"><failure/><error/></testcase>
</testsuite></testsuites>
"""


def test_counts_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(JUNIT)
    result = read_junit("a", file)
    assert (result.passed, result.failed, result.skipped, result.errors) == (1, 2, 1, 2)
    assert result.bad == [
        "a: tests.a::bad",
        "a: tests.a::broken",
        "a: tests.a::bad_twice",
        "a: tests.a::bad_twice",
    ]
    assert result.skips == ["a: tests.a::left_out: no Docker"]
    assert not result.good


def test_a_suite_that_died_is_an_error(tmp_path: Path) -> None:
    assert read_junit("a", tmp_path / "missing.xml").errors == 1
    file = tmp_path / "cut.xml"
    file.write_text(JUNIT[:100])
    assert read_junit("a", file).errors == 1


def test_the_closing_line_is_pytests() -> None:
    line = Result(passed=123, failed=1, skipped=2, errors=1, seconds=1234.5).line()
    assert line.strip("=") == " 1 failed, 123 passed, 2 skipped, 1 error in 1234.50s (0:20:34) "
    assert Result(passed=3, seconds=2).line().strip("=") == " 3 passed in 2.00s "
    assert Result().line().strip("=") == " no tests ran in 0.00s "


def test_results_add_up() -> None:
    total = Result(passed=1, seconds=1.0)
    total.add(Result(passed=2, failed=1, skipped=1, seconds=2.0, skips=["x"], bad=["y"]))
    assert total == Result(passed=3, failed=1, skipped=1, seconds=3.0, skips=["x"], bad=["y"])


def test_no_test_at_all_is_not_good() -> None:
    assert not Result().good
    assert not Result(skipped=3).good
    assert Result(passed=1).good


def test_skips_that_nobody_allowed() -> None:
    skips = ["cluster: tests.kind::up: no Docker", "e2e: tests.x::y: no idea"]
    assert unexpected_skips(skips, [r"^cluster: .*no Docker$"]) == [skips[1]]
    assert unexpected_skips(skips, []) == skips


def test_cheap_suites_come_first() -> None:
    names = list(SUITES)
    assert (names[0], names[-1]) == ("lint", "e2e")


def test_suites_that_share_something_run_alone() -> None:
    assert groups(["lint", "chart", "images", "dags", "e2e"]) == [
        ["lint", "chart"],
        ["images"],
        ["dags"],
        ["e2e"],
    ]
    assert [name for group in groups(list(SUITES)) for name in group] == list(SUITES)
    assert set(SUITES) >= BESIDE
    assert not {"cluster", "images", "workload", "e2e"} & BESIDE


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run Python scripts as suites: name -> script; gives what was printed and the results."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.delenv("K", raising=False)

    def run(**scripts: str) -> tuple[str, list[Result]]:
        def command(script: str) -> list[str]:
            return [sys.executable, "-c", f"from pathlib import Path\nimport time\n{script}"]

        suites = {
            name: lambda _, script=script: command(script) for name, script in scripts.items()
        }
        monkeypatch.setattr(runner, "SUITES", suites)
        out = io.BytesIO()
        results = list(run_group(list(scripts), out))
        return out.getvalue().decode(), results

    return run


def test_suites_run_two_at_a_time_and_are_shown_one_after_the_other(play, tmp_path: Path) -> None:
    # Each waits for the other: one after the other they would never end.
    meet = "Path({!r}).touch()\nwhile not Path({!r}).exists(): time.sleep(0.01)\n"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    report = f"Path({str(tmp_path)!r} + '/{{}}.xml').write_text({JUNIT!r})\n"
    printed, results = play(
        first=meet.format(a, b) + report.format("first") + "time.sleep(0.3); print('first ends')",
        second="print('second starts')\n" + meet.format(b, a) + report.format("second"),
    )
    lines = [line for line in printed.splitlines() if line]
    assert lines == [
        "##### 2 at a time: first, second",
        "##### first",
        "first ends",
        "##### second",
        "second starts",
    ]
    assert [result.passed for result in results] == [1, 1]


def test_a_suite_that_fails_leaves_the_others_alone(play, tmp_path: Path) -> None:
    report = f"Path({str(tmp_path)!r} + '/well.xml').write_text({JUNIT!r})"
    printed, (ill, well) = play(ill="raise SystemExit('error: no package index')", well=report)
    assert "##### ill\nerror: no package index\n" in printed
    assert ill.errors == 1
    assert well.passed == 1


@pytest.mark.parametrize("suite", ["dags", "dags-airflow3"])
def test_environment_of_a_suite_is_made_by_its_own_process(
    suite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, flags, script, _, lock, *words = SUITES[suite](suite)
    assert lock == {"dags": "airflow", "dags-airflow3": "airflow3"}[suite]
    played = tmp_path / "python"
    played.write_text('#!/bin/sh\necho making "$@" >&2\necho echo\n')
    played.chmod(0o755)
    command = [program, flags, script, str(played), lock, *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr == f"making tools/bootstrap.py {lock} dag-tests\n"
    assert ended.stdout.startswith("-m pytest ")
    assert ended.stdout.endswith(" tests/dags\n")


def test_environment_that_cannot_be_made_ends_the_suite() -> None:
    program, flags, script, _, *words = SUITES["dags"]("dags")
    command = [program, flags, script, "/bin/false", *words]
    assert subprocess.run(command, capture_output=True).returncode == 1


def test_a_suite_that_ends_without_a_report_is_an_error(play) -> None:
    _, (dead,) = play(dead="raise SystemExit(3)")
    assert not dead.good
    assert dead.bad == ["dead: it ended before its tests did"]


def test_suites_end_with_the_command_that_started_them(play, tmp_path: Path, monkeypatch) -> None:
    """As on Ctrl-C, which comes while the first result is awaited."""
    started = tmp_path / "started"
    monkeypatch.setattr(Screen, "show", lambda _: _wait_and_interrupt(started))
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        play(long=f"Path({str(started)!r}).touch(); time.sleep(60)")
    assert time.monotonic() - begun < 20


def _wait_and_interrupt(file: Path) -> None:
    deadline = time.monotonic() + 15
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    raise KeyboardInterrupt


def test_silence_of_the_suite_that_is_shown_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SILENCE_SECONDS", 0.0)
    out = io.BytesIO()
    screen = Screen("slow", out)
    screen.write(b"kept\n")
    screen.break_silence()
    assert out.getvalue() == b""
    screen.show()
    screen.break_silence()
    assert out.getvalue().decode().splitlines() == ["kept", "", "       0s slow: still at it"]
