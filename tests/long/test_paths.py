"""The ways to the chart, with Helm 3 and 4: install, `helm test`, upgrade, rollback, uninstall.

On one cluster, which is deleted at the end. The paths to it differ in the objects that they make,
not in what these do: so the releases have no MLflow and no triggerer, and their upgrade is one that
restarts nothing. The whole of Airflow, and an upgrade that replaces every pod, are in the way from
the last release, and in tests/e2e/test_install.py.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlctl.base.names import NAMESPACE, RELEASE
from mlctl.base.paths import CHART, ROOT
from mlctl.base.progress import Phases
from mlctl.builder.build import built
from mlctl.clients.kube import Kube
from mlctl.clients.pods import describe_trouble
from mlctl.release.chart import dependency
from mlctl.release.release import Release, merge, package_chart, values_files
from mlctl.stack import Stack
from tests.helpers.helm import program
from tests.helpers.registry import registry
from tests.helpers.releases import helm, helm_of
from tests.long.conftest import own_cluster

LAST_RELEASE = "42dc59c2bf400763fe7d9da851dccdad5975bbaa"
"""The commit whose chart people have: the one before read-only roots, metrics and one pod per task
came with new defaults. To be moved on with each version of the chart."""

TIMEOUT = ("--wait", "--timeout", "1500s")
KINDS = "deployments,statefulsets,jobs,cronjobs,services,configmaps,serviceaccounts"

SECRETS = {
    "login": {"password": "of-the-first-user"},
    "ml-pipelines-metadata": {
        "password": "of-the-database",
        "connection": f"postgresql://airflow:of-the-database@{RELEASE}-postgres:5432/airflow",
    },
    "ml-pipelines-fernet-key": {"fernet-key": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="},
    "ml-pipelines-webserver-secret-key": {"webserver-secret-key": "of-the-sessions"},
}
"""As a render without a cluster wants them. All releases here take them, in any order."""

OWN_SECRETS: dict[str, Any] = {
    "admin": {"existingSecret": "login"},
    "postgres": {"existingSecret": "ml-pipelines-metadata"},
    "secrets": {
        name: {"create": False} for name in ("metadata", "fernetKey", "webserverSecretKey")
    },
}
SMALL: dict[str, Any] = {
    "mlflow": {"enabled": False, "trackingUri": "http://mlflow.example.com"},
    "airflow": {"triggerer": {"enabled": False}},
    # kubectl takes objects of one namespace.
    "pipelines": {"namespaces": []},
}

pytestmark = pytest.mark.timeout(3600)


@dataclass(frozen=True)
class Way:
    """What helm is told of a chart, and how values reach ours in it."""

    words: tuple[str, ...]
    values: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A cluster with the images and the namespace's Secrets."""
    with own_cluster() as made:
        made.prepare(Phases())
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        made.kube.apply(namespace)
        for name, keys in SECRETS.items():
            metadata = {"name": name}
            made.kube.apply(
                {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys}
            )
        yield made


@pytest.fixture
def release(stack: Stack) -> Iterator[Release]:
    """The release with the values of this machine, which is removed at the end."""
    found = stack.release(built())
    yield found
    found.uninstall()


@pytest.fixture(scope="module")
def package() -> Path:
    return package_chart()


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A place for charts in a registry."""
    with registry(tmp_path_factory.mktemp("registry")) as address:
        yield f"oci://{address}/charts"


@pytest.fixture(params=["package", "registry", "umbrella"])
def way(request: pytest.FixtureRequest, major: int, package: Path, tmp_path: Path) -> Way:
    """Where helm takes the chart from."""
    if request.param == "package":
        return Way((str(package),))
    charts: str = request.getfixturevalue("charts")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    run(major, "push", package, charts, "--plain-http")
    if request.param == "registry":
        return Way((f"{charts}/{CHART.name}", "--version", version, "--plain-http"))
    chart = {
        "apiVersion": "v2",
        "name": "platform",
        "version": "1.0.0",
        "dependencies": [{"name": CHART.name, "version": version, "repository": charts}],
    }
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    run(major, "dependency", "update", tmp_path, "--plain-http")
    return Way((str(tmp_path),), lambda values: {CHART.name: values})


def run(major: int, *words: str | Path) -> str:
    """Return what a Helm without a cluster prints. Raises AssertionError with its errors."""
    done = subprocess.run([program(major), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def all_values(release: Release, *more: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all files in one, of this machine, and more, later ones winning."""
    found: dict[str, Any] = {}
    for file in values_files():
        found = merge(found, yaml.safe_load(file.read_text()))
    for values in (release.values, OWN_SECRETS, *more):
        found = merge(found, values)
    return found


def model(name: str) -> dict[str, Any]:
    """Values that change what the DAGs are told, and no pod."""
    return {"pipelines": {"model": {"name": name}}}


def told(stack: Stack) -> str:
    return stack.installed_settings()["model"]["name"]


def left(kube: Kube) -> set[str]:
    """Return what there is beside what each namespace has."""
    found = {f"{one['kind']}/{one['metadata']['name']}" for one in kube.items(KINDS)}
    return found - {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}


def generations(kube: Kube) -> dict[str, int]:
    """Return uid -> generation of what runs pods: a change of either starts others."""
    found = kube.items("deployments,statefulsets,cronjobs")
    return {one["metadata"]["uid"]: one["metadata"]["generation"] for one in found}


def helm_waits(release: Release, *words: str) -> None:
    try:
        helm(release, *words, *TIMEOUT)
    except AssertionError as error:
        error.add_note(describe_trouble(release.kube))
        raise


def helm_test(release: Release) -> None:
    assert "Succeeded" in helm(release, "test", RELEASE, "--timeout", "600s")


@pytest.mark.parametrize("major", [3, 4])
def test_a_release_from_there(
    stack: Stack, release: Release, way: Way, major: int, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"

    def bring(name: str) -> None:
        # JSON is YAML.
        file.write_text(json.dumps(way.values(all_values(release, SMALL, model(name)))))
        words = ("upgrade", "--install", RELEASE, *way.words, "--values", str(file))
        helm_waits(release, *words)

    with helm_of(major):
        bring("first")
        helm_test(release)
        pods = {pod["metadata"]["uid"] for pod in release.pods()}
        bring("second")
        assert told(stack) == "second"
        helm_waits(release, "rollback", RELEASE, "1")
        assert told(stack) == "first"
        assert {pod["metadata"]["uid"] for pod in release.pods()} == pods
        release.uninstall()
    assert left(release.kube) == set()


@pytest.mark.parametrize("major", [3, 4])
def test_the_last_release_is_upgraded_with_its_own_values(
    stack: Stack, release: Release, major: int, tmp_path: Path
) -> None:
    """From folder to folder, with all of Airflow."""
    archive = subprocess.run(
        ["git", "archive", LAST_RELEASE, "charts/ml-pipelines"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    subprocess.run(["tar", "--extract"], cwd=tmp_path, input=archive.stdout, check=True)
    before = tmp_path / "charts" / CHART.name
    (before / "charts").mkdir()
    shutil.copy(dependency(), before / "charts")
    file = tmp_path / "my.yaml"
    file.write_text(json.dumps(all_values(release, model("of-before"))))

    with helm_of(major):
        helm_waits(release, "install", RELEASE, str(before), "--values", str(file))
        values = helm(release, "get", "values", RELEASE)
        upgrade = ("upgrade", RELEASE, str(CHART))
        helm_waits(release, *upgrade, "--reset-then-reuse-values")
        assert helm(release, "get", "values", RELEASE) == values
        assert told(stack) == "of-before"
        upgraded = helm(release, "get", "manifest", RELEASE)
        helm_test(release)
        # As with all values given again.
        helm_waits(release, *upgrade, "--values", str(file))
        assert helm(release, "get", "manifest", RELEASE) == upgraded
        helm_waits(release, "rollback", RELEASE, "1")
        helm_test(release)
        release.uninstall()
    assert left(release.kube) == set()


@pytest.mark.parametrize("major", [3, 4])
def test_a_release_without_records_of_helm(
    stack: Stack, release: Release, major: int, tmp_path: Path
) -> None:
    """`helm template` and `kubectl apply`, as GitOps tools do."""
    dependency()
    kube = release.kube
    file = tmp_path / "my.yaml"
    renders: dict[str, str] = {}
    for name in ("first", "second"):
        file.write_text(json.dumps(all_values(release, SMALL, model(name))))
        words = ["template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", file]
        renders[name] = run(major, *words, "--skip-tests")
    test = run(major, *words, "--show-only", "templates/tests/pod.yaml")
    # Of a release of before.
    kube.run("delete", "--filename", "-", "--ignore-not-found", stdin=test)
    try:
        for name in ("first", "second", "first"):
            kube.run("apply", "--filename", "-", stdin=renders[name])
            with Phases().phase(f"apply {name}") as phase:
                release.wait_ready(phase, 1500)
            assert told(stack) == name
            before = generations(kube)
            kube.run("apply", "--filename", "-", stdin=renders[name])
            assert generations(kube) == before
        kube.run("apply", "--filename", "-", stdin=test)
        succeeds = ("wait", "--filename", "-", "--for=jsonpath={.status.phase}=Succeeded")
        kube.run(*succeeds, "--timeout=600s", stdin=test, timeout=610)
    finally:
        kube.run("delete", "--filename", "-", "--wait", stdin=renders["first"], timeout=600)
    assert left(kube) == set()
