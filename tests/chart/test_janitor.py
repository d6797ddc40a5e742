"""The CronJobs that keep the volumes from filling up, and delete ended pods."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from mlctl.base.paths import CHART
from tests.chart.test_start_order import run
from tests.helpers.helm import ENVIRONMENTS, HelmError, render, rendered

WANDB = {"wandb": {"enabled": True, "existingSecret": "key"}, "mlflow": {"enabled": False}}
PASSWORD = {"valueFrom": {"secretKeyRef": {"name": "mlflow-login", "key": "password"}}}


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
    programs = rendered("local").one("ConfigMap", "ml-pipelines-janitor")["data"]
    assert set(programs) == {"janitor.py", "ended_pods.py"}
    for name, program in programs.items():
        assert program.strip() == (CHART / "files" / name).read_text().strip()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_it_is_the_user_of_the_task_pods_and_holds_no_key(environment):
    found = pod(rendered(environment))
    security = found["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (10001,) * 3
    assert found["automountServiceAccountToken"] is False
    (container,) = found["containers"]
    assert [one for one in container.get("env", []) if "valueFrom" in one] == []
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
        "pipelines": {"model": {"name": "my-model"}},
        "mlflow": {"experiment": "my-experiment"},
    }
    assert arguments(values) == [
        "--storage=/storage",
        "--leftovers-max-age-hours=72",
        "--predictions-max-age-days=30",
        "--mlflow-url=http://ml-pipelines-mlflow.ml-pipelines:5000",
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


@pytest.mark.parametrize(
    "given",
    [
        {"env": {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": PASSWORD}},
        {"envFrom": [{"secretRef": {"name": "mlflow-login"}}]},
    ],
    ids=["variables", "Secret"],
)
def test_it_logs_in_as_the_tasks_do(given):
    elsewhere = {"enabled": False, "trackingUri": "https://mlflow.example.com"}
    manifests = render({"mlflow": elsewhere, "pipelines": {"presets": {"registry": given}}})
    (container,) = job(manifests)["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one for one in container["env"]}
    for name, value in given.get("env", {}).items():
        wanted = value if isinstance(value, dict) else {"value": value}
        assert variables[name] == {"name": name, **wanted}
    assert container.get("envFrom") == given.get("envFrom")


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


# The pods


def pods_job(*values, **options):
    return render(*values, **options).one("CronJob", "ml-pipelines-pod-janitor")["spec"]


def test_pods_are_looked_at_every_quarter_of_an_hour():
    found = pods_job()
    assert (found["schedule"], found["timeZone"]) == ("*/15 * * * *", "Etc/UTC")
    assert found["concurrencyPolicy"] == "Forbid"


def test_the_account_is_mounted_where_the_program_looks_for_it():
    found = pods_job()["jobTemplate"]["spec"]["template"]["spec"]
    assert found["serviceAccountName"] == "ml-pipelines-pod-janitor"
    (container,) = found["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert container["command"] == ["python", f"{mounts['program']['mountPath']}/ended_pods.py"]
    assert f"--account={mounts['account']['mountPath']}" in container["args"]
    (volume,) = [volume for volume in found["volumes"] if volume["name"] == "account"]
    paths = [
        source.get("serviceAccountToken", {}).get("path") or source["configMap"]["items"][0]["path"]
        for source in volume["projected"]["sources"]
    ]
    assert paths == ["token", "ca.crt"]


def test_values_reach_the_program_for_pods():
    values = {
        "janitor": {
            "dryRun": True,
            "pods": {"schedule": "@hourly", "keepSeconds": 60, "unwatchedHours": 2},
        },
        "pipelines": {"namespaces": ["default", "team-b"]},
    }
    found = pods_job(values)
    assert found["schedule"] == "@hourly"
    (container,) = found["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "--namespace=ml-pipelines",
        "--namespace=default",
        "--namespace=team-b",
        "--keep-seconds=60",
        "--unwatched-hours=2",
        "--account=/account",
        "--dry-run",
    ]


def test_each_claim_has_a_janitor():
    """A CronJob mounts the claims of its own namespace only."""
    values = {"pipelines": {"namespaces": ["team-b"]}}
    jobs = [o for o in render(values).of("CronJob") if o["metadata"]["name"].endswith("s-janitor")]
    arguments = {
        o["metadata"]["namespace"]: o["spec"]["jobTemplate"]["spec"]["template"]["spec"][
            "containers"
        ][0]["args"]
        for o in jobs
    }
    assert set(arguments) == {"ml-pipelines", "team-b"}
    assert "--storage=/storage" in arguments["team-b"]
    # There is one registry.
    assert [one for one in arguments["team-b"] if "mlflow" in one or "versions" in one] == []
    # All claims of a local volume are the same directory.
    local = render(values, environment="local").of("CronJob")
    assert [o["metadata"]["namespace"] for o in local] == ["ml-pipelines"] * 2


def test_old_history_goes_from_the_database(tmp_path):
    assert ("CronJob", "ml-pipelines-database-janitor") not in rendered("local").names()
    found = rendered("production").one("CronJob", "ml-pipelines-database-janitor")["spec"]
    assert (found["schedule"], found["concurrencyPolicy"]) == ("47 3 * * *", "Forbid")
    spec = found["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    said = run(container["args"], tmp_path, 'printf "%s\\n" "$*"')
    assert said.returncode == 0, said.stderr
    before = datetime.now(UTC) - timedelta(days=180)
    check, clean = said.stdout.splitlines()
    assert check == "db check --retry 60 --retry-delay 2"
    given = re.fullmatch(r"db clean --clean-before-timestamp (\S+) --skip-archive --yes", clean)
    assert abs(datetime.fromisoformat(given[1]) - before) < timedelta(hours=1)


def test_a_dry_run_of_it_says_what_would_go():
    values = {"janitor": {"database": {"keepDays": 30}, "dryRun": True}}
    found = render(values).one("CronJob", "ml-pipelines-database-janitor")["spec"]
    (container,) = found["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1].endswith("--dry-run\n")
    assert "--yes" not in container["args"][-1]
