"""The runner of the suites: what it reads from JUnit files and how it sums up."""

from pathlib import Path

from tools.test import SUITES, Result, read_junit, unexpected_skips

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
