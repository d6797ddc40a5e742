"""Triggering any DAG, with parameters: what is refused, and what is told."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from mlctl.__main__ import main
from mlctl.base.errors import UserError
from mlctl.clients.airflow import AirflowError, Task
from mlctl.commands import look, runs, state


class Airflow:
    """An Airflow with the DAGs churn and training_dag, whose runs succeed."""

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.done: list[tuple[str, Any]] = []

    def dags(self) -> list[dict[str, Any]]:
        return [
            {"dag_id": "churn", "is_paused": True},
            {"dag_id": "training_dag", "is_paused": False},
        ]

    def newest_run(self, dag_id: str) -> dict[str, Any] | None:
        return {"dag_run_id": "r", "state": "success"} if dag_id == "training_dag" else None

    def unpause(self, dag_id: str) -> None:
        self.done.append(("unpause", dag_id))

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        if self.refusal:
            raise AirflowError(self.refusal)
        self.done.append((dag_id, conf))
        return f"r{len(self.done)}"

    def wait_for_runs(self, _: str, run_ids: list[str], **__: Any) -> list[dict[str, Any]]:
        ended = {"state": "success", "conf": self.done[0][1]}
        return [{"dag_run_id": run_id} | ended for run_id in run_ids]

    def results(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        return {"look": {"image": "x", "image_digest": "y"}, "count": {"rows": 3, "image": "x"}}

    def tasks(self, dag_id: str, run_id: str) -> list[Task]:
        return []


def stack_of(airflow: Airflow, **more: Any) -> Any:
    @contextmanager
    def client() -> Iterator[Airflow]:
        yield airflow

    return SimpleNamespace(airflow=client, **more)


def test_runs_of_any_dag_get_the_parameters_and_tell_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    airflow = Airflow()
    assert runs.trigger(stack_of(airflow), "churn", 2, {"day": "monday"}) == 0
    assert airflow.done == [*[("churn", {"day": "monday"})] * 2, ("unpause", "churn")]
    told = capsys.readouterr().out
    assert told.count('params={"day": "monday"} count.rows=3\n') == 2


def test_a_dag_that_is_not_there_is_told_with_those_that_are() -> None:
    airflow = Airflow()
    with pytest.raises(UserError, match=r"no DAG chrun; there are churn, training_dag.*make sync"):
        runs.trigger(stack_of(airflow), "chrun", 1, {})
    assert airflow.done == []


def test_a_refused_parameter_is_told_in_airflows_words_and_changes_nothing() -> None:
    airflow = Airflow("400 Bad Request Invalid input for param max_steps: 0 is less than 1")
    with pytest.raises(UserError, match=r"max_steps: 0 is less.*PARAMS=.*make ui"):
        runs.train(stack_of(airflow), 1, {"max_steps": 0})
    assert airflow.done == []


def test_a_refusal_without_parameters_is_airflows_alone() -> None:
    with pytest.raises(AirflowError, match=r"^403 Forbidden$"):
        runs.train(stack_of(Airflow("403 Forbidden")), 1, {})


@pytest.mark.parametrize("command", ["train", "infer", "trigger"])
@pytest.mark.parametrize(
    "text", ["[50]", "50", "null", '"a"', "{", '{"rate": NaN}', "max_steps=50"]
)
def test_parameters_that_are_no_object_are_refused_first(
    monkeypatch: pytest.MonkeyPatch, command: str, text: str
) -> None:
    monkeypatch.setattr("mlctl.__main__.Stack", None)
    monkeypatch.setattr("sys.argv", ["mlctl", command])
    monkeypatch.setenv("DAG", "churn")
    monkeypatch.setenv("PARAMS", text)
    with pytest.raises(UserError, match=r"'--params'.*no JSON.*PARAMS='\{\"max_steps\": 50\}'"):
        main()


NOTE = "for ann\n- train_model: accuracy 0.83\n- upload_model: failed: Pod u failed: no room"


class Kube:
    """A namespace in which the page serves, and a node with half of its disk in use."""

    def __init__(self) -> None:
        self.serving = ["webserver"]

    def items(self, kind: str) -> list[dict[str, Any]]:
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        pods = [
            {"metadata": {"name": f"{name}-1", "labels": {"component": name}}, "status": ready}
            for name in self.serving
        ]
        claims = [
            {
                "metadata": {"name": name},
                "spec": {"resources": {"requests": {"storage": "5Gi"}}},
                "status": {"phase": phase},
            }
            for name, phase in (("on-nfs", "Bound"), ("on-disk", "Bound"), ("of-nobody", "Pending"))
        ]
        node = {"metadata": {"name": "node-1"}}
        return {"pods": pods, "persistentvolumeclaims": claims, "nodes": [node]}[kind]

    namespace = "ours"

    def run(self, *words: str) -> Any:
        """As a kubelet: a volume on the node's disk is told the sizes of that disk."""
        assert words[-1] == "/api/v1/nodes/node-1/proxy/stats/summary"
        disk = {"usedBytes": 5 * 2**30, "capacityBytes": 10 * 2**30}
        nfs = {"usedBytes": 1 * 2**30, "capacityBytes": 4 * 2**30}

        def volume(name: str, namespace: str, sizes: dict[str, int]) -> dict[str, Any]:
            return sizes | {"name": "data", "pvcRef": {"name": name, "namespace": namespace}}

        pods: list[dict[str, Any]] = [
            {"volume": [volume("on-nfs", "ours", nfs), {"name": "tmp"} | disk]},
            {"volume": [volume("on-disk", "ours", disk), volume("of-nobody", "others", nfs)]},
            {},
        ]
        return SimpleNamespace(stdout=json.dumps({"node": {"fs": disk}, "pods": pods}))


@pytest.fixture
def status_stack(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `make status` looks at; a test may change it."""
    values = {
        "airflow": {
            "triggerer": {"enabled": True},
            "airflowVersion": "2.9.3",
            "config": {"webserver": {"base_url": ""}},
        },
        "admin": {"username": "admin"},
        "mlflow": {"pageUrl": "", "trackingUri": ""},
        "wandb": {"enabled": False},
    }
    release = SimpleNamespace(
        status=lambda: SimpleNamespace(state="deployed", revision=1),
        installed_values=lambda: values,
    )
    row = {"name": "kubelet", "state": "running"}
    cluster = SimpleNamespace(
        name="c", kind="embedded", status=lambda: [row], remarks=list, kubeconfig="/k"
    )
    settings = {"model": {"name": "iris", "alias": "champion"}}
    more = {"release": lambda: release, "cluster": cluster, "kube": Kube(), "settings": settings}
    return stack_of(Airflow(), **more, values=values)


@pytest.mark.parametrize("on", [True, False])
def test_status_names_every_dag_and_a_triggerer_that_is_off(
    capsys: pytest.CaptureFixture[str], status_stack: Any, on: bool
) -> None:
    status_stack.values["airflow"]["triggerer"]["enabled"] = on
    assert look.status(status_stack) == 0
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines()]
    assert ["churn", "(paused)", "no", "run", "yet"] in rows
    assert ["training_dag", "success", "r"] in rows
    assert ("deferrable tasks wait for ever (airflow.triggerer.enabled)" in told) is not on


def test_status_is_one_object_for_scripts(
    capsys: pytest.CaptureFixture[str], status_stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With why a run has failed, versions of the model, and what the disk holds."""
    ran = {"dag_run_id": "r", "state": "failed", "note": NOTE}
    monkeypatch.setattr(Airflow, "newest_run", lambda *_: ran)
    status_stack.kube.serving.append("mlflow")
    monkeypatch.setattr(
        state, "Forward", lambda *_: SimpleNamespace(ensure=lambda _: None, close=lambda: None)
    )
    mlflow = SimpleNamespace(
        versions=lambda _: [{"version": "9"}, {"version": "10"}],
        aliases=lambda _: {"champion": "v9"},
    )
    monkeypatch.setattr(state, "Mlflow", lambda _: mlflow)
    assert look.status(status_stack, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cluster"]["parts"] == [{"name": "kubelet", "state": "running"}]
    assert found["dags"][0]["told"] == ["upload_model: failed: Pod u failed: no room"]
    assert (found["model"]["champion"], found["model"]["newest"]) == ("v9", "v10")
    used = {one["name"]: one["used"] for one in found["storage"]["claims"]}
    assert used == {"on-nfs": 2**30, "on-disk": None, "of-nobody": None}


def test_status_of_a_page_that_does_not_serve_waits_for_nothing(
    capsys: pytest.CaptureFixture[str], status_stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "is_ready", lambda _: False)
    monkeypatch.setattr(status_stack, "airflow", None)
    assert look.status(status_stack) == 0
    told = capsys.readouterr().out
    assert "does not serve" in told
    assert "model iris in mlflow: champion not known" in told
    assert "disk of node-1: 5.0 GiB of 10.0 GiB in use" in told
    rows = [line.split() for line in told.splitlines()]
    assert ["on-nfs", "Bound", "5Gi", "1.0", "GiB"] in rows


@pytest.mark.parametrize(("wanted", "others"), [("training_dag", False), ("", True)])
def test_logs_are_the_last_lines_of_the_newest_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: str, others: bool
) -> None:
    airflow = Airflow()
    tasks = [Task("look", "success", 1, 2.5), Task("count", "upstream_failed", 0, None)]
    lines = "".join(
        f"[2026-11-23T09:00:0{n}.000+0000] {{pod_manager.py:1}} INFO - [base] epoch {n}\n"
        for n in range(9)
    )
    monkeypatch.setattr(airflow, "tasks", lambda *_: tasks)
    monkeypatch.setattr(airflow, "log_end", lambda *_: lines, raising=False)
    stack = stack_of(airflow, cluster=SimpleNamespace(log_files=dict))
    assert look.logs(stack, None, wanted) == 0
    told = capsys.readouterr().out
    assert ("churn: no run yet" in told) is others
    assert "training_dag: r success\n  look: success 2.5 s\n" in told
    assert "    epoch 8\n  count: upstream_failed\n" in told
