"""The chart as a dependency of another one; tests/long/test_paths.py installs it so."""

import json

import pytest
import yaml

from mlctl.base.paths import CHART, VALUES
from mlctl.release.release import merge
from tests.helpers.helm import production, render, run
from tests.helpers.manifests import Manifests

NO_NULL = {"pipelines": {"inference": {"retrainOnDrift": 0.25}}}
"""Helm 3 takes what is null out of the values of a dependency; it means the same."""


@pytest.mark.parametrize("major", [3, 4])
def test_a_dependency_makes_the_same_objects(tmp_path, major):
    # What it does not name as a dependency Helm takes with all parts of the official chart.
    named = {"name": CHART.name, "version": ">=0", "repository": ""}
    umbrella = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [named]}
    (tmp_path / "Chart.yaml").write_text(json.dumps(umbrella))
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / CHART.name).symlink_to(CHART)
    values = yaml.safe_load((VALUES / "production.yaml").read_text())
    file = tmp_path / "my.json"
    file.write_text(json.dumps({CHART.name: merge(merge(values, production()), NO_NULL)}))
    words = ["--namespace", "ml-pipelines", "--values", file]
    found = Manifests(run("template", "ml-pipelines", tmp_path, *words, major=major)).objects
    wanted = render(NO_NULL, environment="production", major=major).objects
    assert {str(one) for one in found} == {str(one) for one in wanted}
