"""What `make status` knows of a release: one object, for the terminal and for scripts."""

import json
from contextlib import closing
from typing import Any

import requests

from mlctl.base.errors import UserError
from mlctl.base.names import MLFLOW_PORT, MLFLOW_SERVICE
from mlctl.clients.airflow import Airflow
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube, KubectlError
from mlctl.clients.mlflow import Mlflow
from mlctl.clients.pods import component, is_ready, restarts, state
from mlctl.release.release import Status
from mlctl.stack import Stack

FORWARD_SECONDS = 10


def state_of(stack: Stack, status: Status) -> dict[str, Any]:
    """Return what there is of a release: `release`, `pods`, `dags`, `model`, `storage`, `pages`.

    Nothing is waited for: what does not serve now is None. A page without a public address is ''.
    `status` is what Helm says of it. Raises UserError when Airflow refuses.
    """
    values = stack.release().installed_values()
    pods = stack.kube.items("pods")
    serving = {component(pod) for pod in pods if is_ready(pod)}
    return {
        "release": {"state": status.state, "revision": status.revision},
        "pods": [
            {
                "name": pod["metadata"]["name"],
                "ready": is_ready(pod),
                "state": state(pod),
                "restarts": restarts(pod),
            }
            for pod in pods
        ],
        "triggerer": values["airflow"]["triggerer"]["enabled"],
        "dags": dags(stack) if "webserver" in serving else None,
        "model": model(stack, values, serves="mlflow" in serving),
        "storage": storage(stack.kube),
        "pages": {
            "airflow": public_address(values),
            # A release of before knows no pageUrl.
            "mlflow": values["mlflow"].get("pageUrl") or values["mlflow"]["trackingUri"],
            "user": values["admin"]["username"],
            "kubeconfig": str(stack.cluster.kubeconfig),
        },
    }


def dags(stack: Stack) -> list[dict[str, Any]]:
    """Return each DAG with its newest run, and what that came to or why it has failed."""
    found = []
    with stack.airflow() as airflow:
        for dag in airflow.dags():
            run = airflow.newest_run(dag["dag_id"]) or {}
            found.append(
                {
                    "dag_id": dag["dag_id"],
                    "paused": dag["is_paused"],
                    "state": run.get("state"),
                    "run_id": run.get("dag_run_id"),
                    "told": told(airflow, dag["dag_id"], run),
                }
            )
    return found


def told(airflow: Airflow, dag_id: str, run: dict[str, Any]) -> list[str]:
    """Return the lines of a run's note, of a failed one those that say why."""
    lines = [line.removeprefix("- ") for line in (run.get("note") or "").splitlines()]
    if run.get("state") != "failed":
        return lines
    return [line for line in lines if ": failed: " in line] or [
        f"{task.name}: failed"
        for task in airflow.tasks(dag_id, run["dag_run_id"])
        if task.state == "failed"
    ]


def model(stack: Stack, values: dict[str, Any], *, serves: bool) -> dict[str, Any]:
    """Return the model's name, its registry, and of the release's own MLflow the versions.

    `newest` and `champion`, the version with the alias, are None where they are not known, and ''
    where there is none.
    """
    wanted = stack.settings["model"]
    of_wandb = values["wandb"]["enabled"]
    found = {
        "name": wanted["name"],
        "registry": "wandb" if of_wandb else "mlflow",
        "alias": wanted["alias"],
        "champion": None,
        "newest": None,
    }
    if of_wandb or not serves:
        return found
    with closing(Forward(stack.kube, MLFLOW_SERVICE, MLFLOW_PORT)) as forward:
        try:
            forward.ensure(FORWARD_SECONDS)
            mlflow = Mlflow(forward)
            versions = [int(one["version"]) for one in mlflow.versions(wanted["name"])]
            aliases = mlflow.aliases(wanted["name"]) if versions else {}
        except (UserError, requests.RequestException):
            return found
    newest = f"v{max(versions)}" if versions else ""
    aliases["latest"] = newest
    return found | {"newest": newest, "champion": aliases.get(wanted["alias"], "")}


def storage(kube: Kube) -> dict[str, list[dict[str, Any]]]:
    """Return the `claims` of the namespace, and the disks of the `nodes`, with bytes `used`.

    The kubelets know what is used, of what a pod has mounted; whoever may not ask them gets no
    nodes. Of a claim on a node's own disk `used` is None: that disk is the one which fills up.
    """
    nodes, used = [], {}
    try:
        for node in kube.items("nodes"):
            name = node["metadata"]["name"]
            path = f"/api/v1/nodes/{name}/proxy/stats/summary"
            stats = json.loads(kube.run("get", "--raw", path).stdout)
            disk = stats["node"]["fs"]
            nodes.append(
                {"name": name, "used": disk["usedBytes"], "capacity": disk["capacityBytes"]}
            )
            for volume in (one for pod in stats["pods"] for one in pod.get("volume", [])):
                claim = volume.get("pvcRef", {})
                own = volume.get("capacityBytes") != disk["capacityBytes"]
                if claim.get("namespace") == kube.namespace and own:
                    used[claim["name"]] = volume.get("usedBytes")
    except KubectlError:
        nodes = []
    claims = [
        {
            "name": one["metadata"]["name"],
            "phase": one["status"]["phase"],
            "size": one["status"].get("capacity", one["spec"]["resources"]["requests"])["storage"],
            "used": used.get(one["metadata"]["name"]),
        }
        for one in kube.items("persistentvolumeclaims")
    ]
    return {"claims": claims, "nodes": nodes}


def public_address(values: dict[str, Any]) -> str:
    """Return where people open Airflow's page, '' when nothing says it."""
    config = values["airflow"]["config"]
    section = "webserver" if values["airflow"]["airflowVersion"].startswith("2.") else "api"
    url = config.get(section, {}).get("base_url") or ""
    return "" if url == "/" else url
