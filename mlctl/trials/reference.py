"""What this project is measured against: a stock operator on the official chart as it comes.

Beside the release, in a namespace of its own: the chart that ours depends on, with its own
defaults, and the document's KubernetesPodOperator. It runs this project's images, as no others are
on the cluster: a worker's packages are as quick to load here as there.
"""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from mlctl.base.errors import output
from mlctl.base.names import AIRFLOW_PORT
from mlctl.base.progress import Phases
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.clients.database import USER
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube
from mlctl.release.chart import dependency
from mlctl.release.images import reference as image_of
from mlctl.release.release import Release, airflow_version
from mlctl.stack import Stack

NAME = "bench-reference"
"""Of namespace and release."""
DAG_ID = "bench_reference_dag"
START_SECONDS = 900
LOGIN = "admin"
"""User and password that the official chart makes."""


def dag(image: str, tasks: list[str]) -> str:
    """Return the file of a DAG of these tasks, one after the other, that do nothing."""
    return f'''"""Five tasks that do nothing, with the document's operator."""

from datetime import UTC, datetime

from airflow import DAG
from airflow.models.baseoperator import chain
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

with DAG(
    dag_id="{DAG_ID}", schedule=None, start_date=datetime(2021, 1, 1, tzinfo=UTC), catchup=False
):
    chain(
        *(
            KubernetesPodOperator(
                name=name,
                task_id=name,
                image="{image}",
                cmds=["true"],
                namespace="{NAME}",
                is_delete_operator_pod=False,
                startup_timeout_seconds=600,
            )
            for name in {tasks}
        )
    )
'''


def words(release: dict[str, Any]) -> list[str]:
    """Return what helm has to be told beyond the official chart: images, database and DAGs.

    ``release`` are the values of the release beside it.
    """
    ours = release["airflow"]
    values = {
        "executor": "KubernetesExecutor",
        "airflowVersion": ours["airflowVersion"],
        "defaultAirflowRepository": ours["defaultAirflowRepository"],
        "defaultAirflowTag": ours["defaultAirflowTag"],
        "images": {"gitSync": ours["images"]["gitSync"]},
        "dags": {
            "gitSync": {"enabled": True, "branch": "", "rev": ""}
            | {key: ours["dags"]["gitSync"][key] for key in ("repo", "ref", "subPath")}
        },
        # Its images are nowhere here.
        "statsd": {"enabled": False},
        "postgresql": {"enabled": False},
        "data": {
            "metadataConnection": {"host": "postgres", "user": NAME, "pass": NAME, "db": NAME}
        },
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return [word for pair in pairs for word in ("--set-json", pair)]


def database(image: str) -> list[dict[str, Any]]:
    """Return a pod with PostgreSQL, and its Service."""
    metadata = {"name": "postgres", "labels": {"app": "postgres"}}
    names = ("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD")
    pod = {
        "securityContext": {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
        "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [
            {
                "name": "postgres",
                "image": image,
                "env": [
                    *({"name": name, "value": NAME} for name in names),
                    {"name": "PGDATA", "value": "/data/pgdata"},
                ],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ],
    }
    service = {"selector": metadata["labels"], "ports": [{"port": 5432}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]


@contextmanager
def installed(stack: Stack, phases: Phases) -> Iterator[Airflow]:
    """Give the Airflow of the official chart beside the release, which shows DAG_ID, for a block.

    That DAG's file must be published before. Raises UserError when it does not come up.
    """
    ours = stack.release().installed_values()
    kube = Kube(stack.kube.kubeconfig, NAME)
    try:
        with phases.phase("install the official chart beside it") as phase:
            kube.run("create", "namespace", NAME)
            for one in database(image_of(ours, "postgres")):
                kube.apply(one)
            install = ["install", NAME, str(dependency()), "--timeout", f"{START_SECONDS}s"]
            helm = Release(kube, {}, NAME).helm(*install, *words(ours))
            phase.note("its database is made")
            output(helm, "the official chart cannot be installed")
        with closing(Forward(kube, f"{NAME}-webserver", AIRFLOW_PORT)) as connection:
            airflow = Airflow(connection, LOGIN, LOGIN, version=airflow_version(ours))
            with phases.phase(f"wait for {DAG_ID}") as phase:
                wait = ("rollout", "status", "--timeout", f"{START_SECONDS}s")
                for one in (f"deployment/{NAME}-webserver", f"deployment/{NAME}-scheduler"):
                    phase.note(one)
                    kube.run(*wait, one, timeout=START_SECONDS + 10)
                until(START_SECONDS, lambda: airflow.dag(DAG_ID), f"{DAG_ID} does not show")
            airflow.unpause(DAG_ID)
            yield airflow
    finally:
        with phases.phase("remove the official chart"):
            gone = ("delete", "namespace", NAME, "--ignore-not-found", "--timeout=300s")
            kube.run(*gone, timeout=310)
