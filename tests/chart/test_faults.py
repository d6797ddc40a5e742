"""What the release is told so that a fault of the cluster costs little."""

import configparser
import json

import yaml
from urllib3.exceptions import ProtocolError
from urllib3.util import Retry

from mlctl.base.paths import CHART
from tests.helpers.helm import rendered


def test_airflow_gets_the_local_settings_of_the_values():
    # tests/dags runs them.
    config = rendered("local").one("ConfigMap", "ml-pipelines-config")["data"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert (
        config["airflow_local_settings.py"].strip()
        == values["airflow"]["airflowLocalSettings"].strip()
    )


def test_the_scheduler_is_patient_with_the_api_server():
    config = rendered("local").one("ConfigMap", "ml-pipelines-config")["data"]["airflow.cfg"]
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(config)
    text = parser["kubernetes_executor"]["api_client_retry_configuration"]
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
