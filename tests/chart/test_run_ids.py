"""Which run ids Airflow takes."""

import re

import pytest

from tests.helpers.helm import airflow_config


@pytest.fixture(scope="module")
def pattern():
    return airflow_config("scheduler")["allowed_run_id_pattern"]


@pytest.mark.parametrize(
    "run_id",
    ["manual__2026-11-23T09:00:00.123456+00:00", "..1", "a+b", "a:b", "+1", "a~b", "x" * 248],
)
def test_an_odd_id_is_taken(pattern, run_id):
    assert re.match(pattern, run_id)


@pytest.mark.parametrize(
    "run_id",
    # An option of `airflow tasks run`, "all runs" of the API, too long for the name of a directory
    # with its logs (the database would take 250), no valid label of a pod.
    ["-x", "~", "..", "+", "x" * 249, "", "a/b", "a b", "für", "a\nb", "$(reboot)", "a'b"],
)
def test_an_id_that_cannot_work_is_refused(pattern, run_id):
    assert not re.match(pattern, run_id)


def test_the_pattern_is_one_that_airflow_can_read(pattern):
    # It compiles with RE2, which knows neither look-around nor back references.
    assert "(?" not in pattern
    assert "\\" not in pattern
