"""No key and no password lands anywhere but in its Secret, after runs that went well and badly.

One search, in what all tests have left, with a planted secret in each kind of place.
"""

import base64
import gzip
import json
import re
import secrets
import subprocess
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
    Place,
    PodRecorder,
    Secret,
    everywhere,
    repository,
    search,
    secrets_of,
)
from tests.helpers.wandb_stand_in import KEY_SECRET, NAME, StandIn


@pytest.fixture(scope="module")
def looked_for(server: StandIn, inference, stack: Stack) -> list[Secret]:
    """What the Secrets hold, and the keys of W&B that they held before."""
    found = secrets_of(stack.kube)
    now = {secret.value for secret in found}
    gone = [key for key in server.keys if key not in now]
    return found + [Secret(f"W&B key {number}", key) for number, key in enumerate(gone)]


@pytest.fixture(scope="module")
def planted() -> Secret:
    return Secret("planted", f"pl+nted/{secrets.token_hex(16)}=")


@pytest.fixture(scope="module")
def places(
    looked_for,
    planted: Secret,
    training_run,
    training,
    inference,
    stack: Stack,
    client: Airflow,
    mlflow: Mlflow,
    pods_seen: PodRecorder,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Place]:
    """The whole installation, with a planted secret in each kind of place."""
    runs = [(run.dag_id, run.run_id) for run in (training_run, training, inference)]
    with ExitStack() as undo, pytest.MonkeyPatch.context() as patch:
        plant(planted, inference.run_id, stack, client, mlflow, undo)
        # Printed with the addresses of the pages.
        patch.setattr("mlctl.commands.telling.PASSWORD_COMMAND", planted.value)
        planted_files = repository(checkout(tmp_path_factory.mktemp("checkout"), planted))
        return [*everywhere(stack, client, pods_seen, runs), *planted_files]


def test_no_secret_is_anywhere_else(
    places, looked_for, training, inference, pods_seen: PodRecorder
) -> None:
    assert {secret.name for secret in looked_for} == {
        f"{RELEASE}-admin/password",
        f"{RELEASE}-fernet-key/fernet-key",
        f"{RELEASE}-metadata/connection",
        f"{RELEASE}-metadata/password",
        f"{RELEASE}-webserver-secret-key/webserver-secret-key",
        f"{KEY_SECRET}/api-key",
        f"{NAME}/api-key",
        "W&B key 0",
    }
    assert search(places, looked_for) == set()

    # The pods were there to be seen, and those that had the key among them.
    seen = {pod["metadata"].get("labels", {}).get("task_id") for pod in pods_seen.pods()}
    assert set(training.tasks) | set(inference.tasks) <= seen
    with_key = [name for name, content in places if KEY_SECRET.encode() in content]
    assert any(name.startswith("pod load-model-") for name in with_key)
    assert any(name.startswith("pod upload-model-") for name in with_key)
    assert any(name.startswith("pod train-model-") for name in with_key)


def test_a_planted_secret_is_found_in_each_kind_of_place(places, planted: Secret) -> None:
    found = {one.replace(": planted, ", ": ") for one in search(places, [planted])}
    assert found >= {
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
    stack.in_scheduler("sh", "-c", 'printf "%s" "$1" > "$2"', "-", value, log)
    undo.callback(stack.in_scheduler, "rm", log)

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
    tag = {"name": stack.settings["model"]["name"], "key": "planted"}
    requests.post(f"{url}/set-tag", json=tag | {"value": value}, timeout=60).raise_for_status()
    undo.callback(requests.delete, f"{url}/delete-tag", json=tag, timeout=60)


def planted_pod(stack: Stack, value: str) -> dict:
    container = {
        "name": "planted",
        "image": stack.image,
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
