"""Every image can be replaced by values, and shared clusters run none that moves."""

import json
import re

import pytest

from mlctl.release.images import behind, in_render
from tests.helpers.helm import ENVIRONMENTS, OPTIONAL_PARTS, OWN_DATABASE_SECRET, render, rendered

DIGEST = "sha256:" + "a" * 64
OTHERS = {
    "images": {
        "classicExample": {"repository": "mirror.test/classic-example", "tag": "1"},
        "mlflow": {"repository": "mirror.test/mlflow", "digest": DIGEST},
        "postgres": {"repository": "mirror.test/postgres", "tag": "1"},
    },
    "airflow": {
        "defaultAirflowRepository": "mirror.test/airflow",
        "defaultAirflowTag": f"2.9.3@{DIGEST}",
        "images": {"gitSync": {"repository": "mirror.test/git-sync", "tag": "1"}},
    },
}


def images(manifests):
    return {c.spec["image"] for c in manifests.containers()}


def task_image(manifests):
    (container,) = manifests.settings()["pod"]["spec"]["containers"]
    return container["image"]


def sidecar_image(manifests):
    data = manifests.one("ConfigMap", "ml-pipelines-environment")["data"]
    connection = json.loads(data["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
    assert connection["conn_type"] == "kubernetes"
    # The triggerer's client does not look for it.
    assert connection["extra"]["in_cluster"] is True
    return connection["extra"]["xcom_sidecar_container_image"]


def test_overrides_reach_every_container_and_the_tasks():
    manifests = render(OTHERS, environment="local")
    assert images(manifests) == {
        f"mirror.test/airflow:2.9.3@{DIGEST}",
        "mirror.test/git-sync:1",
        f"mirror.test/mlflow@{DIGEST}",
        "mirror.test/postgres:1",
        "mirror.test/classic-example:1",
    }
    assert task_image(manifests) == "mirror.test/classic-example:1"
    assert sidecar_image(manifests) == "mirror.test/classic-example:1"


def test_the_sidecar_for_xcoms_may_have_an_image_of_its_own():
    own = {"xcomSidecar": {"repository": "mirror.test/alpine", "tag": "3"}}
    manifests = render(OTHERS, {"images": own}, environment="local")
    assert sidecar_image(manifests) == "mirror.test/alpine:3"
    # Every Airflow container of the release has the connection: workers and triggerer use it.
    lacking = [
        c.where
        for c in manifests.containers()
        if c.spec["image"].startswith("mirror.test/airflow")
        and c.spec["name"] not in ("scheduler-log-groomer", "test", "check-volume")
        and {"configMapRef": {"name": "ml-pipelines-environment"}} not in c.spec["envFrom"]
    ]
    assert lacking == []


def test_mlflow_without_an_image_runs_the_pipelines_image():
    values = {**OTHERS, "images": {**OTHERS["images"], "mlflow": {"repository": ""}}}
    assert "mirror.test/classic-example:1" in images(render(values, environment="local"))


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_shared_clusters_run_no_tag_that_moves(environment):
    manifests = rendered(environment)
    used = images(manifests) | {task_image(manifests), sidecar_image(manifests)}
    fixed = re.compile(r"(@sha256:[0-9a-f]{64}|:v?\d+\.\d+\.\d+)$")
    assert {image for image in used if not fixed.search(image)} == set()
    assert "@" in task_image(manifests)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_image_is_pulled_again_and_again(environment):
    containers = rendered(environment).containers()
    assert {c.spec["imagePullPolicy"] for c in containers} == {"IfNotPresent"}
    assert [c.where for c in containers if c.spec["image"].endswith(":latest")] == []


# The parts of the official chart that have images of their own, and images of single tasks.
EVERY_PART = {
    "images": {"xcomSidecar": {"repository": "alpine", "tag": "3"}},
    "pipelines": {"tasks": {"train_model": {"image": "quay.io/team/train:1"}}},
    "airflow": {
        **OPTIONAL_PARTS,
        "dags": {"persistence": {"enabled": False}},
        "redis": {"enabled": True},
        "flower": {"enabled": True},
    },
}


def every_part(environment, *values):
    own = OWN_DATABASE_SECRET if environment == "local" else {}
    return render(EVERY_PART, own, *values, environment=environment)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_list_of_images_is_what_a_render_holds(environment):
    for manifests in (rendered(environment), every_part(environment)):
        (of_a_task,) = manifests.settings()["tasks"]["train_model"]["pod"]["spec"]["containers"]
        found = {image for image in (of_a_task.get("image"),) if image}
        found |= images(manifests) | {task_image(manifests), sidecar_image(manifests)}
        assert in_render(manifests.text) == found


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_one_registry_stands_for_all(environment):
    own = in_render(every_part(environment).text)
    values = {"global": {"imageRegistry": "mirror.test:5000/ml"}}
    mirrored = in_render(every_part(environment, values).text)
    assert mirrored == {behind("mirror.test:5000/ml/", image) for image in own}
    assert {"mirror.test:5000/ml/alpine:3", "mirror.test:5000/ml/team/train:1"} <= mirrored
    assert "mirror.test:5000/ml/git-sync/git-sync:v4.1.0" in mirrored
    assert {image.startswith("mirror.test:5000/ml/") for image in mirrored} == {True}


def test_pull_secrets_reach_every_pod():
    manifests = rendered("production")
    lacking = [
        where
        for where, pod in manifests.pods()
        if {"name": "registry"} not in pod["spec"].get("imagePullSecrets", [])
    ]
    assert lacking == []
    assert manifests.settings()["pod"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    account = manifests.one("ServiceAccount", "ml-pipelines-task")
    assert account["imagePullSecrets"] == [{"name": "registry"}]
