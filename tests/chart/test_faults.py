"""What the release is told so that a fault of the cluster costs little."""

import json

import pytest
import yaml
from urllib3.exceptions import ProtocolError
from urllib3.util import Retry

from mlctl.base.paths import CHART
from tests.helpers.helm import airflow_config, rendered

WITH_TEMPLATE = [
    "Deployment/ml-pipelines-scheduler/scheduler",
    "Deployment/ml-pipelines-webserver/webserver",
    "Pod/worker/base",
]


def test_airflow_gets_the_local_settings_of_the_values():
    # tests/dags runs them.
    config = rendered("local").one("ConfigMap", "ml-pipelines-config")["data"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert (
        config["airflow_local_settings.py"].strip()
        == values["airflow"]["airflowLocalSettings"].strip()
    )


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
