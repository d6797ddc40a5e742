"""The labels of pods: tests/dags compares those that the operator writes with the same list."""

import pytest

from mlctl.base.labels import label, run_directory
from tests.helpers.labels import LABELS


@pytest.mark.parametrize(("identity", "expected"), LABELS)
def test_a_label_is_the_one_that_the_pod_carries(identity: str, expected: str) -> None:
    assert label(identity) == expected


def test_the_directory_of_a_run_is_made_of_both_labels() -> None:
    assert run_directory("für", "a+b") == f"{label('für')}/ab-65c884f74"
