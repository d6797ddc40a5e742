"""What the chart gives to Prometheus and Grafana, and the queries in it."""

import json
from typing import Any

import yaml

from mlctl.base.paths import VALUES
from tests.helpers.helm import render
from tests.helpers.manifests import Manifests

JOB = {"namespace": "ml-pipelines", "job": "ml-pipelines-statsd"}
"""Labels of all that is scraped of the release: its namespace and the exporter's Service."""


def metered(*values: dict[str, Any], environment: str | None = None) -> Manifests:
    """Return the render with values/parts/metrics.yaml on top."""
    part = yaml.safe_load((VALUES / "parts" / "metrics.yaml").read_text())
    return render(part, *values, environment=environment)


def mappings(manifests: Manifests) -> str:
    """Return the file that says how the exporter takes names apart."""
    return manifests.one("ConfigMap", "ml-pipelines-statsd")["data"]["mappings.yml"]


def rules(manifests: Manifests) -> dict[str, Any]:
    """Return the alerts as a file of rules for Prometheus."""
    return manifests.one("PrometheusRule", "ml-pipelines")["spec"]


def panels(manifests: Manifests) -> dict[str, list[str]]:
    """Return the queries of each panel of the dashboard, by its title."""
    data = manifests.one("ConfigMap", "ml-pipelines-dashboard")["data"]
    found = json.loads(data["ml-pipelines.json"])["panels"]
    return {one["title"]: [target["expr"] for target in one["targets"]] for one in found}
