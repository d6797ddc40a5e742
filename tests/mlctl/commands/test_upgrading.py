"""The way to Airflow 3 on a played release: what is refused, in which order, and the way back.

tests/long/test_upgrade.py goes it on a cluster.
"""

import io
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.commands import backup, upgrading
from mlctl.publishing import PARSE
from tests.helpers.played_stack import VALUES, PlayedKube, PlayedStack

READ = {"dags": ["churn"], "errors": {}}
NEW_KEY = {"name": "web", "key": "jwt-secret"}
ENV = [
    {"name": "JWT", "valueFrom": {"secretKeyRef": NEW_KEY}},
    {"name": "HOME", "value": "/opt/airflow"},
]
TEMPLATE = {
    "metadata": {"labels": {"component": "dag-processor"}},
    "spec": {
        "serviceAccountName": "of-airflow-3",
        "initContainers": [{"name": "wait-for-airflow-migrations"}, {"name": "git-sync-init"}],
        "containers": [
            {"name": "dag-processor", "image": "airflow:3", "livenessProbe": {}, "env": ENV},
            {"name": "git-sync"},
        ],
    },
}


class Upgraded(PlayedStack):
    """A release of Airflow 2 whose next revision is one of Airflow 3."""

    def __init__(self, kube: PlayedKube, runs: list[dict[str, str]], failure: str = "") -> None:
        super().__init__(kube)
        self.runs, self.failure = runs, failure

    def airflow(self) -> Any:
        client = SimpleNamespace(get=lambda path, **_: {"dag_runs": self.runs})
        return nullcontext(client)

    def prepare(self, _: Any) -> Any:
        return self.release()

    def release(self, _: Any = None) -> Any:
        release = super().release()
        release.status = lambda: SimpleNamespace(revision=4)
        release.next_objects = lambda: [{"kind": "Service"}, {"spec": {"template": TEMPLATE}}]
        release.deploy = self.deploy
        release.back_to = lambda revision, _: self.kube.done.append(f"revision {revision}")
        return release

    def deploy(self, _: Any, *, other_airflow: bool) -> None:
        assert other_airflow
        self.kube.done.append("deploy")
        self.kube.replicas = dict.fromkeys(self.kube.replicas, 1)
        if self.failure:
            raise UserError(self.failure)


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PlayedKube:
    monkeypatch.setenv("AIRFLOW", "")
    monkeypatch.delenv("AIRFLOW")
    monkeypatch.setattr(backup, "BUILD", tmp_path)
    monkeypatch.setattr(upgrading, "publish", lambda stack, _: stack.kube.done.append("publish"))
    kube = PlayedKube(runs=10)
    counts = {f"SELECT count(*) FROM {table}": "7" for table in upgrading.KEPT.values()}
    kube.answers |= counts | dict.fromkeys(upgrading.NOT_CARRIED.values(), "2")
    kube.answers["DELETE FROM session"] = "DELETE 18"
    kube.answers[PARSE] = f"a warning\n{json.dumps(READ)}"
    return kube


STOPPED = [f"ml-pipelines-{name} to 0" for name in ("scheduler", "webserver")]
STARTED = [f"ml-pipelines-{name} to 1" for name in ("scheduler", "webserver")]


def test_all_of_it_is_taken_over(kube: PlayedKube, capsys) -> None:
    assert upgrading.upgrade_airflow(Upgraded(kube, [])) == 0
    assert kube.done == [*STOPPED, "pg_dump", "sqlite3", "deploy", "publish"]
    told = capsys.readouterr().out
    assert "2 records of missed SLAs" in told
    assert "runs: 7 before, 7 now" in told
    assert kube.pods == {}


def test_the_files_are_read_in_a_pod_of_the_next_dag_processor(kube: PlayedKube) -> None:
    pods = []
    apply = kube.apply
    kube.apply = lambda pod: (pods.append(pod), apply(pod))  # type: ignore[method-assign]
    upgrading.upgrade_airflow(Upgraded(kube, []))
    spec = pods[0]["spec"]
    assert [one["name"] for one in spec["initContainers"]] == ["git-sync-init"]
    (container,) = spec["containers"]
    assert container["image"] == "airflow:3"
    assert container["command"] == ["sleep", "infinity"]
    assert "livenessProbe" not in container
    # What comes with Airflow 3 only is not there yet: its account, its Secrets' keys.
    assert "serviceAccountName" not in spec
    optional = {"secretKeyRef": NEW_KEY | {"optional": True}}
    assert container["env"] == [{"name": "JWT", "valueFrom": optional}, ENV[1]]


def test_runs_that_go_on_are_named(kube: PlayedKube) -> None:
    run = {"dag_id": "churn", "dag_run_id": "manual__1", "state": "running"}
    with pytest.raises(UserError, match=r"churn manual__1 \(running\)"):
        upgrading.upgrade_airflow(Upgraded(kube, [run]))
    assert kube.done == []


def test_files_that_airflow_3_cannot_read_are_named(kube: PlayedKube) -> None:
    errors = {"/opt/airflow/dags/repo/dags/old.py": "Traceback\nModuleNotFoundError: subdag"}
    kube.answers[PARSE] = json.dumps({"dags": [], "errors": errors})
    with pytest.raises(UserError, match=r"dags/old\.py:\n.*\n.*subdag\nnothing was changed"):
        upgrading.upgrade_airflow(Upgraded(kube, []))
    assert kube.done == []
    assert kube.pods == {}


def test_no_is_an_answer(kube: PlayedKube, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO("n\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.delenv("YES", raising=False)
    with pytest.raises(UserError, match="nothing was changed"):
        upgrading.upgrade_airflow(Upgraded(kube, []))
    assert kube.done == []


def test_a_backup_that_fails_starts_airflow_2_again(kube: PlayedKube) -> None:
    kube.sent["pg_dump"] = b""
    with pytest.raises(UserError, match=r"database\.tar broke off"):
        upgrading.upgrade_airflow(Upgraded(kube, []))
    assert kube.done == [*STOPPED, "pg_dump", *STARTED]


def test_a_failed_migration_is_undone(kube: PlayedKube, capsys) -> None:
    with pytest.raises(UserError, match="the upgrade failed"):
        upgrading.upgrade_airflow(Upgraded(kube, [], failure="setup: relation exists"))
    after = kube.done[kube.done.index("deploy") + 1 :]
    assert after == [*STOPPED, "jobs", "pg_restore", "revision 4"]
    assert "setup: relation exists" in capsys.readouterr().out
    assert kube.sent["pg_restore"] == kube.sent["pg_dump"]


def test_a_way_back_that_fails_says_how_to_go_it(kube: PlayedKube) -> None:
    transfer = kube.transfer

    def fails(*words: str, **files: Any) -> None:
        if "pg_restore" in words[-1]:
            raise UserError("no room")
        transfer(*words, **files)

    kube.transfer = fails  # type: ignore[method-assign]
    told = r"no room\n.*`helm rollback ml-pipelines 4`, then `make restore DIR=.* YES=1`"
    with pytest.raises(UserError, match=told):
        upgrading.upgrade_airflow(Upgraded(kube, [], failure="setup: relation exists"))


def test_what_is_lost_is_named(kube: PlayedKube) -> None:
    class Loses(Upgraded):
        def deploy(self, phase: Any, *, other_airflow: bool) -> None:
            super().deploy(phase, other_airflow=other_airflow)
            self.kube.answers["SELECT count(*) FROM variable"] = "6"

    with pytest.raises(UserError, match=r"fewer than before: Variables; .*backups"):
        upgrading.upgrade_airflow(Loses(kube, []))


def test_airflow_3_stays_as_it_is(kube: PlayedKube, capsys) -> None:
    stack = Upgraded(kube, [])
    stack.values = VALUES | {"airflow": VALUES["airflow"] | {"airflowVersion": "3.3.2"}}
    assert upgrading.upgrade_airflow(stack) == 0
    assert "runs Airflow 3.3.2" in capsys.readouterr().out
    assert kube.done == []


def test_the_way_goes_to_3_only(kube: PlayedKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW", "2")
    with pytest.raises(UserError, match="the way goes to 3 only"):
        upgrading.upgrade_airflow(Upgraded(kube, []))
