"""What must outlive a fault: models and their files, predictions, runs in the database."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import requests

from mlctl.base.errors import UserError
from mlctl.base.names import DAG_IDS, INFERENCE, MLFLOW_PORT, MLFLOW_SERVICE
from mlctl.clients.airflow import FINISHED_RUN, Airflow
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube
from mlctl.clients.mlflow import Mlflow
from mlctl.clients.pods import CHECKED
from mlctl.stack import Stack

PREDICTIONS = ("pred.csv", "pred.json")


@dataclass(frozen=True)
class Snapshot:
    """The data of all finished runs at one moment: name -> content or state."""

    versions: dict[str, str]
    """Version of the model -> id of the DAG run that registered it."""
    model_files: dict[str, str]
    """Path in the registry's volume -> SHA-256."""
    predictions: dict[str, str]
    """Path on the training storage -> SHA-256."""
    runs: dict[str, str]
    """DAG and id of a run that has ended -> state."""


def take(stack: Stack, airflow: Airflow) -> Snapshot:
    """Return what is there now. Raises UserError when a part of it does not answer."""
    storage = claim_directory(stack.kube, stack.claim)
    return Snapshot(
        versions=versions(stack),
        model_files=hashes(claim_directory(stack.kube, MLFLOW_SERVICE) / "artifacts"),
        predictions=hashes(storage / INFERENCE, PREDICTIONS),
        runs={
            f"{dag_id} {run['dag_run_id']}": run["state"]
            for dag_id in DAG_IDS
            for run in airflow.all_runs(dag_id)
            if run["state"] in FINISHED_RUN
        },
    )


def lost(before: Snapshot, after: Snapshot, run_id: str, state: str) -> list[str]:
    """Return what has gone or changed, and what is wrong with the version of the run in between."""
    problems = [
        *_differences("model version", before.versions, after.versions),
        *_differences("model file", before.model_files, after.model_files),
        *_differences("prediction", before.predictions, after.predictions),
        *_differences("run", before.runs, after.runs),
    ]
    times = Counter(after.versions.values())[run_id]
    wanted = 1 if state == "success" else 0
    if times != wanted and not (state != "success" and times == 1):
        problems.append(f"the run's model was registered {times} times")
    return problems


def _differences(kind: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    gone = [f"{kind} {name} is gone" for name in before if name not in after]
    changed = [
        f"{kind} {name} has changed"
        for name in before
        if after.get(name, before[name]) != before[name]
    ]
    return gone + changed


def leftovers(stack: Stack, run_path: str) -> list[str]:
    """Return the pods of tasks and workers that are still there, and the files of the run.

    A failed pod that is kept for a look at it, until the janitor deletes it, is none.
    """
    pods = [
        f"pod {pod['metadata']['name']}"
        for selector in ("kubernetes_pod_operator=True", "kubernetes_executor=True")
        for pod in stack.kube.items("pods", selector)
        if CHECKED not in pod["metadata"]["labels"]
    ]
    directory = claim_directory(stack.kube, stack.claim) / run_path
    files = [f"file {path.relative_to(directory)}" for path in sorted(directory.rglob("*"))]
    return pods + files


def versions(stack: Stack) -> dict[str, str]:
    """Return the versions of the pipelines' model, each with the run that registered it."""
    name = stack.settings["model"]["name"]
    with Forward(stack.kube, MLFLOW_SERVICE, MLFLOW_PORT) as forward:
        try:
            found = Mlflow(forward).versions(name)
        except requests.RequestException as error:
            raise UserError(f"MLflow: {error}") from error
    return {version["version"]: version["tags"].get("run_id", "") for version in found}


def claim_directory(kube: Kube, claim: str) -> Path:
    """Return the directory of this machine that is behind a claim of the embedded cluster."""
    found = kube.get("persistentvolumeclaim", claim)
    if found is None:
        raise UserError(f"there is no claim {claim}: `make up`")
    volume = kube.get("persistentvolume", found["spec"]["volumeName"]) or {}
    spec = volume.get("spec", {})
    source = spec.get("local") or spec.get("hostPath")
    if source is None:
        raise UserError(f"the claim {claim} is no directory of this machine")
    return Path(source["path"])


def hashes(directory: Path, names: Iterable[str] = ()) -> dict[str, str]:
    """Return path -> SHA-256 of the files below a directory, of those with these names if any."""
    wanted = set(names)
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and (not wanted or path.name in wanted):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path.relative_to(directory))] = digest
    return found
