"""Promoting by hand: the pod that does it, what it is told, and what comes of its answers."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlctl.__main__ import main
from mlctl.base.errors import UserError
from mlctl.clients import airflow as client
from mlctl.clients.task_pod import manifest
from mlctl.commands import models

SETTINGS = json.loads((Path(__file__).parents[2] / "helpers" / "chart_settings.json").read_text())
MOVED = {"name": "airflow-pipeline", "alias": "champion", "version": "v3", "before": "v2"}


class Kube:
    """A namespace whose pods end at the second look."""

    def __init__(self, phase: str, log: str, user: str = "", waiting: str = "") -> None:
        self.phase, self.log, self.user, self.waiting = phase, log, user, waiting
        self.pods: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.looks = 0

    def apply(self, pod: dict[str, Any]) -> None:
        self.pods.append(pod)

    def get(self, _: str, name: str) -> dict[str, Any]:
        self.looks += 1
        status: dict[str, Any] = {"phase": self.phase if self.looks > 1 else "Pending"}
        if self.waiting:
            waiting = {"waiting": {"reason": self.waiting}}
            container = {"name": "base", "restartCount": 0, "ready": False, "state": waiting}
            status = {"phase": "Pending", "containerStatuses": [container]}
        return {"metadata": {"name": name}, "status": status}

    def logs(self, *_: object) -> str:
        return f"{self.log}\n"

    def run(self, *words: str, **_: Any) -> SimpleNamespace:
        if words[0] == "delete":
            self.deleted.append(words[2])
        return SimpleNamespace(stdout=self.user)

    def command(self) -> list[str]:
        return self.pods[0]["spec"]["containers"][0]["command"][2:]


class Airflow:
    """An Airflow with one run, whose approval is in a state."""

    is_3 = False
    approve = client.Airflow.approve

    def __init__(self, state: str | None) -> None:
        self.state = state
        self.asked: list[tuple[str, str, Any]] = []

    def newest_run(self, _: str) -> dict[str, str]:
        return {"dag_run_id": "manual__1+2"}

    def tasks(self, *_: str) -> list[client.Task]:
        states = {"gate_model": "success", "approve_model": self.state}
        return [client.Task(name, state, 1, None) for name, state in states.items()]

    def request(self, method: str, path: str, json: Any) -> None:
        self.asked.append((method, path, json))


def stack_of(kube: Kube, airflow: Airflow | None = None, **model: Any) -> Any:
    settings = SETTINGS | {"model": SETTINGS["model"] | model}
    return SimpleNamespace(kube=kube, settings=settings, airflow=lambda: nullcontext(airflow))


def test_pod_is_that_of_a_task_with_the_registry_and_no_run() -> None:
    pod = manifest(SETTINGS, "registry", ["promote", "m:v3"])
    (container,) = pod["spec"]["containers"]
    (task,) = SETTINGS["pod"]["spec"]["containers"]
    assert container["command"] == ["python", "classic_example/cli.py", "promote", "m:v3"]
    assert (container["image"], container["securityContext"], container["resources"]) == (
        *(task["image"], task["securityContext"], task["resources"]),
    )
    env = {one["name"]: one for one in container["env"]}
    assert env["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "ml-pipelines-wandb"
    # Without the labels of a run its directory would have no name.
    assert container["volumeMounts"] == [{"name": "training-storage", "mountPath": "/tmp"}]
    assert pod["spec"]["volumes"] == [{"name": "training-storage", "emptyDir": {}}]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry-login"}]
    assert pod["metadata"]["labels"] == SETTINGS["pod"]["metadata"]["labels"]


@pytest.mark.parametrize("version", ["3", "v3"])
def test_version_reason_and_person_reach_the_workload(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    kube = Kube("Succeeded", f"RESULT {json.dumps(MOVED)}", user="system:admin")
    monkeypatch.setattr("mlctl.stack.Stack.kube", kube)
    monkeypatch.setattr("mlctl.stack.Stack.settings", stack_of(kube).settings)
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setenv("V", version)
    monkeypatch.setenv("REASON", "it is late")
    monkeypatch.setattr("sys.argv", ["mlctl", "promote"])
    assert main() == 0
    assert kube.command() == [
        *("promote", "airflow-pipeline:v3", "--alias", "champion"),
        *("--by", "ann as system:admin", "--reason", "it is late"),
    ]
    told = capsys.readouterr().out
    assert told == "airflow-pipeline v3 is the champion, in place of v2\n"
    assert kube.deleted == [kube.pods[0]["metadata"]["name"]]


def test_rollback_names_no_version(capsys: pytest.CaptureFixture[str]) -> None:
    kube = Kube("Succeeded", f"RESULT {json.dumps(MOVED | {'before': ''})}")
    assert models.rollback(stack_of(kube, alias="blue"), "") == 0
    assert kube.command()[:4] == ["rollback", "airflow-pipeline", "--alias", "blue"]
    assert capsys.readouterr().out == "airflow-pipeline v3 is the champion\n"


@pytest.mark.parametrize(
    ("kube", "told"),
    [
        (Kube("Failed", "ERROR: m v1 was promoted over no other"), "^m v1 was promoted over no"),
        (Kube("Failed", ""), "^Failed$"),
        (Kube("", "", waiting="ErrImagePull"), "promote-.* cannot start: base: ErrImagePull"),
    ],
    ids=["refused", "killed", "no-image"],
)
def test_what_goes_wrong_is_told_and_no_pod_is_left(kube: Kube, told: str) -> None:
    with pytest.raises(UserError, match=told):
        models.promote(stack_of(kube), "3", "")
    assert kube.deleted == [kube.pods[0]["metadata"]["name"]]


def test_without_a_champion_there_is_nothing_to_promote_to() -> None:
    kube = Kube("Succeeded", "")
    for command in (
        models.rollback,
        lambda *_: models.promote(stack_of(kube, alias="latest"), "3", ""),
    ):
        with pytest.raises(UserError, match=r"pipelines\.model\.alias is latest"):
            command(stack_of(kube, alias="latest"), "")
    assert kube.pods == []


@pytest.mark.parametrize("run", [None, "manual__1+2"])
def test_an_approval_marks_the_task_that_waits(
    capsys: pytest.CaptureFixture[str], run: str | None
) -> None:
    airflow = Airflow("deferred")
    assert models.approve(stack_of(Kube("", ""), airflow=airflow), run) == 0
    path = "dags/training_dag/dagRuns/manual__1%2B2/taskInstances/approve_model"
    assert airflow.asked == [("PATCH", path, {"dry_run": False, "new_state": "success"})]
    assert capsys.readouterr().out == "manual__1+2 goes on: its model will be the champion\n"


@pytest.mark.parametrize(("state", "told"), [("success", "success"), (None, "none of its tasks")])
def test_a_run_that_does_not_wait_is_left_alone(state: str | None, told: str) -> None:
    airflow = Airflow(state)
    with pytest.raises(UserError, match=f"manual__1\\+2 does not wait .*approve_model is {told}"):
        models.approve(stack_of(Kube("", ""), airflow=airflow), None)
    assert airflow.asked == []
