"""The janitor: a Job of the CronJob, on a volume and a registry with something old on them.

Beside an inference: that this one goes well shows what the janitor leaves alone.
"""

import json
import secrets

import pytest
import requests

from mlctl.base.names import RELEASE
from mlctl.base.waiting import until
from mlctl.clients.kube import Kube
from mlctl.clients.volume import Volume
from mlctl.stack import Stack

JOB_SECONDS = 300
JANITOR = f"{RELEASE}-janitor"
MODEL = EXPERIMENT = f"janitor-test-{secrets.token_hex(3)}"
WEIGHTS = 1_000_000
"""Bytes of the planted models."""

# Path below the volume's root -> days since its last change. The names are those of runs.
OLD = "planted-old-0123456789ab"
GONE = {
    f"training_dag/{OLD}/data/train.csv": 3,
    f"training_dag/{OLD}/.results.partial/model.safetensors": 3,
    f"inference_dag/{OLD}/pred.csv": 31,
    f"inference_dag/{OLD}/pred.json": 31,
    f"inference_dag/{OLD}-b/results/model.safetensors": 9,
}
STAYS = {
    # One recent file is enough: somebody is at work there.
    "training_dag/planted-recent-0123456789ab/data/train.csv": 90,
    "training_dag/planted-recent-0123456789ab/data/val.csv": 1,
    f"inference_dag/{OLD}-b/pred.csv": 9,
    f"inference_dag/{OLD}-b/pred.json": 9,
    "janitor-test/file": 90,
}


PLANTED = ("planted", "janitor-test")
"""A part of the path of each of them."""

pytestmark = pytest.mark.usefixtures("inference_started")


def shell(volume: Volume, script: str) -> list[str]:
    """Run a script of `sh` at the root of the training storage and return its lines."""
    return volume.run("sh", "-ceu", f"cd /volume\n{script}").splitlines()


def planted(volume: Volume) -> set[str]:
    """Return the paths of what was planted and is there; runs go on beside it."""
    found = shell(volume, "find . -mindepth 1 -printf '%P\\n'")
    return {path for path in found if any(part in path for part in PLANTED)}


def plant(volume: Volume) -> None:
    """Put the files on the volume, and an empty directory."""
    lines = []
    for path, days in {**GONE, **STAYS}.items():
        lines += [f"mkdir -p {path.rpartition('/')[0]}", f"echo planted > {path}"]
        lines.append(f"touch -d '{days} days ago' {path}")
    lines.append(f"mkdir -p training_dag/{OLD}-c")
    # Directories last: each new file is a change of theirs. None is newer than 3 days.
    directories = f"training_dag/{OLD}* inference_dag/{OLD}* training_dag/planted-recent-*"
    lines.append(f"find {directories} -type d -exec touch -d '3 days ago' {{}} +")
    shell(volume, "\n".join(lines))


def run_janitor(kube: Kube, *arguments: str, of: str = JANITOR) -> str:
    """Start a Job of a CronJob with more arguments, wait for its end and return its log.

    That the chart writes values into these arguments is proven in tests/chart/test_janitor.py.
    """
    name = f"janitor-test-{secrets.token_hex(3)}"
    create = ["create", "job", name, f"--from=cronjob/{of}", "--dry-run=client"]
    job = json.loads(kube.run(*create, "--output", "json").stdout)
    # The later of two arguments counts.
    job["spec"]["template"]["spec"]["containers"][0]["args"] += arguments
    kube.apply(job)
    try:
        how = until(JOB_SECONDS, lambda: ended(kube, name), f"{name} has not ended")
        log = kube.run("logs", f"job/{name}").stdout
        assert how == {"Complete"}, log
        return log
    finally:
        kube.run("delete", "job", name, "--wait=false")


def ended(kube: Kube, name: str) -> set[str]:
    """Return how a Job has ended; nothing while it goes on."""
    job = kube.get("job", name) or {}
    found = job.get("status", {}).get("conditions", [])
    return {one["type"] for one in found if one["status"] == "True"} & {"Complete", "Failed"}


@pytest.fixture
def models(mlflow) -> list[str]:
    """Register three versions, the first with an alias; return their runs."""
    url = mlflow.connection.url

    def post(path: str, **body: object) -> dict:
        answer = requests.post(f"{url}/api/2.0/mlflow/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    experiment = post("experiments/create", name=EXPERIMENT)["experiment_id"]
    post("registered-models/create", name=MODEL)
    runs = []
    for _ in range(3):
        tags = [{"key": "model_name", "value": MODEL}]
        run = post("runs/create", experiment_id=experiment, tags=tags)["run"]["info"]
        root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for path in ("model/model.safetensors", "plots/curve.png"):
            address = f"{url}/api/2.0/mlflow-artifacts/artifacts/{root}/{path}"
            requests.put(address, data=bytes(WEIGHTS), timeout=60).raise_for_status()
        post("runs/update", run_id=run["run_id"], status="FINISHED")
        source = f"{run['artifact_uri']}/model"
        post("model-versions/create", name=MODEL, source=source, run_id=run["run_id"])
        runs.append(run["run_id"])
    answer = requests.post(
        f"{url}/api/2.0/mlflow/registered-models/alias",
        json={"name": MODEL, "alias": "champion", "version": "1"},
        timeout=60,
    )
    answer.raise_for_status()
    return runs


def kept_bytes(kube: Kube) -> int:
    """Return the bytes of all models on MLflow's volume."""
    out = kube.run("exec", f"deployment/{RELEASE}-mlflow", "--", "du", "-sb", "/mlflow/artifacts")
    return int(out.stdout.split()[0])


def test_the_directory_of_a_run_may_be_removed(volume: Volume) -> None:
    """The kubelet makes it as root, with the mode of the volume's root: no sticky bit, then."""
    (mode,) = shell(volume, "stat --format=%A .")
    assert mode[-1] == "x", mode


def test_the_janitor_removes_what_is_old_and_nothing_else(
    stack: Stack, volume: Volume, mlflow, models: list[str]
) -> None:
    plant(volume)
    before = planted(volume)
    bytes_before = kept_bytes(stack.kube)
    try:
        log = run_janitor(
            stack.kube,
            "--predictions-max-age-days=30",
            "--keep-versions=1",
            f"--model={MODEL}",
            f"--experiment={EXPERIMENT}",
        )
        after = planted(volume)
        directories = {
            *(f"training_dag/{OLD}", f"training_dag/{OLD}/data", f"training_dag/{OLD}-c"),
            *(f"training_dag/{OLD}/.results.partial", f"inference_dag/{OLD}"),
            f"inference_dag/{OLD}-b/results",
        }
        assert before - after == {*GONE, *directories}
        assert after - before == set()
        assert {*STAYS} <= after
        assert f"removed /storage/training_dag/{OLD}/data (8 bytes): left behind by a run" in log

        found = mlflow.get("api/2.0/mlflow/model-versions/search", filter=f"name='{MODEL}'").json()
        assert {one["version"] for one in found["model_versions"]} == {"1", "3"}
        # Not only marked: the room is there again, and no more than that of the one version.
        assert bytes_before - kept_bytes(stack.kube) in range(WEIGHTS, WEIGHTS + 20_000)
        run = mlflow.get("api/2.0/mlflow/artifacts/list", run_id=models[1]).json()
        assert [one["path"] for one in run["files"]] == ["plots"]
    finally:
        shell(volume, f"rm -rf janitor-test */planted-recent-* */{OLD}*")


def test_the_janitor_of_pods_reaches_the_api_server(stack: Stack) -> None:
    """What it deletes there is proven in tests/chart/test_ended_pods.py."""
    log = run_janitor(stack.kube, "--dry-run", of=f"{RELEASE}-pod-janitor")
    assert log.splitlines()[-1].endswith(" to delete"), log
