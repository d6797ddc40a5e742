"""Both pipelines with Weights & Biases as the registry, through the stand-in of tests/helpers.

The release knows the name of a Secret only. In it the key is a wrong one first: the upload fails,
the key is put right, and the task's next try succeeds. Then another key is issued, between two
runs, and inference goes on with that. Nothing is upgraded meanwhile.
"""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from mlctl.base.paths import ROOT
from mlctl.clients.airflow import Airflow, Task, container_lines
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube
from mlctl.stack import Stack
from tests.helpers.releases import SHORT_TRAINING

NAME, PORT = "wandb-stand-in", 8080
KEY_SECRET = f"{NAME}-key"
"""What the release reads; the stand-in has a Secret of its own."""
PROJECT = "end-to-end"
SECONDS = 900


def new_key() -> str:
    """Return a key as W&B makes them."""
    return secrets.token_hex(20)


@dataclass
class StandIn:
    """The stand-in in the cluster."""

    kube: Kube
    forward: Forward
    keys: list[str] = field(default_factory=list)
    """All keys that there ever were, wrong ones too."""

    def summary(self) -> dict[str, Any]:
        """Return what has arrived there."""
        self.forward.ensure()
        answer = requests.get(f"{self.forward.url}/stand-in/summary", timeout=60)
        answer.raise_for_status()
        return answer.json()

    def accept(self, key: str) -> None:
        """Let the server accept this key and no other."""
        self.keys.append(key)
        self.forward.ensure()
        requests.post(f"{self.forward.url}/stand-in/key", data=key, timeout=60).raise_for_status()

    def give(self, key: str) -> None:
        """Put a key into the Secret that the release names."""
        self.keys.append(key)
        self.kube.apply(secret(KEY_SECRET, key))


def secret(name: str, key: str) -> dict[str, Any]:
    """Return a Secret with a key."""
    metadata = {"name": name}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "stringData": {"api-key": key},
    }


def manifests(image: str, key: str) -> list[dict[str, Any]]:
    """Return the objects of the stand-in: it runs in an image that is there anyway."""
    labels = {"app.kubernetes.io/name": NAME}
    metadata = {"name": NAME, "labels": labels}
    script = (ROOT / "tests" / "helpers" / "wandb_server.py").read_text()
    identity = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    address = f"http://{NAME}:{PORT}"
    container = {
        "name": "server",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/script/wandb_server.py", "--address", address],
        "args": ["--port", str(PORT), "--key-file", "/key/api-key"],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/stand-in/health", "port": PORT},
            "periodSeconds": 2,
        },
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "script", "mountPath": "/script"},
            {"name": "key", "mountPath": "/key"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "script", "configMap": {"name": NAME}},
            {"name": "key", "secret": {"secretName": NAME}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
        ],
    }
    service = {"selector": labels, "ports": [{"port": PORT, "targetPort": PORT}]}
    data = {"wandb_server.py": script}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
        secret(NAME, key),
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]


@pytest.fixture(scope="module")
def server(stack: Stack, release, aloud) -> Iterator[StandIn]:
    """Run the stand-in in the release's namespace; the release's Secret holds a wrong key."""
    kube, key = stack.kube, new_key()
    objects = manifests(stack.settings["image"]["reference"], key)
    try:
        with aloud("start the stand-in for W&B"):
            for one in objects:
                kube.apply(one)
            kube.run("wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=90s", timeout=100)
        with Forward(kube, NAME, PORT) as forward:
            server = StandIn(kube, forward, [key])
            server.give(new_key())
            yield server
    finally:
        for kind, name in (
            *((one["kind"].lower(), NAME) for one in objects),
            ("secret", KEY_SECRET),
        ):
            kube.run("delete", kind, name, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def with_wandb(server: StandIn, with_values, settle) -> Iterator[None]:
    """The release with W&B as its registry."""
    with with_values(
        "wandb.enabled=true",
        f"wandb.existingSecret={KEY_SECRET}",
        f"wandb.baseUrl=http://{NAME}:{PORT}",
        f"wandb.project={PROJECT}",
        SHORT_TRAINING,
    ):
        # Not with the retries that a test before this one has set.
        settle()
        yield


@pytest.fixture(scope="module")
def training(with_wandb: None, server: StandIn, run_dag):
    """A training run; the right key comes after the first try of the upload."""

    def mend(task: Task) -> None:
        if (task.task_id, task.state) == ("upload_model", "up_for_retry"):
            server.give(server.keys[0])

    return run_dag("training_dag", SECONDS, mend)


@pytest.fixture(scope="module")
def inference(training, server: StandIn, run_dag):
    """An inference run, with a key that was issued after the training run."""
    assert training.state == "success", training.told()
    key = new_key()
    server.accept(key)
    server.give(key)
    return run_dag("inference_dag", SECONDS)


def test_a_wrong_key_fails_the_upload_in_plain_words(training, airflow: Airflow) -> None:
    log = airflow.log("training_dag", training.run_id, "upload_model", 1)
    errors = [line for line in container_lines(log) if "ERROR:" in line]
    assert len(errors) == 1, log
    assert f"W&B at http://{NAME}:{PORT} refuses the API key (HTTP 401)" in errors[0]
    assert "put a valid key into the Secret" in errors[0]
    assert "Traceback" not in "\n".join(container_lines(log))


def test_the_right_key_in_the_secret_is_enough_for_the_next_try(training) -> None:
    assert training.state == "success", training.told()
    assert {name: (task.state, task.try_number) for name, task in training.tasks.items()} == {
        "clean_storage_before_start": ("success", 1),
        "load_data": ("success", 1),
        "train_model": ("success", 1),
        "upload_model": ("success", 2),
        "clean_up": ("success", 1),
    }


def test_model_metrics_and_plots_arrive(training, inference, server: StandIn) -> None:
    uploaded, trained = training.results["upload_model"], training.results["train_model"]
    assert (uploaded["registry"], uploaded["version"]) == ("wandb", "v0")
    found = server.summary()
    assert found["unknown"] == []
    (artifact,) = found["artifacts"]
    assert uploaded["uri"].endswith(f"/{PROJECT}/{artifact['name']}:v0")
    assert artifact["aliases"] == ["latest"]
    assert artifact["metadata"]["run_id"] == training.run_id
    assert abs(artifact["metadata"]["metrics"]["accuracy"] - trained["accuracy"]) < 1e-5
    assert artifact["files"]["model.safetensors"] == artifact["metadata"]["model_sha256"]
    (run,) = (one for one in found["runs"] if one["job_type"] == "upload-model")
    assert run["state"] == "finished"
    assert run["config"]["dag_id"] == "training_dag"
    assert abs(run["summary"]["accuracy"] - trained["accuracy"]) < 1e-5
    assert len([name for name in run["files"] if name.endswith(".png")]) == 2


def test_a_new_key_between_two_runs_needs_no_upgrade(
    training, inference, server: StandIn, stack: Stack
) -> None:
    assert inference.state == "success", inference.told()
    assert {task.try_number for task in inference.tasks.values()} == {1}
    assert inference.results["load_model"]["version"] == "v0"
    found = server.summary()
    # The first try of the upload: one question, and no more once it was refused.
    assert found["refused"] == 1
    # The daily run of before, if this is the first use of the DAG, has loaded it as well.
    (load,) = (
        one
        for one in found["runs"]
        if one["job_type"] == "load-model" and one["config"].get("run_id") == inference.run_id
    )
    assert load["used"] == [f"{training.results['upload_model']['name']}:v0"]
    assert load["state"] == "finished"
    path = stack.run_path("inference_dag", inference.run_id)
    made = json.loads(stack.read_volume(f"{path}/pred.json"))
    assert made["model"]["version"] == "v0"
    assert made["rows"] == inference.results["load_data"]["rows"]["test"]


def test_no_key_is_in_a_log_or_in_what_the_release_holds(
    training, inference, server: StandIn, stack: Stack, airflow: Airflow
) -> None:
    texts = {
        **{f"log of {name}": text for name, text in {**training.logs, **inference.logs}.items()},
        "first try": airflow.log("training_dag", training.run_id, "upload_model", 1),
        "ConfigMaps": stack.kube.run("get", "configmaps", "--output=json").stdout,
        "pods": stack.kube.run("get", "pods", "--output=json").stdout,
        "events": stack.kube.run("get", "events", "--output=json").stdout,
        "values": json.dumps(stack.release().installed_values()),
    }
    assert len(set(server.keys)) == 3
    for where, text in texts.items():
        for key in server.keys:
            assert key not in text, where
