"""The settings file that the chart writes is the one that the DAGs read."""

import pytest
import yaml

from ml_pipelines import settings as reader
from mlctl.base.paths import CHART
from tests.helpers.helm import ENVIRONMENTS, render, rendered

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
WANDB = {
    "wandb": {
        "enabled": True,
        "existingSecret": "my-key",
        "secretKey": "k",
        "project": "p",
        "baseUrl": "https://wandb.example.com",
    },
    "pipelines": {"modelName": "my-model"},
    "mlflow": {"enabled": False},
}


def test_settings_are_the_values():
    assert rendered("local").settings() == {
        "namespace": "ml-pipelines",
        "image": {
            "reference": "ghcr.io/kyryl-opens-ml/classic-example:main",
            "pullPolicy": "IfNotPresent",
            "pullSecrets": [],
        },
        "storage": {"claimName": "training-storage"},
        "serviceAccountName": "ml-pipelines-task",
        "registry": {
            "type": "mlflow",
            "modelName": "airflow-pipeline",
            "mlflow": {
                "trackingUri": "http://ml-pipelines-mlflow:5000",
                "experiment": "ml-pipelines",
            },
            "wandb": {
                "project": "",
                "entity": "",
                "baseUrl": "",
                "secretName": "ml-pipelines-wandb",
                "secretKey": "api-key",
            },
        },
        "schedule": {"training_dag": None, "inference_dag": "0 9 * * *"},
        "inferenceOnNewModel": False,
        "defaults": DEFAULTS["pipelines"]["defaults"],
        "tasks": DEFAULTS["pipelines"]["tasks"],
    }


def test_without_a_chart_the_defaults_are_the_same():
    pipelines = DEFAULTS["pipelines"]
    assert pipelines["defaults"] == reader.DEFAULTS
    assert {name: own for name, own in pipelines["tasks"].items() if own} == reader.TASK_DEFAULTS


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_dags_accept_each_environment(environment):
    found = reader.parse_settings(rendered(environment).settings(), environment, {})
    assert found.registry.type == ("mlflow" if environment == "local" else "wandb")
    assert found.task("train_model").resources["limits"]["memory"] == "4Gi"
    assert found.task("load_data").resources["requests"] == {"cpu": "50m", "memory": "256Mi"}


def test_wandb_is_the_registry_when_enabled():
    found = render(WANDB).settings()
    assert (found["registry"]["type"], found["registry"]["modelName"]) == ("wandb", "my-model")
    assert found["registry"]["wandb"] == {
        "project": "p",
        "entity": "",
        "baseUrl": "https://wandb.example.com",
        "secretName": "my-key",
        "secretKey": "k",
    }
    assert reader.parse_settings(found, "wandb", {}).registry.wandb.secret_name == "my-key"


def test_mlflow_elsewhere():
    values = {"mlflow": {"enabled": False, "trackingUri": "https://mlflow.example.com"}}
    registry = render(values).settings()["registry"]
    assert registry["type"] == "mlflow"
    assert registry["mlflow"]["trackingUri"] == "https://mlflow.example.com"


@pytest.mark.parametrize("wanted", [True, False])
def test_inference_on_new_models_is_a_switch(wanted):
    found = render({"pipelines": {"inferenceOnNewModel": wanted}}).settings()
    assert reader.parse_settings(found, "test", {}).inference_on_new_model is wanted


TASK = {
    "resources": {
        "requests": {"cpu": 0.5},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": 1, "hugepages-2Mi": "512Mi"},
    },
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "runtimeClassName": "nvidia",
    "image": "registry.example.com/classic-example-gpu@sha256:abc",
    "retries": 0,
    "env": {
        "PLAIN": "text",
        "TOKEN": {"valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        "MODE": {"valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": True}}},
        "NODE": {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        "CPUS": {"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    },
    "envFrom": [
        {"secretRef": {"name": "hub"}, "prefix": "HUB_"},
        {"configMapRef": {"name": "more", "optional": True}},
    ],
}


def test_one_task_can_differ():
    found = render({"pipelines": {"tasks": {"train_model": TASK}}}).settings()
    train = reader.parse_settings(found, "test", {}).task("train_model")
    assert train.resources["requests"]["cpu"] == "0.5"
    assert train.resources["limits"] == {
        "memory": "16Gi",
        "nvidia.com/gpu": "1",
        "hugepages-2Mi": "512Mi",
    }
    assert (train.node_selector, train.retries) == ({"pool": "gpu"}, 0)
    assert (train.tolerations, train.runtime_class_name) == (TASK["tolerations"], "nvidia")
    assert train.image == "registry.example.com/classic-example-gpu@sha256:abc"
    assert (train.env, train.env_from) == (TASK["env"], TASK["envFrom"])


def test_the_example_in_the_values_is_one():
    """Whoever takes the comment marks away gets what it says."""
    text = (CHART / "values.yaml").read_text()
    start = text.index("  #   train_model:\n")
    example = text[start : text.index("  tasks:\n", start)].replace("  #   ", "")
    found = render({"pipelines": {"tasks": yaml.safe_load(example)}}).settings()
    train = reader.parse_settings(found, "test", {}).task("train_model")
    assert train.resources["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    assert (train.node_selector, train.execution_timeout_seconds) == ({"pool": "gpu"}, 14400)


@pytest.mark.parametrize("release", ["ml-pipelines", "team-a"])
def test_settings_are_mounted_where_the_dags_look(release):
    manifests = render(environment="local", release=release)
    prefix = release if release == "ml-pipelines" else f"{release}-ml-pipelines"
    assert manifests.settings(prefix)["serviceAccountName"] == f"{prefix}-task"
    scheduler = manifests.one("Deployment", f"{release}-scheduler")["spec"]["template"]
    for pod, name in ((scheduler, "scheduler"), (manifests.worker(), "base")):
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "ml-pipelines-settings"]
        assert volume["configMap"]["name"] == f"{prefix}-settings"
        (container,) = [c for c in pod["spec"]["containers"] if c["name"] == name]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "ml-pipelines-settings"]
        # A whole directory: the kubelet never updates a file mounted by subPath.
        assert f"{mount['mountPath']}/settings.json" == reader.DEFAULT_PATH
        assert "subPath" not in mount
