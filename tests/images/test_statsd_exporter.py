"""Every query of the dashboard and every alert, asked of a real Prometheus.

It scrapes the image's exporter, which is fed what Airflow sends.
"""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from mlctl.base.packages import ensure_packages
from mlctl.base.waiting import until
from tests.helpers.metrics import dashboard, mappings, metered, panels, rules, scraping
from tests.helpers.ports import free_port
from tests.helpers.prometheus import BUSY_SECONDS, Prometheus, read
from tests.helpers.statsd import TASKS, lines
from tools.in_image.container import Image

# What is true of those lines.
FIRING = {
    "AirflowRunFailed",
    "AirflowTasksLost",
    "MlPipelinesDrift",
    "MlPipelinesModelOld",
}


@contextmanager
def running(*words: str | Path, log: Path) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen([str(w) for w in words], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def send(port: int, lines: list[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for line in lines:
            client.sendto(line.encode(), ("127.0.0.1", port))


@pytest.fixture(scope="module")
def manifests():
    return metered()


@pytest.fixture(scope="module", params=[2, 3])
def prometheus(
    request, manifests, images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped what an Airflow of a version has told."""
    ensure_packages("tests of metrics", ["prometheus"])
    at = tmp_path_factory.mktemp("prometheus")
    (at / "mappings.yml").write_text(mappings(manifests))
    (at / "rules.yml").write_text(yaml.safe_dump(rules(manifests)))
    udp, scraped, page = free_port(socket.SOCK_DGRAM), free_port(), free_port()
    # A failed run is noticed by its counter, which was not there a quarter of an hour ago.
    config = {
        "global": {"evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": scraping(f"127.0.0.1:{scraped}", "1s"),
    }
    (at / "prometheus.yml").write_text(yaml.safe_dump(config))
    exporter = [
        images["statsd-exporter"].file("/statsd-exporter"),
        f"--statsd.mapping-config={at / 'mappings.yml'}",
        f"--statsd.listen-udp=127.0.0.1:{udp}",
        "--statsd.listen-tcp=",
        f"--web.listen-address=127.0.0.1:{scraped}",
    ]
    server = [
        "prometheus",
        f"--config.file={at / 'prometheus.yml'}",
        f"--storage.tsdb.path={at / 'data'}",
        f"--web.listen-address=127.0.0.1:{page}",
    ]
    with running(*exporter, log=at / "exporter"), running(*server, log=at / "server"):
        metrics = f"http://127.0.0.1:{scraped}/metrics"
        until(BUSY_SECONDS, lambda: read(metrics), "the exporter does not answer")
        found = Prometheus(f"http://127.0.0.1:{page}")
        until(BUSY_SECONDS, lambda: read(f"{found.url}/-/ready"), "Prometheus does not answer")
        said = lines(request.param)

        def told() -> bool:
            # Twice and more: a rate needs two values.
            send(udp, said)
            rate = found.query("rate(airflow_scheduler_heartbeat[5m]) > 0")
            return bool(rate) and len(found.query("ml_pipelines_result")) == 6

        until(BUSY_SECONDS, told, lambda: read(metrics)[-3000:], poll=1)
        yield found


def test_every_query_of_the_dashboard_has_an_answer(manifests, prometheus: Prometheus):
    shown = panels(dashboard(manifests.one("ConfigMap", "ml-pipelines-dashboard")))
    assert prometheus.without_answer(shown) == []


def test_ids_are_labels_and_nothing_is_said_twice(prometheus: Prometheus):
    done = {
        tuple(one["metric"][key] for key in ("dag_id", "task_id", "state"))
        for one in prometheus.query("airflow_ti_finish")
    }
    assert done == {task[:3] for task in TASKS}
    named = prometheus.query('count by (__name__) ({__name__=~"airflow_.*"})')
    names = {one["metric"]["__name__"] for one in named}
    assert not {name for name in names if "_dag" in name.replace("_dag_processing", "")} - {
        "airflow_dagbag_size",
        "airflow_dagrun_duration",
        "airflow_dagrun_duration_count",
        "airflow_dagrun_duration_sum",
    }
    (run,) = prometheus.query('airflow_dagrun_duration_sum{dag_id="churn.v1"}')
    assert run["metric"]["state"] == "failed"
    # Seconds.
    (mean,) = prometheus.query("airflow_task_duration_sum / airflow_task_duration_count == 60")
    assert mean["metric"]["task_id"] == "train_model"


def test_what_is_wrong_fires_and_nothing_else(prometheus: Prometheus):
    until(BUSY_SECONDS, lambda: prometheus.firing() >= FIRING, "not all alerts fire", poll=1)
    assert prometheus.firing() == FIRING


def test_the_exporter_is_one_static_program(images: dict[str, Image]):
    (layer,) = images["statsd-exporter"].layers
    assert [path.name for path in layer.iterdir()] == ["statsd-exporter"]
