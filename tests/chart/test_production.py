"""values/production.yaml as docs/production.md fills it, and what a shared cluster refuses."""

import re
from pathlib import Path

import pytest
import yaml

from mlctl.base.paths import CHART, ROOT, VALUES
from tests.chart.test_schema import leaves
from tests.helpers.helm import OPTIONAL_PARTS, HelmError, page, production, render, run

SHARED = ("staging", "production")
CLAIM = "PersistentVolumeClaim"
AIRFLOW = {"base", "scheduler", "triggerer", "webserver"}


def faults(error):
    """What a refusal names: the value's path, and what is said about it."""
    lines = re.findall(r"^- ([^:\s]+): (.*)$", str(error.value), re.MULTILINE)
    assert len(dict(lines)) == len(lines), "one fault, one message"
    return dict(lines)


def paths(values):
    return {".".join(path) for path, _ in leaves(values)}


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("environment", SHARED)
def test_an_untouched_file_is_refused_with_all_that_is_missing(environment, major):
    with pytest.raises(HelmError) as error:
        render_file(environment, major=major)
    assert set(faults(error)) == paths(production())


def render_file(environment, *more, major=4):
    """Render a file of values/ as it is."""
    files = [word for name in (f"{environment}.yaml", *more) for word in ("-f", VALUES / name)]
    return run("template", "ml-pipelines", CHART, *files, major=major)


@pytest.mark.parametrize("environment", SHARED)
def test_what_a_file_leaves_empty_is_what_is_to_be_set(environment):
    values = yaml.safe_load((VALUES / f"{environment}.yaml").read_text())
    # Empty as well: no schedule.
    empty = {".".join(p) for p, v in leaves(values) if v == "" and p[0] != "pipelines"}
    assert empty == paths(production())


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("environment", SHARED)
def test_with_that_it_is_complete_and_always_the_same(environment, major):
    """Without a cluster, as Argo CD renders."""
    first, second = (render(environment=environment, major=major) for _ in range(2))
    assert first.text == second.text
    assert first.of("Secret") == []


def mentioned(manifests):
    """Secret -> its keys that the release reads."""
    found = {}

    def walk(here, key=""):
        if isinstance(here, dict):
            if key == "secretKeyRef":
                found.setdefault(here["name"], set()).add(here["key"])
            elif key == "secret":
                found.setdefault(here["secretName"], set())
            for below in here:
                walk(here[below], below)
        for one in here if isinstance(here, list) else []:
            if key == "imagePullSecrets":
                found.setdefault(one["name"], set()).add(".dockerconfigjson")
            walk(one, key)

    walk([manifests.objects, manifests.worker(), manifests.settings()])
    return found


def made(block):
    """Secret -> its keys, of the commands in a block of the page."""
    found = {}
    for command in block.replace("\\\n", " ").splitlines():
        if secret := re.match(r"kubectl create secret (generic|docker-registry) (\S+)", command):
            keys = set(re.findall(r"--from-(?:literal|file)=([\w.-]+)", command))
            is_registry = secret[1] == "docker-registry"
            found[secret[2]] = {".dockerconfigjson"} if is_registry else keys
    return found


@pytest.mark.parametrize("environment", SHARED)
def test_the_page_makes_the_secrets_that_the_release_reads(environment):
    blocks = [made(block) for block in page("sh")]
    wanted = mentioned(render(environment=environment))
    assert len(wanted) == 7
    assert next(filter(None, blocks)) == wanted


def test_the_page_makes_the_secrets_of_pgbouncer():
    pgbouncer = yaml.safe_load(page("yaml")[1])
    manifests = render(pgbouncer, environment="production")
    assert manifests.of("Secret") == []
    wanted = mentioned(manifests).keys() - mentioned(render(environment="production")).keys()
    (both,) = [made(block) for block in page("sh") if "pgbouncer" in block]
    assert both.keys() == wanted
    # Mounted as files, and read by its name.
    assert both["ml-pipelines-pgbouncer"] == {"pgbouncer.ini", "users.txt"}
    assert both["ml-pipelines-pgbouncer-stats"] == {"connection"}


def test_the_page_lets_logins_and_logs_be_elsewhere():
    """What Airflow makes of both is in tests/images/test_company.py."""
    *_, oidc, bucket, gcs = map(yaml.safe_load, page("yaml"))
    manifests = render(oidc, bucket, environment="production")
    assert [c["metadata"]["name"] for c in manifests.of(CLAIM)] == ["training-storage"]
    before = mentioned(render(environment="production"))
    added = {name: keys for name, keys in mentioned(manifests).items() if name not in before}
    assert added == {
        "ml-pipelines-oidc": set(),  # a file
        "ml-pipelines-log-bucket": {"connection"},
    }
    airflow = [c for c in manifests.containers() if c.spec["name"] in AIRFLOW]
    assert {c.spec["name"] for c in airflow} == AIRFLOW
    for container in airflow:
        env = {variable["name"]: variable.get("value") for variable in container.spec["env"]}
        assert "AIRFLOW_CONN_LOGS" in env, container.where
        # Their root file system is read-only.
        place = env.get("AIRFLOW__LOGGING__BASE_LOG_FOLDER") or "/opt/airflow/logs"
        paths = {mount["mountPath"] for mount in container.spec["volumeMounts"]}
        assert {place, str(Path(place).parent)} & paths, container.where
    assert "s3://my-bucket" in str(manifests.of("ConfigMap"))
    assert "gs://my-bucket" in str(render(bucket, gcs, environment="production").of("ConfigMap"))


def test_the_page_unsets_what_is_not_needed():
    """The values in its table, each on top of production."""
    text = (ROOT / "docs" / "production.md").read_text()
    rows = re.findall(r"^\| (?:a public|public|an MLflow|logins).* \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        values = {}
        for setting in re.findall(r"`([^`]+)`", row):
            path, _, value = setting.partition(": ")
            below = values
            for key in path.split(".")[:-1]:
                below = below.setdefault(key, {})
            below[path.split(".")[-1]] = yaml.safe_load(value.replace("...", "mlflow.test"))
        before = mentioned(render(environment="production"))
        assert mentioned(render(values, environment="production")) != before, row


UNSAFE = {
    "a database without backups": (
        {"postgres": {"enabled": True, "existingSecret": "x"}},
        "postgres.enabled",
    ),
    "a registry without a login": ({"mlflow": {"enabled": True}}, "mlflow.enabled"),
    "a key in the values": (
        {"wandb": {"existingSecret": "", "apiKey": "abc"}},
        "wandb.apiKey",
    ),
    "a password drawn at each render": ({"admin": {"existingSecret": ""}}, "admin.existingSecret"),
    "a Fernet key drawn at each render": (
        {"secrets": {"fernetKey": {"create": True}}},
        "secrets.fernetKey.create",
    ),
    "a session key drawn at each render": (
        {"secrets": {"webserverSecretKey": {"create": True}}},
        "secrets.webserverSecretKey.create",
    ),
    "an image that moves": (
        {"images": {"classicExample": {"digest": "", "tag": "main"}}},
        "images.classicExample.digest",
    ),
    "the newest image": (
        {"images": {"classicExample": {"digest": "", "tag": "latest"}}},
        "images.classicExample.digest",
    ),
    "a sidecar that moves": (
        {"images": {"xcomSidecar": {"repository": "alpine", "tag": "edge"}}},
        "images.xcomSidecar.digest",
    ),
    "an Airflow that moves": (
        {"airflow": {"defaultAirflowTag": "latest"}},
        "airflow.defaultAirflowTag",
    ),
    "a git-sync that moves": (
        {"airflow": {"images": {"gitSync": {"tag": "master"}}}},
        "airflow.images.gitSync.tag",
    ),
    "a directory of one node": (
        {"storage": {"local": {"path": "/x", "nodeName": "n"}}},
        "storage.local",
    ),
    "no limits": ({"airflow": {"scheduler": {"resources": None}}}, "airflow.scheduler.resources"),
    "no memory limit of workers": (
        {"airflow": {"workers": {"resources": {"limits": {"memory": None}}}}},
        "airflow.workers.resources",
    ),
    "no memory limit of tasks": (
        {"pipelines": {"defaults": {"resources": {"limits": {"memory": None}}}}},
        "pipelines.defaults.resources",
    ),
    "files for one node": (
        {"storage": {"accessModes": ["ReadWriteOnce"]}},
        "storage.accessModes",
    ),
    "logs for one node": ({"logs": {"accessModes": ["ReadWriteOnce"]}}, "logs.accessModes"),
    "nobody's address": ({"admin": {"email": "admin@example.com"}}, "admin.email"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_a_shared_cluster_refuses(case):
    values, path = UNSAFE[case]
    with pytest.raises(HelmError) as error:
        # The schemas are tested elsewhere and take a third of the time.
        render(values, environment="production", options=("--skip-schema-validation",))
    assert set(faults(error)) == {path}


@pytest.mark.parametrize("major", [3, 4])
def test_all_of_it_is_refused_at_once(major):
    together = {
        "postgres": {"enabled": True, "existingSecret": "x"},
        "mlflow": {"enabled": True},
        "admin": {"existingSecret": "", "email": ""},
        "logs": {"accessModes": ["ReadWriteOnce"]},
        "airflow": {"defaultAirflowTag": "latest", "scheduler": {"resources": None}},
    }
    with pytest.raises(HelmError) as error:
        render(together, environment="production", major=major)
    assert set(faults(error)) == {
        *("postgres.enabled", "mlflow.enabled", "admin.existingSecret", "admin.email"),
        *("logs.accessModes", "airflow.defaultAirflowTag", "airflow.scheduler.resources"),
    }


@pytest.mark.parametrize("claim", ["storage", "logs"])
@pytest.mark.parametrize("major", [3, 4])
def test_a_volume_for_one_pod_is_refused_everywhere(claim, major):
    """At least two pods mount each of them."""
    with pytest.raises(HelmError, match="accessModes"):
        render({claim: {"accessModes": ["ReadWriteOncePod"]}}, major=major)


def test_the_defaults_are_those_of_a_shared_cluster():
    with pytest.raises(HelmError) as error:
        run("template", "ml-pipelines", CHART)
    assert {"postgres.enabled", "mlflow.enabled", "admin.existingSecret"} <= set(faults(error))
    assert "on a machine of your own say profile: local" in str(error.value)


TOKENS = {
    "airflow.dags.gitSync.repo": "https://x:ghp_TOKEN@github.com/a/b.git",
    "mlflow.trackingUri": "https://bob:ghp_TOKEN@mlflow.acme.io",
    "wandb.baseUrl": "https://ghp_TOKEN@wandb.acme.io",
    "pipelines.tasks.load_data.env.SOURCE": "s3 is postgresql://me:ghp_TOKEN@db/rows",
    "airflow.config.database.sql_alchemy_conn": "postgresql+psycopg2://me:ghp_TOKEN@db/airflow",
    "airflow.extraEnv": "- {name: HTTPS_PROXY, value: 'http://me:ghp_TOKEN@proxy:3128'}",
}


def at(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("environment", ["local", "production"])
@pytest.mark.parametrize("path", TOKENS)
def test_no_password_in_a_url(path, environment):
    elsewhere = {"mlflow": {"enabled": False}, "wandb": {"enabled": path != "mlflow.trackingUri"}}
    key = {"wandb": {"existingSecret": "key"}}
    with pytest.raises(HelmError) as error:
        render(elsewhere, key, at(path, TOKENS[path]), environment=environment)
    assert set(faults(error)) == {path}
    assert "ghp_TOKEN" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("airflow.dags.gitSync.repo", "ssh://git@git.test:22/a/b.git"),
        ("airflow.dags.gitSync.repo", "git@git.test:a/b.git"),
        ("pipelines.tasks.load_data.env.SOURCE", "postgresql://me:$(PASSWORD)@db/rows"),
        ("pipelines.tasks.load_data.env.SOURCE", "https://files.test:8443/team@v1/rows.csv"),
    ],
)
def test_other_urls_are_taken(path, url):
    assert url in render(at(path, url), environment="production").text


@pytest.mark.parametrize("major", [3, 4])
def test_what_can_be_kept_may_be_drawn(major):
    """With a cluster to look into, an upgrade finds what the install has drawn."""
    drawn = {"admin": {"existingSecret": ""}, "secrets": {"fernetKey": {"create": True}}}
    secrets = render(drawn, environment="production", cluster={}, major=major).of("Secret")
    assert {s["metadata"]["name"] for s in secrets} == {
        "ml-pipelines-admin",
        "ml-pipelines-fernet-key",
    }


def test_on_one_node_all_pods_stay_together():
    one_node = yaml.safe_load((VALUES / "parts" / "one-node.yaml").read_text())
    manifests = render(one_node, environment="production")
    modes = {c["metadata"]["name"]: c["spec"]["accessModes"] for c in manifests.of(CLAIM)}
    assert modes == {name: ["ReadWriteOnce"] for name in ("training-storage", "ml-pipelines-logs")}
    pods = {**dict(manifests.pods()), "task": manifests.settings()["pod"]}
    mounting = {
        where: pod
        for where, pod in pods.items()
        if any("persistentVolumeClaim" in v for v in pod["spec"].get("volumes", []))
    }
    assert {"task", "Pod/worker", "Deployment/ml-pipelines-scheduler"} < set(mounting)
    for where, pod in mounting.items():
        affinity = pod["spec"]["affinity"]["podAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        # Else the first of them would find no node.
        selector = term["labelSelector"]["matchLabels"].items()
        assert selector <= pod["metadata"]["labels"].items(), where


def test_on_openshift_all_pods_run_as_a_user_of_the_range():
    openshift = yaml.safe_load((VALUES / "parts" / "openshift.yaml").read_text())
    parts = {"airflow": OPTIONAL_PARTS}
    manifests = render(parts, openshift, environment="production")
    pods = {**dict(manifests.pods()), "task": manifests.settings()["pod"]}
    assert {"task", "Pod/worker", "Deployment/ml-pipelines-scheduler"} < set(pods)
    users: dict[str, set[int]] = {}
    for where, pod in pods.items():
        spec = pod["spec"]
        for one in (spec, *spec["containers"], *spec.get("initContainers", [])):
            context = one.get("securityContext") or {}
            found = {context[key] for key in ("runAsUser", "fsGroup") if key in context}
            users.setdefault(where, set()).update(found)
    assert {where: found for where, found in users.items() if found != {1000680000}} == {}
    # It has no entry in /etc/passwd, and Airflow asks for a name.
    assert manifests.one("ConfigMap", "ml-pipelines-environment")["data"]["USER"] == "airflow"


@pytest.mark.parametrize("environment", ["local", *SHARED])
def test_no_pod_changes_the_owners_of_a_whole_volume(environment):
    manifests = render(environment=environment)
    pods = {**dict(manifests.pods()), "task": manifests.settings()["pod"]}
    contexts = {where: pod["spec"]["securityContext"] for where, pod in pods.items()}
    policies = {w: c.get("fsGroupChangePolicy") for w, c in contexts.items() if "fsGroup" in c}
    assert "Pod/worker" in policies
    assert set(policies.values()) == {"OnRootMismatch"}
