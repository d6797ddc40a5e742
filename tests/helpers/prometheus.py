"""Debian's Prometheus, which scrapes an exporter on this machine."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from mlctl.base.packages import ensure_packages
from mlctl.base.waiting import until
from tests.helpers.manifests import Manifests
from tests.helpers.metrics import JOB, rules

BUSY_SECONDS = 120


class Prometheus:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return the result of a query. Raises HTTPError for one that is wrong."""
        with urlopen(f"{self.url}/api/v1/query?{urlencode({'query': text})}") as answer:
            return json.load(answer)["data"]["result"]

    def firing(self) -> set[str]:
        found = json.loads(read(f"{self.url}/api/v1/alerts"))["data"]["alerts"]
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}


@contextmanager
def prometheus(directory: Path, scraped: int, manifests: Manifests) -> Iterator[Prometheus]:
    """Run one with the alerts of a render, in an empty directory; it scrapes a port."""
    ensure_packages("tests of metrics", ["prometheus"])
    page = free_port(socket.SOCK_STREAM)
    (directory / "rules.yml").write_text(yaml.safe_dump(rules(manifests)))
    target = {"targets": [f"127.0.0.1:{scraped}"], "labels": JOB}
    scrape = {"job_name": "x", "static_configs": [target], "scrape_interval": "1s"}
    # A failed run is noticed by its counter, which was not there a quarter of an hour ago.
    config = {
        "global": {"evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [scrape],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    server = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{page}",
    ]
    with running(*server, log=directory / "server"):
        found = Prometheus(page)
        until(BUSY_SECONDS, lambda: read(f"{found.url}/-/ready"), "Prometheus does not answer")
        yield found


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(*words: str | Path, log: Path) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen([str(w) for w in words], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def read(url: str) -> str:
    """Return what a server answers, '' while it does not."""
    try:
        with urlopen(url, timeout=BUSY_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return ""
