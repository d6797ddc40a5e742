"""What the release is told so that a fault of the cluster costs little."""

import configparser
import json
import subprocess
import sys

from urllib3.exceptions import ProtocolError
from urllib3.util import Retry

from tests.helpers.helm import rendered

FORK = """
import os, sys, types

calls = []
engine = types.SimpleNamespace(dispose=lambda close: calls.append(close))
airflow = types.ModuleType("airflow")
airflow.settings = types.SimpleNamespace(engine=engine)
sys.modules["airflow"] = airflow
exec(sys.stdin.read(), {})
if os.fork() == 0:
    # Closed by the child, the connections would be gone for the parent.
    os._exit(0 if calls == [False] else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) or len(calls))
"""


def test_forked_processes_forget_the_connections_to_the_database():
    config = rendered("local").one("ConfigMap", "ml-pipelines-config")["data"]
    source = config["airflow_local_settings.py"]
    result = subprocess.run([sys.executable, "-c", FORK], input=source, text=True)
    assert result.returncode == 0


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
