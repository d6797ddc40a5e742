"""`helm template` and `helm lint` of the project's chart."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from configparser import RawConfigParser, SectionProxy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mlctl.base import wheels
from mlctl.base.paths import CHART, VALUES
from tests.helpers.api_server import api_server
from tests.helpers.manifests import Manifests
from tests.helpers.pages import blocks

OLDEST_KUBERNETES = "1.29"
ENVIRONMENTS = ("local", "staging", "production")
AIRFLOW_3 = "airflow3"
# Each with the file of Airflow 3 on top; of those a test needs no more than the two ends.
ON_BOTH = (*ENVIRONMENTS, f"local {AIRFLOW_3}", f"production {AIRFLOW_3}")

# Parts of the official chart that are off in every environment.
OPTIONAL_PARTS: dict[str, Any] = {
    "dagProcessor": {"enabled": True},
    "cleanup": {"enabled": True},
    "statsd": {"enabled": True},
    "pgbouncer": {
        "enabled": True,
        "configSecretName": "pgbouncer",
        "metricsExporterSidecar": {"statsSecretName": "stats"},
    },
}

# What PgBouncer wants of the local database: somebody else's Secrets.
OWN_DATABASE_SECRET: dict[str, Any] = {
    "postgres": {"existingSecret": "database"},
    "secrets": {"metadata": {"create": False}},
}

# What an install on one's own machine needs; the command adds it to values/local.yaml, and the
# directory of the training storage.
MACHINE: dict[str, Any] = {
    "airflow": {"dags": {"gitSync": {"repo": "git://10.244.0.1/dags.git", "ref": "live"}}},
    "images": {"classicExample": {"repository": "localhost/classic-example", "tag": "1.0.0-abc"}},
}
LOCAL = {**MACHINE, "storage": {"local": {"path": "/var/lib/training", "nodeName": "node0"}}}

# The Secrets of an earlier install.
KEPT = {
    "ml-pipelines-admin": {"password": "kept-admin-password"},
    "ml-pipelines-metadata": {"password": "kept/database+password", "connection": "old"},
    "ml-pipelines-fernet-key": {"fernet-key": "kept-fernet-key"},
    "ml-pipelines-webserver-secret-key": {"webserver-secret-key": "kept-webserver-key"},
}


class HelmError(Exception):
    """Helm refused; the text is its standard error."""


@cache
def page(language: str) -> list[str]:
    """Return the blocks of docs/production.md in a language, in their order."""
    return [block.text for block in blocks("docs/production.md", language)]


def production(airflow_3: bool = False) -> dict[str, Any]:
    """Return what the page says to set on top of values/production.yaml."""
    values = yaml.safe_load(page("yaml")[0])
    if airflow_3:
        config = values["airflow"]["config"]
        config["api"] = config.pop("webserver")
    return values


def program(major: int = 4) -> str:
    """Return the path of the helm to test with: HELM, or the pinned one of a major version."""
    if major == 3:
        return str(wheels.program("helm", "helm3"))
    return os.environ.get("HELM") or str(wheels.helm())


def run(*arguments: str | Path, major: int = 4) -> str:
    """Run helm and return what it printed. Raises HelmError."""
    words = [program(major), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as directory:
        # No kubeconfig and no cache of the person who runs the tests. Without its garbage
        # collector helm takes a sixth less time, and 105 MB.
        env = {**os.environ, "KUBECONFIG": "/dev/null", "KUBECACHEDIR": directory, "GOGC": "off"}
        result = subprocess.run(words, capture_output=True, text=True, env=env)
    if result.returncode != 0:
        raise HelmError(result.stderr.strip() or result.stdout.strip())
    return result.stdout


def render(
    *values: Mapping[str, Any],
    environment: str | None = None,
    release: str = "ml-pipelines",
    namespace: str = "ml-pipelines",
    major: int = 4,
    cluster: Mapping[str, Mapping[str, str]] | None = None,
    options: tuple[str, ...] = (),
) -> Manifests:
    """Render the chart with values/<environment>.yaml and more values, later ones winning.

    The environment may be several files: ``local airflow3``. What it leaves to those who install it
    is filled in.

    ``cluster`` holds Secrets (name -> key -> text) that `lookup` shall find. Raises HelmError.
    """
    with tempfile.TemporaryDirectory() as directory:
        arguments: list[str | Path] = ["--namespace", namespace, *options]
        if environment is not None:
            for name in environment.split():
                arguments += ["--values", VALUES / f"{name}.yaml"]
        if environment is None:
            values = ({**MACHINE, "profile": "local"}, *values)
        else:
            local = environment.startswith("local")
            values = (LOCAL if local else production(AIRFLOW_3 in environment), *values)
        for number, content in enumerate(values):
            file = Path(directory) / f"{number}.json"
            # JSON: YAML leaves `n` and `y` bare, which Helm reads as booleans.
            file.write_text(json.dumps(dict(content)))
            arguments += ["--values", file]
        if cluster is None:
            text = run("template", release, CHART, *arguments, major=major)
        else:
            with api_server({k: dict(v) for k, v in cluster.items()}, release, namespace) as url:
                arguments += ["--dry-run=server", "--disable-openapi-validation"]
                arguments += ["--kube-apiserver", url]
                text = run("template", release, CHART, *arguments, major=major)
    return Manifests(text)


@cache
def rendered(environment: str, major: int = 4) -> Manifests:
    """Return the render of values/<environment>.yaml; do not change it, it is shared."""
    return render(environment=environment, major=major)


def airflow_config(section: str) -> SectionProxy:
    """Return a section of the airflow.cfg of values/local.yaml, as Airflow reads it."""
    config = RawConfigParser()
    data = rendered("local").one("ConfigMap", "ml-pipelines-config")["data"]
    config.read_string(data["airflow.cfg"])
    return config[section]
