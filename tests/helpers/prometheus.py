"""A real Prometheus, asked over its HTTP API.

Source: https://prometheus.io/docs/prometheus/2.42/querying/api/
"""

import json
import time
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

BUSY_SECONDS = 120


def read(url: str) -> str:
    """Return what a server answers, '' while it does not."""
    try:
        with urlopen(url, timeout=BUSY_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return ""


class Prometheus:
    """The server at ``url``; its methods raise HTTPError for a query that is wrong."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _get(self, path: str, **parameters: str | float) -> Any:
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=BUSY_SECONDS) as answer:
            return json.load(answer)["data"]

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return a query's series, each with its labels (``metric``) and its newest ``value``."""
        return self._get("query", query=text)["result"]

    def over(self, text: str, seconds: float, points: int = 240) -> list[dict[str, Any]]:
        """Return a query's series over the last seconds: ``values`` are pairs of time and text."""
        end = time.time()
        step = max(1, seconds / points)
        found = self._get("query_range", query=text, start=end - seconds, end=end, step=step)
        return found["result"]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        alerts = self._get("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def without_answer(self, panels: dict[str, dict[str, str]]) -> list[str]:
        """Return those queries of a dashboard's panels that bring nothing."""
        queries = [query for panel in panels.values() for query in panel.values()]
        return [query for query in queries if not self.query(query)]
