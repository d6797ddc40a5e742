"""What the release is told so that a fault of the cluster costs little."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from urllib3.exceptions import ProtocolError
from urllib3.util import Retry

from mlctl.base.paths import CHART
from tests.helpers.helm import airflow_config, render, rendered

LOCAL_SETTINGS = re.search(
    r'define "ml-pipelines.airflowLocalSettings" -}}\n(.*)\n{{- end }}',
    (CHART / "templates" / "airflow" / "_local_settings.tpl").read_text(),
    re.DOTALL,
)[1]
WITH_TEMPLATE = [
    "Deployment/ml-pipelines-scheduler/scheduler",
    "Deployment/ml-pipelines-webserver/webserver",
    "Pod/worker/base",
]


def local_settings(manifests):
    return manifests.one("ConfigMap", "ml-pipelines-config")["data"]["airflow_local_settings.py"]


def test_airflow_gets_the_local_settings():
    # tests/dags runs them.
    assert local_settings(rendered("local")).strip() == LOCAL_SETTINGS.strip()


def test_local_settings_of_ones_own_go_below():
    """As the comment in values.yaml shows it."""
    text = (CHART / "values.yaml").read_text()
    example = text[text.index("  #   airflowLocalSettings: |") :].split("\n\n")[0]
    lines = [line.removeprefix("  #   ") for line in example.splitlines() if line[2:3] == "#"]
    found = local_settings(render({"airflow": yaml.safe_load("\n".join(lines))}))
    assert found.startswith(LOCAL_SETTINGS)
    assert "def pod_mutation_hook(pod):" in found
    compile(found, "airflow_local_settings.py", "exec")


def test_waiting_costs_a_worker_no_try():
    config = airflow_config("kubernetes_executor")
    # For a quota without a limit; for an image, or a Secret, that comes a little later.
    assert config["task_publish_max_retries"] == "-1"
    assert config["worker_pod_pending_fatal_container_state_reasons"] == "InvalidImageName"


def test_a_database_that_is_away_ends_no_task():
    config = airflow_config("scheduler")
    # 0, the default, would be the scheduler's patience with workers.
    assert int(config["local_task_job_heartbeat_sec"]) >= 600
    assert int(config["scheduler_zombie_task_threshold"]) == 90


@pytest.mark.parametrize("where", WITH_TEMPLATE)
def test_the_workers_template_is_where_airflow_looks_for_it(where):
    # Each task reads it once more, in its worker, to store what pod it is in.
    (container,) = (c for c in rendered("local").containers() if c.where == where)
    path = airflow_config("kubernetes_executor")["pod_template_file"]
    (mount,) = (m for m in container.spec["volumeMounts"] if m["mountPath"] == path)
    (volume,) = (v for v in container.pod["volumes"] if v["name"] == mount["name"])
    found = rendered("local").one("ConfigMap", volume["configMap"]["name"])
    assert yaml.safe_load(found["data"][mount["subPath"]])["kind"] == "Pod"


def test_the_scheduler_is_patient_with_the_api_server():
    text = airflow_config("kubernetes_executor")["api_client_retry_configuration"]
    retry = Retry(**json.loads(text))
    # As the client asks after each answer: a refused creation of a pod is repeated as well.
    assert all(retry.is_retry("POST", status) for status in (429, 500, 503))
    assert not retry.is_retry("POST", 403)
    assert not retry.raise_on_status
    waits = 0.0
    while not retry.is_exhausted():
        retry = retry.increment("POST", "/api/v1/pods", error=ProtocolError("refused"))
        waits += retry.get_backoff_time()
        if retry.total == 0:
            break
    assert 30 < waits < 90


PROBED = """
import datetime, os
class exc:
    class OperationalError(Exception): pass
class Connection:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def execute(self, query, values):
        assert values == {"host": os.uname().nodename + "%"}
        return self
    def connect(self):
        if os.environ["AGE"] == "away":
            raise exc.OperationalError
        return self
    def scalar(self):
        age = os.environ["AGE"]
        now = datetime.datetime.now(datetime.timezone.utc)
        return now - datetime.timedelta(seconds=int(age)) if age else None
def text(query): return query
def create_engine(url):
    assert url == "postgresql://database"
    return Connection()
"""


@pytest.mark.parametrize(
    ("age", "alive"), [("1", True), ("110", True), ("130", False), ("", False), ("away", True)]
)
def test_the_triggerer_lives_while_it_says_so(tmp_path, age, alive):
    """With a stand-in for SQLAlchemy: only Airflow's image has it."""
    (tmp_path / "sqlalchemy.py").write_text(PROBED)
    (container,) = (
        c for c in rendered("local").containers() if c.where.endswith("-triggerer/triggerer")
    )
    program, *words = container.spec["livenessProbe"]["exec"]["command"]
    assert program == "python"
    environment = {
        "PYTHONPATH": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://database",
        "AGE": age,
    }
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) is alive, done.stderr
    # A probe that breaks is no answer.
    assert done.stderr == ""
