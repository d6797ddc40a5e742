"""Which objects each environment has: nothing more, nothing less."""

import pytest

from tests.helpers.helm import render, rendered

# Of the official chart, in every environment.
AIRFLOW = {
    ("ConfigMap", "ml-pipelines-config"),
    ("Deployment", "ml-pipelines-scheduler"),
    ("Deployment", "ml-pipelines-triggerer"),
    ("Deployment", "ml-pipelines-webserver"),
    ("Service", "ml-pipelines-triggerer"),
    ("Service", "ml-pipelines-webserver"),
    ("ServiceAccount", "ml-pipelines-airflow-scheduler"),
    ("ServiceAccount", "ml-pipelines-airflow-triggerer"),
    ("ServiceAccount", "ml-pipelines-airflow-webserver"),
    ("ServiceAccount", "ml-pipelines-airflow-worker"),
}
ROLES = {
    (kind, f"ml-pipelines-{name}")
    for kind in ("Role", "RoleBinding")
    for name in ("pod-janitor", "pod-launcher", "pod-watcher", "worker-launcher", "worker-reader")
}
ALWAYS = (
    AIRFLOW
    | ROLES
    | {
        ("ConfigMap", "ml-pipelines-environment"),
        ("ConfigMap", "ml-pipelines-janitor"),
        ("ConfigMap", "ml-pipelines-settings"),
        ("CronJob", "ml-pipelines-janitor"),
        ("CronJob", "ml-pipelines-pod-janitor"),
        ("Job", "ml-pipelines-logs"),
        ("Job", "ml-pipelines-setup"),
        ("Job", "ml-pipelines-storage"),
        ("PersistentVolumeClaim", "ml-pipelines-logs"),
        ("PersistentVolumeClaim", "training-storage"),
        ("Pod", "ml-pipelines-test"),
        ("ServiceAccount", "ml-pipelines-pod"),
        ("ServiceAccount", "ml-pipelines-pod-janitor"),
        ("ServiceAccount", "ml-pipelines-task"),
    }
)
IN_CLUSTER = {
    ("Deployment", "ml-pipelines-mlflow"),
    ("PersistentVolumeClaim", "ml-pipelines-mlflow"),
    ("PersistentVolumeClaim", "ml-pipelines-postgres"),
    ("Secret", "ml-pipelines-admin"),
    ("Secret", "ml-pipelines-fernet-key"),
    ("Secret", "ml-pipelines-metadata"),
    ("Secret", "ml-pipelines-webserver-secret-key"),
    ("Service", "ml-pipelines-mlflow"),
    ("Service", "ml-pipelines-postgres"),
    ("StatefulSet", "ml-pipelines-postgres"),
}
EXPECTED = {
    "local": ALWAYS
    | IN_CLUSTER
    | {
        ("PersistentVolume", "training-storage"),
        ("PersistentVolumeClaim", "ml-pipelines-dags"),
        # For the tasks that run in another namespace.
        ("PersistentVolume", "training-storage-default"),
        ("Role", "ml-pipelines-pod-ender"),
        ("RoleBinding", "ml-pipelines-pod-ender"),
    },
    "staging": ALWAYS | {("CronJob", "ml-pipelines-database-janitor")},
    "production": ALWAYS
    | {
        ("CronJob", "ml-pipelines-database-janitor"),
        ("PodDisruptionBudget", "ml-pipelines-scheduler-pdb"),
        ("PodDisruptionBudget", "ml-pipelines-webserver-pdb"),
    }
    # Policies of the chart, then of the official one.
    | {
        ("NetworkPolicy", f"ml-pipelines-{name}")
        for name in ("closed", "janitor", "task", "volumes", "webserver", "workers")
    }
    | {
        ("NetworkPolicy", f"ml-pipelines-{name}-policy")
        for name in ("scheduler", "triggerer", "webserver")
    },
}


def names(manifests):
    """Names without the hash of the setup Job."""
    return {
        (kind, name.rsplit("-", 1)[0] if kind == "Job" else name)
        for kind, name in manifests.names()
    }


@pytest.mark.parametrize("environment", EXPECTED)
def test_environment_has_exactly_these_objects(environment):
    assert names(rendered(environment)) == EXPECTED[environment]


def test_defaults_put_everything_into_the_cluster():
    assert names(render()) == ALWAYS | IN_CLUSTER


def test_wandb_key_makes_a_secret():
    with_key = render({"wandb": {"enabled": True, "apiKey": "x"}, "mlflow": {"enabled": False}})
    mlflow = {name for name in IN_CLUSTER if name[1] == "ml-pipelines-mlflow"}
    assert names(with_key) == ALWAYS | IN_CLUSTER - mlflow | {("Secret", "ml-pipelines-wandb")}


def test_switched_off_parts_leave_nothing():
    off = render(
        {
            "storage": {"create": False},
            "logs": {"create": False},
            "admin": {"enabled": False},
            "janitor": {"enabled": False},
            "airflow": {"triggerer": {"enabled": False}},
            "wandb": {"enabled": True, "existingSecret": "key"},
            "mlflow": {"enabled": False},
            "postgres": {"enabled": False},
            "secrets": {
                name: {"create": False} for name in ("metadata", "fernetKey", "webserverSecretKey")
            },
        }
    )
    claims = {name for name in ALWAYS if name[0] == "PersistentVolumeClaim"}
    endings = ("-janitor", "-triggerer", "-pod-watcher")
    parts = {name for name in ALWAYS if name[1].endswith(endings)}
    assert len(parts) == 11
    assert names(off) == ALWAYS - claims - parts


def test_another_release_name_goes_before_every_own_object():
    own = {name for _, name in render(release="team-a").names()}
    assert {name for name in own if not name.startswith("team-a-")} == {
        # Named by values, since the official chart evaluates no templates there; see the README.
        "ml-pipelines-fernet-key",
        "ml-pipelines-logs",
        "ml-pipelines-metadata",
        "ml-pipelines-webserver-secret-key",
        "training-storage",
    }
