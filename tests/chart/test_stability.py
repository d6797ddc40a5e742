"""Renders change when something changes, and pods restart only for a reason."""

from functools import cache

import pytest

from tests.helpers.helm import ENVIRONMENTS, KEPT, render, rendered


def pods(manifests):
    """The pods that run; one of a CronJob is made anew each time."""
    return {where: pod for where, pod in manifests.pods() if not where.startswith("CronJob/")}


def setup(manifests):
    (job,) = [j for j in manifests.of("Job") if "-setup-" in j["metadata"]["name"]]
    return job


@cache
def text(environment, major):
    return render(environment=environment, cluster=KEPT, major=major).text


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_same_cluster_same_bytes(environment, major):
    again = render(environment=environment, cluster=KEPT, major=major).text
    assert again == text(environment, major)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_helm_3_and_4_render_the_same(environment):
    assert text(environment, 3) == text(environment, 4)


def test_new_passwords_restart_no_pod():
    """Without a cluster each render draws its own; the pods must not notice."""
    assert pods(render(environment="local")) == pods(render(environment="local"))


@pytest.mark.parametrize(
    "values",
    [
        {"pipelines": {"tasks": {"train_model": {"retries": 5}}}},
        {"pipelines": {"dags": {"inference_dag": {"schedule": ""}}}},
        {"images": {"classicExample": {"tag": "next"}, "mlflow": {"repository": "x"}}},
        {"wandb": {"enabled": True, "existingSecret": "key"}},
    ],
    ids=["task", "schedule", "image", "wandb"],
)
def test_settings_change_without_a_restart(values):
    base = render({"images": {"mlflow": {"repository": "x"}}}, environment="local")
    changed = render(values, {"images": {"mlflow": {"repository": "x"}}}, environment="local")
    assert pods(changed) == pods(base)
    name = ("ConfigMap", "ml-pipelines-settings")
    assert changed.one(*name) != base.one(*name)


def test_setup_job_keeps_its_name_while_it_is_the_same():
    changed = render(
        {"pipelines": {"model": {"name": "another"}}, "storage": {"size": "9Gi"}},
        environment="local",
    )
    assert setup(changed) == setup(rendered("local"))


@pytest.mark.parametrize(
    "values",
    [
        {"airflow": {"defaultAirflowTag": "2.9.3-next"}},
        {"admin": {"username": "root"}},
        {"admin": {"enabled": False}},
        {"setup": {"resources": {"limits": {"memory": "2Gi"}}}},
        {"airflow": {"extraEnv": "- {name: HTTPS_PROXY, value: 'http://proxy'}"}},
        {"airflow": {"tolerations": [{"operator": "Exists"}]}},
        {"setup": {"generation": "2"}},
    ],
    ids=["image", "user", "no user", "resources", "environment", "nodes", "generation"],
)
def test_another_setup_job_has_another_name(values):
    """A Job cannot be changed: with the old name an upgrade fails, "field is immutable"."""
    old, new = setup(rendered("local")), setup(render(values, environment="local"))
    assert old["spec"] != new["spec"]
    assert old["metadata"]["name"] != new["metadata"]["name"]


def test_each_job_has_a_name_of_its_spec():
    names = {j["metadata"]["name"]: j["spec"] for j in rendered("production").of("Job")}
    mib = {"setup": {"resources": {"limits": {"memory": "99Mi"}}}}
    others = {j["metadata"]["name"] for j in render(mib, environment="production").of("Job")}
    assert len(names) == 3
    assert not names.keys() & others


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_hook_takes_part_in_an_install(environment):
    """Hooks wait for what waits for them under `helm --wait`."""
    hooks = {
        o["metadata"]["name"]: o["metadata"]["annotations"]["helm.sh/hook"]
        for o in rendered(environment).objects
        if "helm.sh/hook" in (o["metadata"].get("annotations") or {})
    }
    assert hooks == {"ml-pipelines-test": "test"}


def test_setup_job_does_not_remove_itself():
    """GitOps tools and `helm upgrade` would make it again, without an end."""
    assert "ttlSecondsAfterFinished" not in setup(rendered("local"))["spec"]


def test_data_stays_on_uninstall():
    kept = {
        (o["kind"], o["metadata"]["name"])
        for o in rendered("local").objects
        if (o["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {
        ("PersistentVolume", "training-storage"),
        ("PersistentVolume", "training-storage-default"),
        ("PersistentVolumeClaim", "training-storage"),
        ("PersistentVolumeClaim", "ml-pipelines-mlflow"),
        ("PersistentVolumeClaim", "ml-pipelines-postgres"),
        ("Secret", "ml-pipelines-admin"),
        ("Secret", "ml-pipelines-fernet-key"),
        ("Secret", "ml-pipelines-metadata"),
        ("Secret", "ml-pipelines-webserver-secret-key"),
    }
