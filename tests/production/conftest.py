"""values/production.yaml as docs/production.md fills it, on an embedded cluster of its own.

What the page takes for granted is made here: outside of the release a database behind PgBouncer, an
MLflow and a Prometheus; a class whose volumes are as plain NFS gives them, and a program that
enforces NetworkPolicies.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlctl.base.packages import ensure_packages
from mlctl.base.paths import VALUES
from mlctl.base.progress import Phase, Phases
from mlctl.base.waiting import until
from mlctl.base.wheels import kubectl
from mlctl.builder.build import built
from mlctl.clients.kube import Kube
from mlctl.cluster.embedded.components import NETWORK_POLICIES
from mlctl.release.release import Release, image_values, merge
from mlctl.stack import Stack
from tests.helpers.helm import page, production
from tests.helpers.metrics import JOB, operator_crd, scraping
from tests.helpers.ports import free_port

SERVICES = "services"
"""The namespace of what the release finds there already."""

DATABASE = "airflow"
PASSWORD = "of-the-database"
NFS = "plain-nfs"
DUMPS = "dumps"
METRICS = VALUES / "parts" / "metrics.yaml"
PROMETHEUS, PROMETHEUS_PORT = "prometheus", 9090
WAIT_SECONDS = 600

Aloud = Callable[[str], AbstractContextManager[Phase]]


@pytest.fixture(scope="session")
def aloud() -> Aloud:
    """Show the progress of long waits on the terminal."""
    return Phases().phase


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The cluster with the images, and beside the release's namespace all that it needs."""
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    mine = tmp_path_factory.mktemp("values") / "my.yaml"
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("CLUSTER", "embedded")
        environ.setenv("CLUSTER_NAME", os.environ.get("CLUSTER_NAME") or "ml-pipelines-production")
        environ.setenv("API_PORT", os.environ.get("API_PORT") or str(free_port()))
        environ.setenv("ENV", "production")
        # With the exporter among the images.
        environ.setenv("VALUES", str(METRICS))
        found = Stack()
        found.cluster.clean(Phases())
        found.prepare(Phases())
        mine.write_text(yaml.safe_dump(values(found)))
        environ.setenv("VALUES", str(mine))
        found.cluster.component("start", NETWORK_POLICIES)
        yield found
        if not os.environ.get("KEEP"):
            found.cluster.clean(Phases())


def values(stack: Stack) -> dict[str, Any]:
    """What the page says to set, with what is different here."""
    small = {"resources": {"requests": {"cpu": "100m"}}}
    here = {
        # By tag: no registry could be asked for a digest.
        "images": {"classicExample": {"digest": ""}},
        "storage": {"storageClassName": NFS, "size": "1Gi"},
        "logs": {"storageClassName": NFS, "size": "1Gi"},
        "setup": {"dump": {"claimName": DUMPS}},
        # As the page's table has it for an MLflow of one's own.
        "wandb": {"enabled": False, "existingSecret": ""},
        "mlflow": {"trackingUri": f"http://mlflow.{SERVICES}:5000"},
        "networkPolicies": {
            "ingress": [peer("ingress-nginx")],
            "egress": [{"to": [peer(SERVICES)], "ports": [{"port": 5000}]}],
            "scrapers": [peer(SERVICES)],
        },
        "pipelines": {"tasks": {"train_model": {"env": {"TRAIN_MAX_STEPS": "20"}}}},
        "airflow": {
            # Two cores here, and two of each.
            "scheduler": small,
            "webserver": small,
            "ingress": {
                "web": {"enabled": True, "hosts": [{"name": "airflow.example.com"}]},
            },
            "dags": stack.cluster.values()["airflow"]["dags"],
        },
    }
    metrics = yaml.safe_load(METRICS.read_text())
    return merge(merge(merge(production(), image_values(built())), metrics), here)


def peer(namespace: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}


@pytest.fixture(scope="session")
def services(stack: Stack) -> Kube:
    """Database, PgBouncer and MLflow as others run them, and the storage class."""
    ensure_packages("PgBouncer and Prometheus of the test", ["pgbouncer", "prometheus"])
    kube = Kube(stack.cluster.kubeconfig, SERVICES)
    kube.run("create", "namespace", SERVICES)
    kube.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": NFS},
            "provisioner": "ml-pipelines/directory",
            "parameters": {"likeNFS": "true"},
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    )
    images = {name: f"{one['repository']}:{one['tag']}" for name, one in built().items()}
    serve(
        kube,
        "postgres",
        5432,
        {
            "image": images["postgres"],
            "env": [
                {"name": "POSTGRES_USER", "value": DATABASE},
                {"name": "POSTGRES_DB", "value": DATABASE},
                {"name": "POSTGRES_PASSWORD", "value": PASSWORD},
                {"name": "PGDATA", "value": "/data/pgdata"},
            ],
        },
        user=999,
    )
    serve(
        kube,
        "mlflow",
        5000,
        {
            "image": images["classic-example-environment"],
            "args": [
                *("mlflow", "server", "--backend-store-uri=sqlite:////data/mlflow.db"),
                *("--artifacts-destination=/data/artifacts", "--host=0.0.0.0", "--port=5000"),
                *("--workers=1", f"--allowed-hosts=mlflow.{SERVICES}:5000"),
            ],
            "env": [
                {"name": "HOME", "value": "/data"},
                {"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"},
            ],
        },
        user=10001,
    )
    bouncer(kube, images["postgres"])
    prometheus(kube, images["postgres"])
    kube.run(
        *("wait", "pods", "--all", "--for=condition=Ready", f"--timeout={WAIT_SECONDS}s"),
        timeout=WAIT_SECONDS + 10,
    )
    return kube


def serve(
    kube: Kube,
    name: str,
    port: int,
    container: dict[str, Any],
    *,
    user: int,
    volumes: list[dict[str, Any]] | None = None,
) -> None:
    """Run a plain pod that listens on a port, with an empty /data, and a Service for it."""
    probe = {"tcpSocket": {"port": port}, "periodSeconds": 2}
    mounts = [{"name": "data", "mountPath": "/data"}, *container.pop("volumeMounts", [])]
    spec = {
        "containers": [{"name": name, "readinessProbe": probe, "volumeMounts": mounts} | container],
        "securityContext": {"runAsUser": user, "runAsGroup": user, "fsGroup": user},
        "volumes": [{"name": "data", "emptyDir": {}}, *(volumes or [])],
    }
    labels = {"app": name}
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": spec,
        }
    )
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"port": port}]},
        }
    )


def bouncer(kube: Kube, image: str) -> None:
    """Run this machine's PgBouncer in a pod, with the page's configuration."""
    (block,) = [text for text in page("sh") if "pgbouncer.ini" in text]
    ini = block.partition("<<END\n")[2].partition("END\n")[0]
    for word, meant in {
        "server_tls_sslmode = require": "server_tls_sslmode = prefer",
        "HOST": f"postgres.{SERVICES}",
        "DATABASE": DATABASE,
        "USER": DATABASE,
        "PASSWORD": PASSWORD,
        "/etc/pgbouncer/": "/config/",
    }.items():
        ini = ini.replace(word, meant)
    files = {"pgbouncer.ini": ini, "users.txt": f'"{DATABASE}" "{PASSWORD}"\n'}
    command = ["/usr/sbin/pgbouncer", "/config/pgbouncer.ini"]
    serve_from_here(kube, "pgbouncer", 6543, command, files, image)


def prometheus(kube: Kube, image: str) -> None:
    """Run this machine's Prometheus in a pod, and give the cluster the Operator's kinds.

    The Operator itself would make this configuration out of the release's ServiceMonitor.
    """
    for kind in ("servicemonitors", "prometheusrules"):
        kube.run("create", "--filename", str(operator_crd(kind)))
    address = f"{JOB['job']}.{JOB['namespace']}:9102"
    files = {"prometheus.yml": yaml.safe_dump({"scrape_configs": scraping(address, "5s")})}
    options = ["--config.file=/config/prometheus.yml", "--storage.tsdb.path=/data"]
    command = ["/usr/bin/prometheus", *options]
    serve_from_here(kube, PROMETHEUS, PROMETHEUS_PORT, command, files, image)


def serve_from_here(
    kube: Kube, name: str, port: int, command: list[str], files: dict[str, str], image: str
) -> None:
    """Serve a program that is installed on this machine; /config has its files."""
    metadata = {"name": name}
    kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files})
    places = {"programs": "/usr", "libraries": "/lib", "loader": "/lib64"}
    serve(
        kube,
        name,
        port,
        {
            "image": image,
            "command": command,
            "volumeMounts": [
                {"name": "config", "mountPath": "/config"},
                *(
                    {"name": place, "mountPath": path, "readOnly": True}
                    for place, path in places.items()
                ),
            ],
        },
        user=65534,
        volumes=[
            {"name": "config", "secret": {"secretName": name}},
            *({"name": place, "hostPath": {"path": path}} for place, path in places.items()),
        ],
    )


@pytest.fixture(scope="session")
def namespace(stack: Stack, services: Kube, tmp_path_factory: pytest.TempPathFactory) -> Kube:
    """The release's namespace, its Secrets by the commands of the page, and a claim for dumps."""
    directory = tmp_path_factory.mktemp("secrets")
    key = directory / "api-key"
    key.write_text("0" * 40)
    config = directory / "kubeconfig"
    config.write_text(Path(stack.cluster.kubeconfig).read_text())
    url = f"postgresql://{DATABASE}:{PASSWORD}@pgbouncer.{SERVICES}:6543/{DATABASE}"
    named, secrets = page("sh")[:2]
    direct = url.replace("pgbouncer", "postgres").replace("6543", "5432")
    script = named + secrets.replace(
        "connection='postgresql://USER:PASSWORD@HOST:5432/DATABASE?sslmode=require'",
        f"connection='{url}' --from-literal=direct='{direct}'",
    ).replace("api-key=FILE", f"api-key={key}")
    path = f"{Path(str(kubectl())).parent}:{os.environ['PATH']}"
    env = os.environ | {"KUBECONFIG": str(config), "PATH": path}
    done = subprocess.run(["sh", "-euc", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = {"requests": {"storage": "1Gi"}}
    stack.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": DUMPS},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": size},
        }
    )
    return stack.kube


@pytest.fixture(scope="session")
def release(stack: Stack, namespace: Kube, aloud: Aloud) -> Release:
    """The release of the page's files."""
    found = Release(namespace, {}, stack.cluster.name)
    install(stack, found, aloud)
    return found


def install(stack: Stack, release: Release, aloud: Aloud, *extra: str) -> None:
    """Install while somebody gives the volumes the mode that the release asks for."""
    with watched(stack, release), aloud("install") as phase:
        release.deploy(phase, extra=extra)


@contextmanager
def watched(stack: Stack, release: Release) -> Iterator[None]:
    """Give the volumes the mode that the release's Jobs ask for, while the block installs it."""
    ended = threading.Event()

    def mend() -> None:
        until(WAIT_SECONDS, lambda: ended.is_set() or told(release.kube), "no Job says anything")
        for volume in Path(stack.cluster.config.volumes).iterdir():
            volume.chmod(0o777)

    with ThreadPoolExecutor(1) as pool:
        mending = pool.submit(mend)
        try:
            yield
        finally:
            ended.set()
        mending.result()


def told(kube: Kube) -> bool:
    """Say whether both Jobs have said that they cannot write, and who owns the volume's root."""
    logs = [
        kube.run("logs", "--selector", f"app.kubernetes.io/component={name}", check=False).stdout
        for name in ("storage", "logs")
    ]
    return all("must be able to write" in log for log in logs)
