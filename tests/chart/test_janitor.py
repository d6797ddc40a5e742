"""The CronJob that keeps the volumes from filling up."""

import pytest

from mlctl.base.paths import CHART
from tests.helpers.helm import ENVIRONMENTS, HelmError, render, rendered

WANDB = {"wandb": {"enabled": True, "existingSecret": "key"}, "mlflow": {"enabled": False}}


def job(manifests):
    return manifests.one("CronJob", "ml-pipelines-janitor")["spec"]


def pod(manifests):
    return job(manifests)["jobTemplate"]["spec"]["template"]["spec"]


def arguments(*values, **options):
    (container,) = pod(render(*values, **options))["containers"]
    return container["args"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_it_runs_once_a_day_and_never_twice_at_once(environment):
    found = job(rendered(environment))
    assert (found["schedule"], found["timeZone"]) == ("17 3 * * *", "Etc/UTC")
    assert found["concurrencyPolicy"] == "Forbid"
    assert (found["successfulJobsHistoryLimit"], found["failedJobsHistoryLimit"]) == (1, 1)
    once = found["jobTemplate"]["spec"]
    assert (once["backoffLimit"], once["activeDeadlineSeconds"]) == (0, 3600)
    assert once["template"]["spec"]["restartPolicy"] == "Never"


def test_it_runs_the_program_on_the_root_of_the_claim():
    found = pod(render({"storage": {"claimName": "my-claim"}}))
    volumes = {volume["name"]: volume for volume in found["volumes"]}
    assert volumes["storage"]["persistentVolumeClaim"] == {"claimName": "my-claim"}
    (container,) = found["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["storage"] == {"name": "storage", "mountPath": "/storage"}
    assert container["command"] == ["python", f"{mounts['program']['mountPath']}/janitor.py"]
    program = rendered("local").one("ConfigMap", "ml-pipelines-janitor")["data"]["janitor.py"]
    assert program.strip() == (CHART / "files" / "janitor.py").read_text().strip()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_it_is_the_user_of_the_task_pods_and_holds_no_key(environment):
    found = pod(rendered(environment))
    security = found["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (10001,) * 3
    assert found["automountServiceAccountToken"] is False
    (container,) = found["containers"]
    assert "env" not in container
    assert "envFrom" not in container


@pytest.mark.parametrize("environment", [None, *ENVIRONMENTS])
def test_predictions_and_models_are_kept_unless_values_say_otherwise(environment):
    found = arguments(environment=environment)
    assert "--leftovers-max-age-hours=48" in found
    assert "--predictions-max-age-days=0" in found
    assert [one for one in found if one.startswith("--keep-versions")] in (
        [],
        ["--keep-versions=0"],
    )


def test_values_reach_the_program():
    values = {
        "janitor": {
            "schedule": "@weekly",
            "dryRun": True,
            "deadlineSeconds": 60,
            "leftovers": {"maxAgeHours": 72},
            "predictions": {"maxAgeDays": 30},
            "models": {"keepVersions": 5},
        },
        "pipelines": {"modelName": "my-model"},
        "mlflow": {"experiment": "my-experiment"},
    }
    assert arguments(values) == [
        "--storage=/storage",
        "--leftovers-max-age-hours=72",
        "--predictions-max-age-days=30",
        "--mlflow-url=http://ml-pipelines-mlflow:5000",
        "--model=my-model",
        "--experiment=my-experiment",
        "--keep-versions=5",
        "--dry-run",
    ]
    found = job(render(values))
    assert found["schedule"] == "@weekly"
    assert found["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 60


def test_an_mlflow_elsewhere_is_cleaned_there():
    values = {"mlflow": {"enabled": False, "trackingUri": "https://mlflow.example.com"}}
    assert "--mlflow-url=https://mlflow.example.com" in arguments(values)


def test_with_wandb_no_registry_is_looked_at():
    assert [one for one in arguments(WANDB) if "mlflow" in one or "versions" in one] == []


def test_the_oldest_age_of_leftovers_is_the_longest_task():
    """Three tries of train_model, each with its start and its pause: 6.5 hours."""
    assert "--leftovers-max-age-hours=7" in arguments(
        {"janitor": {"leftovers": {"maxAgeHours": 7}}}
    )
    with pytest.raises(HelmError) as error:
        render({"janitor": {"leftovers": {"maxAgeHours": 6}}})
    assert "janitor.leftovers.maxAgeHours: 6 hours are less than train_model may take" in str(
        error.value
    )
    assert "set 7 or more" in str(error.value)
    once = {"tasks": {"train_model": {"retries": 0}}, "defaults": {"retries": 0}}
    short = arguments({"janitor": {"leftovers": {"maxAgeHours": 3}}, "pipelines": once})
    assert "--leftovers-max-age-hours=3" in short


def test_no_age_is_judged_when_it_is_off():
    off = {"enabled": False, "leftovers": {"maxAgeHours": 1}}
    assert ("CronJob", "ml-pipelines-janitor") not in render({"janitor": off}).names()
