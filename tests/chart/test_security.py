"""What the pods may do, and where secrets can be read."""

import base64
import re

import pytest
import yaml

from mlctl.base.paths import CHART, VALUES
from tests.helpers.helm import ENVIRONMENTS, KEPT, ON_BOTH, OPTIONAL_PARTS, render, rendered

# Of the official chart: images that could not be tried, and a pod that takes no volume.
WRITABLE = ("airflow-cleanup-pods", "metrics-exporter", "pgbouncer", "statsd")

OPTIONAL = {"airflow": OPTIONAL_PARTS}


def faults(container):
    """What the "restricted" profile of the Pod Security Standards holds against a container."""
    pod = container.pod.get("securityContext") or {}
    own = container.spec.get("securityContext") or {}
    seccomp = own.get("seccompProfile", pod.get("seccompProfile", {}))
    checks = {
        "privileged": not own.get("privileged"),
        "privilege escalation": own.get("allowPrivilegeEscalation") is False,
        "runs as root": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True
        and own.get("runAsUser", pod.get("runAsUser")) not in (0, None),
        "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
        "seccomp": seccomp == {"type": "RuntimeDefault"},
        "host": not any(container.pod.get(k) for k in ("hostNetwork", "hostPID", "hostIPC")),
        "host path": not any("hostPath" in v for v in container.pod.get("volumes") or []),
        "read-only root": container.spec["name"] in WRITABLE
        or own.get("readOnlyRootFilesystem") is True,
    }
    return [name for name, fine in checks.items() if not fine]


@pytest.mark.parametrize("environment", ON_BOTH)
def test_every_container_passes_the_restricted_profile(environment):
    containers = rendered(environment).containers()
    assert {c.where: faults(c) for c in containers if faults(c)} == {}
    assert {"base", "scheduler", "webserver", "git-sync-init", "git-sync"} <= {
        c.spec["name"] for c in containers
    }


def test_optional_parts_pass_it_too_and_have_limits():
    containers = render(OPTIONAL, environment="production").containers()
    there = {c.where for c in rendered("production").containers()}
    added = [c for c in containers if c.where not in there]
    assert {"dag-processor", "airflow-cleanup-pods", "statsd", "pgbouncer", "metrics-exporter"} < {
        c.spec["name"] for c in added
    }
    assert {c.where: faults(c) for c in added if faults(c)} == {}
    assert [c.where for c in added if "memory" not in c.spec["resources"]["limits"]] == []


def test_the_pages_own_configuration_is_read_where_it_is_mounted():
    """Not in Airflow's home, where each Airflow would write one, and cannot."""
    own = {"airflow": {"webserver": {"webserverConfig": "AUTH_TYPE = 4"}}}
    manifests = render(own, environment="production")
    pod = manifests.one("Deployment", "ml-pipelines-webserver")["spec"]["template"]["spec"]
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    config = manifests.one("ConfigMap", "ml-pipelines-config")["data"]["airflow.cfg"]
    assert f"config_file = {mounts['webserver-config']}" in config


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_only_airflow_talks_to_the_kubernetes_api(environment):
    tokens = {
        where
        for where, pod in rendered(environment).pods()
        if pod["spec"].get("automountServiceAccountToken") is not False
    }
    assert tokens == {
        "Deployment/ml-pipelines-scheduler",
        "Deployment/ml-pipelines-triggerer",
        "Deployment/ml-pipelines-webserver",
        "Pod/worker",
    }


def test_task_account_has_no_token_and_no_role():
    manifests = rendered("production")
    account = manifests.one("ServiceAccount", "ml-pipelines-task")
    assert account["automountServiceAccountToken"] is False
    bound = [s["name"] for b in manifests.of("RoleBinding") for s in b["subjects"]]
    assert "ml-pipelines-task" not in bound


@pytest.mark.parametrize("environment", ON_BOTH)
def test_every_container_says_what_it_needs(environment):
    def missing(resources):
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        return sorted({"cpu", "memory"} - set(requests)) + ([] if "memory" in limits else ["limit"])

    containers = rendered(environment).containers()
    found = {c.where: missing(c.spec.get("resources") or {}) for c in containers}
    assert {where: lacks for where, lacks in found.items() if lacks} == {}
    # A CPU limit slows a worker down while the node is idle.
    assert [c.where for c in containers if "cpu" in c.spec["resources"]["limits"]] == []


@pytest.mark.parametrize("environment", ON_BOTH)
def test_no_variable_is_given_twice(environment):
    """Helm 4 applies on the server, which refuses them."""
    twice = {
        c.where: sorted({name for name in c.env if c.env.count(name) > 1})
        for c in rendered(environment).containers()
    }
    assert {where: names for where, names in twice.items() if names} == {}


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_shared_clusters_get_no_secret_from_the_chart(environment):
    assert rendered(environment).of("Secret") == []


@pytest.mark.parametrize("file", [*sorted(VALUES.glob("*.yaml")), CHART / "values.yaml"])
def test_values_files_hold_no_secret(file):
    secret = re.compile(r"(password|apikey|token|secret|connection|fernetkey)$", re.IGNORECASE)

    def found(values, path=""):
        for key, value in values.items() if isinstance(values, dict) else []:
            here = f"{path}.{key}"
            if isinstance(value, dict):
                yield from found(value, here)
            elif secret.search(key) and value and not key.endswith("existingSecret"):
                yield here

    # The names of Secrets are no secrets.
    assert set(found(yaml.safe_load(file.read_text()))) <= {
        ".airflow.dags.gitSync.credentialsSecret"
    }


def secrets(manifests):
    return {
        s["metadata"]["name"]: {k: base64.b64decode(v).decode() for k, v in s["data"].items()}
        for s in manifests.of("Secret")
    }


@pytest.mark.parametrize("major", [3, 4])
def test_upgrade_keeps_passwords_and_keys(major):
    found = secrets(render(environment="local", cluster=KEPT, major=major))
    url = "postgresql://airflow:kept%2Fdatabase%2Bpassword@ml-pipelines-postgres.ml-pipelines:5432"
    expected = {name: dict(data) for name, data in KEPT.items()}
    expected["ml-pipelines-metadata"]["connection"] = f"{url}/airflow"
    assert found == expected


def test_install_draws_new_ones():
    first, second = (secrets(render(environment="local", cluster={})) for _ in range(2))
    assert set(first) == set(KEPT)
    for name, data in first.items():
        for key, text in data.items():
            assert text != second[name][key], f"{name}.{key} is not random"
            assert len(text) >= 24
    # Fernet takes the URL-safe alphabet only.
    key = first["ml-pipelines-fernet-key"]["fernet-key"]
    assert len(base64.b64decode(key, altchars=b"-_", validate=True)) == 32
    password = first["ml-pipelines-metadata"]["password"]
    assert f"airflow:{password}@" in first["ml-pipelines-metadata"]["connection"]


@pytest.mark.parametrize("major", [3, 4])
def test_secrets_show_in_secrets_only(major):
    wandb = {"wandb": {"enabled": True, "apiKey": "wandb-api-key"}, "mlflow": {"enabled": False}}
    manifests = render(wandb, environment="local", cluster=KEPT, major=major)
    drawn = [text for data in secrets(manifests).values() for text in data.values()]
    assert "wandb-api-key" in drawn
    rest = yaml.safe_dump([o for o in manifests.objects if o["kind"] != "Secret"])
    assert [text for text in drawn if text in rest] == []
    encoded = [base64.b64encode(text.encode()).decode() for text in drawn]
    assert [text for text in encoded if text in rest] == []


def test_existing_secrets_reach_the_pods():
    manifests = render(
        {
            "admin": {"existingSecret": "my-admin", "secretKey": "pw"},
            "postgres": {"existingSecret": "my-postgres"},
            "secrets": {"metadata": {"create": False}},
            "airflow": {"data": {"metadataSecretName": "my-metadata"}},
        },
        environment="local",
    )
    references = {
        (c.spec["name"], e["name"]): (ref["name"], ref["key"])
        for c in manifests.containers()
        for e in c.spec.get("env") or []
        if (ref := e.get("valueFrom", {}).get("secretKeyRef"))
    }
    assert references["admin-user", "ADMIN_PASSWORD"] == ("my-admin", "pw")
    assert references["test", "ADMIN_PASSWORD"] == ("my-admin", "pw")
    connection = {
        ref for (_, name), ref in references.items() if name.endswith("__SQL_ALCHEMY_CONN")
    }
    assert connection == {("my-metadata", "connection")}
    postgres = manifests.one("StatefulSet", "ml-pipelines-postgres")["spec"]["template"]["spec"]
    mounted = {v["secret"]["secretName"] for v in postgres["volumes"] if "secret" in v}
    assert mounted == {"my-postgres"}


def test_first_user_is_made_by_the_setup_job_only():
    """Its password is in the environment of one container, and never an argument."""
    manifests = rendered("production")
    holders = {
        c.where.split("/", 1)[0] for c in manifests.containers() if "ADMIN_PASSWORD" in c.env
    }
    assert holders == {"Job", "Pod"}
    (user,) = [c for c in manifests.containers() if c.spec["name"] == "admin-user"]
    script = user.spec["args"][-1]
    assert "--password" not in script
    assert " -p " not in script
