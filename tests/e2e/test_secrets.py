"""No key and no password lands anywhere but in its Secret, after runs that went well and badly."""

import base64
import gzip
import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from mlctl.base.names import NAMESPACE, RELEASE
from mlctl.clients.airflow import Airflow
from mlctl.clients.kube import Kube
from mlctl.clients.mlflow import Mlflow
from mlctl.stack import Stack
from tests.helpers.secret_search import (
    HELM_RECORD,
    PodRecorder,
    Secret,
    everywhere,
    in_scheduler,
    repository,
    search,
    secrets_of,
)

FAILING_SECONDS = 600
WANDB_SECRET = "wandb-of-a-test"


@pytest.fixture
def wandb_run(stack: Stack, with_values, run_dag) -> Iterator:
    """A run with Weights & Biases and a key of its own; it fails, nobody is at the address."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": WANDB_SECRET},
        "stringData": {"api-key": secrets.token_hex(20)},
    }
    stack.kube.apply(manifest)
    try:
        with with_values(
            "wandb.enabled=true",
            f"wandb.existingSecret={WANDB_SECRET}",
            "wandb.baseUrl=http://127.0.0.1:9",
            "pipelines.tasks.load_model.retries=0",
        ):
            yield run_dag("inference_dag", FAILING_SECONDS)
    finally:
        stack.kube.run("delete", "secret", WANDB_SECRET)


def test_no_secret_is_anywhere_else(
    training_run,
    inference_run,
    wandb_run,
    stack: Stack,
    airflow: Airflow,
    pods_seen: PodRecorder,
) -> None:
    assert wandb_run.tasks["load_model"].state == "failed"
    assert "W&B at http://127.0.0.1:9 cannot be reached" in wandb_run.logs["load_model"]

    looked_for = secrets_of(stack.kube)
    assert {secret.name for secret in looked_for} == {
        f"{RELEASE}-admin/password",
        f"{RELEASE}-fernet-key/fernet-key",
        f"{RELEASE}-metadata/connection",
        f"{RELEASE}-metadata/password",
        f"{RELEASE}-webserver-secret-key/webserver-secret-key",
        f"{WANDB_SECRET}/api-key",
    }
    runs = [(run.dag_id, run.run_id) for run in (training_run, inference_run, wandb_run)]
    places = list(everywhere(stack, airflow, pods_seen, runs))
    assert search(places, looked_for) == set()

    # The pods were there to be seen, and the one that had the key among them.
    seen = {pod["metadata"].get("labels", {}).get("task_id") for pod in pods_seen.pods()}
    assert set(training_run.tasks) | set(inference_run.tasks) <= seen
    with_key = [name for name, content in places if WANDB_SECRET.encode() in content]
    assert any(name.startswith("pod load-model-") for name in with_key)


def test_a_planted_secret_is_found_in_each_kind_of_place(
    inference_run,
    stack: Stack,
    airflow: Airflow,
    mlflow: Mlflow,
    pods_seen: PodRecorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = Secret("planted", f"pl+nted/{secrets.token_hex(16)}=")
    with ExitStack() as undo:
        plant(secret, inference_run.run_id, stack, airflow, mlflow, undo)
        # Printed with the addresses of the pages.
        monkeypatch.setattr("mlctl.commands.telling.PASSWORD_COMMAND", secret.value)
        runs = [("inference_dag", inference_run.run_id)]
        found = search(everywhere(stack, airflow, pods_seen, runs), [secret])
    found |= search(repository(checkout(tmp_path, secret)), [secret])

    places = {one.replace(": planted, ", ": ") for one in found}
    expected = {
        "config map planted: base64",
        "event planted: URL-encoded",
        "secret planted-copy: base64",
        "pod planted: plain",
        "log of planted/planted: plain",
        "task logs: plain",
        "Helm record sh.helm.release.v1.planted.v1: plain",
        "table dag_run_note: plain",
        "table xcom: plain",
        "table serialized_dag: plain",
        "table rendered_task_instance_fields: plain",
        "database of MLflow: plain",
        "API variables: plain",
        "page xcom of load_data: plain",
        "output of commands: plain",
        "file tracked.txt: plain",
        "file build/run.json: plain",
    }
    assert expected - places == set()


def checkout(directory: Path, secret: Secret) -> Path:
    """Return a repository with the secret in a tracked file and in what a command has written."""
    subprocess.run(["git", "init", "--quiet", str(directory)], check=True)
    (directory / "tracked.txt").write_text(secret.value)
    subprocess.run(["git", "-C", str(directory), "add", "tracked.txt"], check=True)
    (directory / "build").mkdir()
    (directory / "build" / "run.json").write_text(json.dumps({"key": secret.value}))
    return directory


def plant(
    secret: Secret, run_id: str, stack: Stack, airflow: Airflow, mlflow: Mlflow, undo: ExitStack
) -> None:
    """Put the secret into each kind of place, in one form or another; ``undo`` takes it away."""
    kube, value = stack.kube, secret.value
    encoded = base64.b64encode(f"api:{value}".encode()).decode()
    reference = {"kind": "Pod", "namespace": NAMESPACE, "name": "planted"}
    record = gzip.compress(json.dumps({"config": {"key": value}, "manifest": ""}).encode())
    objects = [
        {"kind": "ConfigMap", "data": {"header": f"Basic {encoded}"}},
        {
            "kind": "Event",
            "involvedObject": reference,
            "message": f"postgresql://airflow:{quote(value, safe='')}@postgres",
            "type": "Normal",
        },
        {
            "kind": "Secret",
            "metadata": {"name": "planted-copy"},
            "data": {"copy": base64.b64encode(value.encode()).decode()},
        },
        {
            "kind": "Secret",
            "metadata": {"name": "sh.helm.release.v1.planted.v1"},
            "type": HELM_RECORD,
            "stringData": {"release": base64.b64encode(record).decode()},
        },
        planted_pod(stack, value),
    ]
    for one in objects:
        manifest = {"apiVersion": "v1", "metadata": {"name": "planted"}} | one
        kube.apply(manifest)
        undo.callback(
            kube.run, "delete", manifest["kind"], manifest["metadata"]["name"], "--ignore-not-found"
        )
    kube.run("wait", "pod/planted", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")

    airflow.request("POST", "variables", json={"key": "planted", "value": value})
    undo.callback(airflow.request, "DELETE", "variables/planted")
    note = f"dags/inference_dag/dagRuns/{quote(run_id, safe='')}/setNote"
    airflow.request("PATCH", note, json={"note": value})
    undo.callback(airflow.request, "PATCH", note, json={"note": ""})

    log = "/opt/airflow/logs/planted.log"
    in_scheduler(kube, "sh", "-c", 'printf "%s" "$1" > "$2"', "-", value, log)
    undo.callback(in_scheduler, kube, "rm", log)

    # XCom and serialized DAG are what Airflow writes; rendered fields belong to a run that is over.
    sql(
        kube,
        "INSERT INTO xcom (dag_run_id, task_id, map_index, key, dag_id, run_id, value, timestamp) "
        "SELECT id, 'load_data', -1, 'planted', dag_id, run_id, "
        f"convert_to('\"{value}\"', 'UTF8'), now() FROM dag_run WHERE run_id = '{run_id}'",
    )
    undo.callback(sql, kube, "DELETE FROM xcom WHERE key = 'planted'")
    sql(
        kube,
        "INSERT INTO serialized_dag (dag_id, fileloc, fileloc_hash, data, last_updated, dag_hash) "
        f"SELECT 'planted', fileloc, fileloc_hash, '\"{value}\"', now(), '' "
        "FROM serialized_dag WHERE dag_id = 'inference_dag'",
    )
    undo.callback(sql, kube, "DELETE FROM serialized_dag WHERE dag_id = 'planted'")
    where = f"WHERE run_id = '{run_id}' AND task_id = 'clean_up'"
    sql(
        kube,
        "UPDATE rendered_task_instance_fields SET rendered_fields = "
        f"jsonb_set(rendered_fields::jsonb, '{{planted}}', '\"{value}\"')::json {where}",
    )
    undo.callback(
        sql,
        kube,
        "UPDATE rendered_task_instance_fields SET rendered_fields = "
        f"(rendered_fields::jsonb - 'planted')::json {where}",
    )

    url = f"{mlflow.connection.url}/api/2.0/mlflow/registered-models"
    tag = {"name": stack.settings["registry"]["modelName"], "key": "planted"}
    requests.post(f"{url}/set-tag", json=tag | {"value": value}, timeout=60).raise_for_status()
    undo.callback(requests.delete, f"{url}/delete-tag", json=tag, timeout=60)


def planted_pod(stack: Stack, value: str) -> dict:
    container = {
        "name": "planted",
        "image": stack.settings["image"]["reference"],
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", 'echo "the key is $KEY"'],
        "env": [{"name": "KEY", "value": value}],
    }
    return {"kind": "Pod", "spec": {"restartPolicy": "Never", "containers": [container]}}


def sql(kube: Kube, statement: str) -> None:
    """Change one row of the metadata database."""
    psql = ["psql", "--username=airflow", "--set=ON_ERROR_STOP=1", "--command", statement]
    done = kube.run("exec", f"statefulset/{RELEASE}-postgres", "--", *psql, "airflow").stdout
    assert re.fullmatch(r"(INSERT 0|UPDATE|DELETE) 1", done.strip()), done
