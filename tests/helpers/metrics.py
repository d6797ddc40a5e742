"""What the chart gives to Prometheus and Grafana, and the queries in it."""

import json
from pathlib import Path
from typing import Any

import yaml

from mlctl.base.paths import VALUES
from mlctl.builder import go
from tests.helpers.helm import render
from tests.helpers.manifests import Manifests

JOB = {"namespace": "ml-pipelines", "job": "ml-pipelines-statsd"}
"""Labels of all that is scraped of the release: its namespace and the exporter's Service."""


def operator_crd(kind: str) -> Path:
    """Return the Prometheus Operator's own definition of ``servicemonitors`` or the like."""
    where = go.module("prometheus-operator") / "example" / "prometheus-operator-crd"
    return where / f"monitoring.coreos.com_{kind}.yaml"


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


def scraping(address: str, interval: str) -> list[dict[str, Any]]:
    """Return the part of a Prometheus' configuration that scrapes an exporter as the release's."""
    target = {"targets": [address], "labels": JOB}
    return [{"job_name": "x", "static_configs": [target], "scrape_interval": interval}]


def dashboard(config_map: dict[str, Any]) -> dict[str, Any]:
    """Return the dashboard as Grafana reads it from the chart's ConfigMap."""
    return json.loads(config_map["data"]["ml-pipelines.json"])


def panels(dashboard: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return title -> legend -> query of the dashboard's panels."""
    return {
        panel["title"]: {target["legendFormat"]: target["expr"] for target in panel["targets"]}
        for panel in dashboard["panels"]
    }


def picture_text(dashboard: dict[str, Any]) -> str:
    """Return what docs/pictures/dashboard.png says of itself: the panels that it shows."""
    return "; ".join(panels(dashboard))
