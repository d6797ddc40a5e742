"""Tests of the chart by its render: no cluster, seconds."""

import pytest

from mlctl.release.chart import dependency


@pytest.fixture(scope="session", autouse=True)
def official_chart():
    """The official chart is in place; fetched by hash where it is not."""
    return dependency()
