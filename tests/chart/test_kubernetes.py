"""Objects are valid for Kubernetes, fit each other and fit a small machine."""

import re

import kubernetes_validate
import pytest
import yaml

from mlctl.base.paths import CHART, VALUES
from tests.helpers.helm import ENVIRONMENTS, OLDEST_KUBERNETES, ON_BOTH, render, rendered, run

NEWEST_KUBERNETES = ".".join(kubernetes_validate.latest_version().split(".")[:2])
EVERYTHING = {
    "wandb": {"enabled": True, "apiKey": "x"},
    "imagePullSecrets": [{"name": "registry"}],
    "airflow": {
        "nodeSelector": {"pool": "a"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "extraEnvFrom": "- secretRef: {name: more}",
        "extraEnv": "- {name: A, value: b}",
    },
}


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("environment", ["local", "local airflow3", "production", "everything"])
def test_objects_are_valid(environment, version):
    if environment == "everything":
        manifests = render(EVERYTHING, environment="local")
    else:
        manifests = rendered(environment)
    for found in [*manifests.objects, manifests.worker()]:
        kubernetes_validate.validate(found, version, strict=True)


def test_an_invalid_object_would_be_noticed():
    job = yaml.safe_load(yaml.safe_dump(rendered("local").of("Job")[0]))
    job["spec"]["templat"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, NEWEST_KUBERNETES, strict=True)


def test_oldest_version_is_the_charts():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST_KUBERNETES}.0-0"


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("environment", [None, *ENVIRONMENTS])
def test_lint(environment, major):
    values = ["--values", VALUES / f"{environment}.yaml"] if environment else []
    printed = run("lint", "--strict", CHART, *values, major=major)
    assert "1 chart(s) linted, 0 chart(s) failed" in printed


@pytest.mark.parametrize("environment", ON_BOTH)
def test_own_objects_are_labelled(environment):
    for found in rendered(environment).objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "ml-pipelines"
        if "chart" in labels:  # the official chart's
            continue
        assert set(labels) == {
            f"app.kubernetes.io/{key}"
            for key in ("name", "instance", "component", "part-of", "version", "managed-by")
        }


@pytest.mark.parametrize("environment", ON_BOTH)
def test_one_label_finds_every_pod(environment):
    part_of = "app.kubernetes.io/part-of"
    labels = {w: pod["metadata"]["labels"] for w, pod in rendered(environment).pods()}
    assert [where for where, own in labels.items() if own.get(part_of) != "ml-pipelines"] == []


def test_services_and_selectors_find_their_pods():
    manifests = rendered("local")
    labels = {where: pod["metadata"].get("labels", {}) for where, pod in manifests.pods()}
    for service in manifests.of("Service"):
        selector = service["spec"]["selector"].items()
        chosen = {where for where, own in labels.items() if selector <= own.items()}
        component = service["metadata"]["name"].removeprefix("ml-pipelines-")
        kind = "StatefulSet" if component == "postgres" else "Deployment"
        assert chosen == {f"{kind}/ml-pipelines-{component}"}


@pytest.mark.parametrize("environment", ON_BOTH)
def test_every_name_a_pod_refers_to_exists(environment):
    manifests = rendered(environment)
    there = manifests.names()
    wanted = set()
    for _, pod in manifests.pods():
        spec = pod["spec"]
        if account := spec.get("serviceAccountName"):
            wanted.add(("ServiceAccount", account))
        for volume in spec.get("volumes") or []:
            if claim := volume.get("persistentVolumeClaim"):
                wanted.add(("PersistentVolumeClaim", claim["claimName"]))
            if config := volume.get("configMap"):
                wanted.add(("ConfigMap", config["name"]))
            if environment.startswith("local") and "secret" in volume:
                wanted.add(("Secret", volume["secret"]["secretName"]))
    if environment.startswith("local"):
        wanted |= {
            ("Secret", ref["name"])
            for c in manifests.containers()
            for e in c.spec.get("env") or []
            if (ref := e.get("valueFrom", {}).get("secretKeyRef"))
        }
    assert wanted - there == set()


@pytest.mark.parametrize("environment", ON_BOTH)
def test_mounted_volumes_are_declared(environment):
    for c in rendered(environment).containers():
        volumes = [v["name"] for v in c.pod.get("volumes") or []]
        mounts = c.spec.get("volumeMounts") or []
        assert {m["name"] for m in mounts} <= set(volumes), c.where
        assert len(volumes) == len(set(volumes)), c.where
        paths = [m["mountPath"] for m in mounts]
        assert len(paths) == len(set(paths)), c.where


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_logs_outlive_their_pods(environment):
    manifests = rendered(environment)
    users = {
        where
        for where, pod in manifests.pods()
        for volume in pod["spec"]["volumes"]
        if volume.get("persistentVolumeClaim", {}).get("claimName") == "ml-pipelines-logs"
    }
    # The Job that tries the volume does so once.
    assert {where for where in users if not where.startswith("Job/")} == {
        "Deployment/ml-pipelines-scheduler",
        "Deployment/ml-pipelines-triggerer",
        "Deployment/ml-pipelines-webserver",
        "Pod/worker",
    }


def test_local_training_storage_is_bound_to_its_directory():
    manifests = rendered("local")
    volume = manifests.one("PersistentVolume", "training-storage")["spec"]
    claim = manifests.one("PersistentVolumeClaim", "training-storage")["spec"]
    assert volume["local"] == {"path": "/var/lib/training"}
    assert volume["persistentVolumeReclaimPolicy"] == "Retain"
    assert claim["volumeName"] == "training-storage"
    assert claim["storageClassName"] == volume["storageClassName"] == "local-storage"
    assert claim["accessModes"] == volume["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(("given", "expected"), [("", None), ("-", ""), ("fast", "fast")])
def test_storage_class(given, expected):
    names = ("storage", "logs")
    values = {
        **{name: {"storageClassName": given} for name in names},
        **{n: {"persistence": {"storageClassName": given}} for n in ("mlflow", "postgres")},
    }
    claims = render(values).of("PersistentVolumeClaim")
    assert len(claims) == 4
    assert {claim["spec"].get("storageClassName") for claim in claims} == {expected}


@pytest.mark.parametrize("major", [3, 4])
def test_no_part_is_there_twice_on_two_cores(major):
    manifests = rendered("local", major)
    strategies = {o["metadata"]["name"]: o["spec"]["strategy"] for o in manifests.of("Deployment")}
    assert len(strategies) == 4
    # Kubernetes refuses a leftover of the other kind beside it.
    assert [name for name, one in strategies.items() if one != {"type": "Recreate"}] == []


def cores(quantity):
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def test_five_runs_at_once_fit_two_cores():
    """Requests, not use: what does not fit stays Pending."""
    manifests = rendered("local")

    def requested(pod):
        containers = pod["spec"]["containers"]
        return sum(cores(c["resources"]["requests"]["cpu"]) for c in containers)

    # The setup Job has ended and the test pod is not there when pipelines run.
    fixed = sum(
        requested(pod)
        for where, pod in manifests.pods()
        if where.startswith(("Deployment/", "StatefulSet/"))
    )
    values = yaml.safe_load((CHART / "values.yaml").read_text())["pipelines"]
    train = cores(values["tasks"]["train_model"]["resources"]["requests"]["cpu"])
    other = cores(values["defaults"]["resources"]["requests"]["cpu"])
    worker = requested(manifests.worker())
    dns = 0.1
    assert fixed + 5 * (worker + train) + dns <= 2
    # Inference loads data and model at the same time.
    assert fixed + 5 * 2 * (worker + other) + dns <= 2


def test_mlflow_answers_the_names_it_is_called_by():
    (server,) = [
        c for c in rendered("local").containers() if c.where.endswith("ml-pipelines-mlflow/mlflow")
    ]
    (hosts,) = [a.split("=", 1)[1] for a in server.spec["args"] if a.startswith("--allowed-hosts=")]
    assert set(hosts.split(",")) >= {
        "ml-pipelines-mlflow:5000",
        "ml-pipelines-mlflow.ml-pipelines.svc.cluster.local:5000",
        "localhost:*",
    }


def install(*sets):
    """What `helm install` would print: manifest and notes."""
    arguments = ["ml-pipelines", CHART, "--namespace", "ml-pipelines", "--dry-run=client"]
    machine = ("airflow.dags.gitSync.repo=git://example/dags.git", "images.classicExample.tag=1")
    for value in (*machine, "images.classicExample.repository=mine", *sets):
        arguments += ["--set", value]
    return run("install", *arguments, "--values", VALUES / "local.yaml")


def test_notes_name_what_is_unusual():
    usual = install().split("\nNOTES:\n")[1]
    sets = ("pipelines.namespaces={default,team-b}", "airflow.triggerer.enabled=false")
    unusual = install(*sets).split("\nNOTES:\n")[1]
    added = [line.strip() for line in unusual.splitlines() if line not in usual.splitlines()]
    assert added == [
        "tasks may run in ml-pipelines, default, team-b",
        "The triggerer is off (airflow.triggerer.enabled): a task with deferrable=True would wait"
        " for ever.",
    ]
    assert "\n\n\n" not in unusual


def test_notes_say_how_to_go_on_and_print_no_password():
    printed = install()
    notes = printed.split("\nNOTES:\n")[1]
    for expected in (
        "port-forward service/ml-pipelines-webserver 8080:8080",
        "port-forward service/ml-pipelines-mlflow 5000:5000",
        "get secret ml-pipelines-admin",
        '{{index .data "password" | base64decode}}',
        "trigger training_dag",
        "trigger inference_dag",
        "test ml-pipelines --logs",
    ):
        assert expected in notes
    manifest = printed.split("\nNOTES:\n")[0]
    drawn = re.findall(r'^ +(?:password|fernet-key|\w+-secret-key): "?([\w=]{16,})', manifest, re.M)
    assert len(drawn) >= 4
    assert [text for text in drawn if text in notes] == []
