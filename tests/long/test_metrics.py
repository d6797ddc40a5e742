"""What a release on a cluster tells of runs that succeed, by a Prometheus that scrapes it.

`make test-long` runs it, on a cluster of its own that it deletes at the end.
"""

from pathlib import Path

import pytest
import yaml

from mlctl.base.names import RELEASE
from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.clients.forward import Forward
from mlctl.commands.bring_up import bring_up
from mlctl.commands.models import promote
from mlctl.commands.runs import infer, train
from mlctl.stack import Stack
from tests.helpers.metrics import metered, panels
from tests.helpers.prometheus import BUSY_SECONDS, prometheus

SCRAPED = 9102


@pytest.mark.timeout(5400)
def test_the_dashboard_has_figures_of_real_runs(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text(yaml.safe_dump({"airflow": {"statsd": {"enabled": True}}}))
    monkeypatch.setenv("VALUES", str(mine))
    bring_up(stack, Phases())
    manifests = metered()
    with (
        Forward(stack.kube, f"{RELEASE}-statsd", SCRAPED) as exporter,
        prometheus(tmp_path, exporter.local_port, manifests) as figures,
    ):
        assert train(stack, 1, {"max_steps": 20}) == 0
        promote(stack, "1", "whatever its gate says")
        assert infer(stack, 1, {}) == 0

        def empty() -> list[str]:
            queries = [query for queries in panels(manifests).values() for query in queries]
            return [query for query in queries if not figures.query(query)]

        # Scraped each second.
        until(BUSY_SECONDS, lambda: not empty(), lambda: f"without an answer: {empty()}")
        runs = figures.query('airflow_dagrun_duration_count{state="success"}')
        assert {one["metric"]["dag_id"]: one["value"][1] for one in runs} == {
            "training_dag": "1",
            "inference_dag": "1",
        }
        (accuracy,) = figures.query('ml_pipelines_result{task_id="train_model",figure="accuracy"}')
        assert 0.4 < float(accuracy["value"][1]) < 1
        assert figures.firing() == set()
