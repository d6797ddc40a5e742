"""The runner of the suites: what it reads from JUnit files, how it runs and how it sums up."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlctl.base.paths import ROOT
from mlctl.base.waiting import until
from tools import test as runner
from tools.test import BUILD_STEP, LANES, SUITES, Result, Runner, Suite, read_junit, summary

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" tests="5">
<testcase classname="tests.a" name="good" time="0.1"><properties>
<property name="setup" value="2.5"/><property name="call" value="0.5"/></properties></testcase>
<testcase classname="tests.a" name="bad"><failure message="no">a.py:3: in bad
    assert answer == 1
E   assert 2 == 1
E
E     full log</failure></testcase>
<testcase classname="tests.a" name="left_out"><skipped message="no Docker"/></testcase>
<testcase classname="tests.a" name="broken"><error message="setup">trace</error></testcase>
<testcase classname="tests.a" name="bad_twice"><failure/><error/></testcase>
</testsuite></testsuites>
"""


def test_counts_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(JUNIT)
    result = read_junit("a", file)
    assert result.counts == {"passed": 1, "failed": 2, "skipped": 1, "error": 2}
    assert result.bad == [
        ("a: tests.a::bad", "assert 2 == 1\n\nfull log"),
        ("a: tests.a::broken", "setup"),
        ("a: tests.a::bad_twice", ""),
        ("a: tests.a::bad_twice", ""),
    ]
    assert result.skips == ["a: tests.a::left_out: no Docker"]
    assert result.phases == [(2.5, "a: tests.a::good (setup)"), (0.5, "a: tests.a::good")]
    assert not result.good


def test_a_suite_that_died_is_an_error(tmp_path: Path) -> None:
    assert read_junit("a", tmp_path / "missing.xml").counts["error"] == 1
    file = tmp_path / "cut.xml"
    file.write_text(JUNIT[:100])
    assert read_junit("a", file).bad == [("a", "it ended before its tests did")]


def test_what_failed_for_one_reason_is_told_once() -> None:
    log = "\n".join(f"line {number}" for number in range(100))
    bad = [*((f"e2e: t{n}", "the server died") for n in range(89)), ("lint: long", log + "x" * 999)]
    lines = list(runner.failures(bad))
    assert lines[:5] == [
        *(f"FAILED e2e: t{number}" for number in range(3)),
        "FAILED 86 more in the same way",
        "    the server died",
    ]
    assert lines[5:7] == ["FAILED lint: long", "    line 0"]
    assert lines[-1].startswith("    line 99x")
    assert len(lines) < 30
    assert max(map(len, lines)) < 250


def test_the_closing_line_is_pytests() -> None:
    line = Result(Counter(passed=123, failed=1, skipped=2, error=1), 1234.5).line()
    assert line.strip("=") == " 1 failed, 123 passed, 2 skipped, 1 error in 1234.50s (0:20:34) "
    assert Result(Counter(passed=3), 2).line().strip("=") == " 3 passed in 2.00s "
    assert Result().line().strip("=") == " no tests ran in 0.00s "


def test_no_test_at_all_is_not_good() -> None:
    assert not Result().good
    assert not Result(Counter(skipped=3)).good
    assert Result(Counter(passed=1)).good


def test_skips_that_nobody_allowed() -> None:
    skips = ["cluster: tests.kind::up: no Docker", "e2e: tests.x::y: no idea"]
    assert runner.unexpected_skips(skips, "# why\n\n^cluster: .*no Docker$\n") == [skips[1]]
    assert runner.unexpected_skips(skips, "") == skips


def test_each_suite_is_in_one_lane_and_cheap_ones_come_first() -> None:
    assert sorted(name for lane in LANES for name in lane) == sorted(SUITES)
    names = list(SUITES)
    assert (names[0], names[-1]) == ("lint", "e2e")
    assert next(lane for lane in LANES if "e2e" in lane)[-1] == "e2e"


def test_the_summary_names_the_slowest() -> None:
    phases = [(float(number), f"test {number}") for number in range(30)]
    told = summary({"a": Result(Counter(passed=2, failed=1, error=1), 3.04, phases=phases)}, 4.06)
    assert told["suites"] == [{"name": "a", "seconds": 3.0, "passed": 2, "failed": 2, "skipped": 0}]
    assert told["seconds"] == 4.1
    assert len(told["slowest"]) == 20
    assert told["slowest"][0] == {"test": "test 29", "seconds": 29.0}


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run Python scripts as suites, each in a lane: name -> script.

    Gives what was printed and the results. A script finds its name in sys.argv.
    """
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.delenv("K", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    (tmp_path / "good").write_text(JUNIT)
    start = "import os, shutil, subprocess, sys, time\nfrom pathlib import Path\n"

    def run(**scripts: str) -> tuple[str, dict[str, Result]]:
        suites = {
            name: Suite([sys.executable, "-c", start + script], 1, built=name != BUILD_STEP)
            for name, script in scripts.items()
        }
        monkeypatch.setattr(runner, "SUITES", suites)
        monkeypatch.setattr(runner, "LANES", tuple((name,) for name in suites))
        results = Runner(list(scripts)).results()
        return capsys.readouterr().out, results

    return run


def report(suite: str) -> str:
    return f"shutil.copy('good', '{suite}.xml')\n"


def test_lanes_run_beside_each_other_and_each_line_names_its_suite(play) -> None:
    # Each waits for the other: one after the other they would never end.
    meet = "Path({!r}).touch()\nwhile not Path({!r}).exists(): time.sleep(0.01)\n"
    printed, results = play(
        first=meet.format("a", "b") + report("first") + "print('first ends')",
        second="print('second starts')\n" + meet.format("b", "a") + report("second"),
    )
    lines = {tuple(line.split(maxsplit=1)) for line in printed.splitlines()}
    assert lines == {("first", "first ends"), ("second", "second starts")}
    assert [result.counts["passed"] for result in results.values()] == [1, 1]


def test_a_suite_that_fails_leaves_the_others_alone(play) -> None:
    printed, results = play(ill="sys.exit('error: no package index')", well=report("well"))
    assert printed.split() == ["ill", "error:", "no", "package", "index"]
    assert results["ill"].bad == [("ill", "it ended before its tests did")]
    assert results["well"].counts["passed"] == 1


def test_what_needs_the_build_waits_for_it_and_is_not_run_without_it(play) -> None:
    # A suite that began before the build had ended would find no directory.
    _, results = play(build="time.sleep(0.3); Path('built').mkdir()", one="os.chdir('built')")
    assert results["one"].bad == [("one", "it ended before its tests did")]
    printed, results = play(build="sys.exit(1)", one="print('it runs')")
    assert results["one"].bad == [("one", "not run, what it needs is not built")]
    assert results["build"].bad == [("build", "ended with status 1")]
    assert "it runs" not in printed


def test_what_a_suite_leaves_behind_is_ended(play, tmp_path: Path) -> None:
    # The child holds the suite's output open, too.
    leave = "child = subprocess.Popen(['sleep', '600'])\n"
    play(a=f"{leave}Path('pid').write_text(str(child.pid))\nos._exit(1)")
    pid = int((tmp_path / "pid").read_text())
    until(60, lambda: not running(pid), "it goes on")


def running(process: int) -> bool:
    """Say whether a process is there, and is more than an entry that nobody has read."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False


def test_suites_end_with_the_command_that_started_them(play, tmp_path: Path, monkeypatch) -> None:
    """As on Ctrl-C, which comes while the first result is awaited."""

    wait = runner.wait

    def interrupted(*words: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return wait(*words, **options)
        until(60, (tmp_path / "started").exists, "it has not started")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "wait", interrupted)
    take_down = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: Path('down').touch())\n"
    with pytest.raises(KeyboardInterrupt):
        play(long=f"{take_down}Path('started').touch()\nsignal.pause()")
    assert (tmp_path / "down").exists()


def test_silence_is_broken(play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SILENCE_SECONDS", 0.0)
    printed, _ = play(slow="time.sleep(2.5)")
    assert "s still at it: slow\n" in printed


def test_pytest_that_is_terminated_takes_its_fixtures_down(tmp_path: Path) -> None:
    """What `kill`, a CI that gives up and the end of a terminal do to one suite."""
    (tmp_path / "test_long.py").write_text(
        "import pytest, subprocess\n"
        "@pytest.fixture\n"
        "def child():\n"
        "    with subprocess.Popen(['sleep', '600']) as process:\n"
        "        yield process\n"
        "        process.kill()\n"
        "def test_long(child):\n"
        "    open('pid', 'w').write(f'{child.pid}\\n')\n"
        "    child.wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    file = tmp_path / "pid"
    until(60, lambda: file.exists() and file.read_text().endswith("\n"), "no test has begun")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in printed
    assert not running(int(file.read_text()))
