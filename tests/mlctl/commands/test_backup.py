"""Backup and restore with a played namespace: what is kept, what is refused, and in which order.

The scripts for MLflow's files run here; those for Postgres in tests/e2e/test_backup.py.
"""

import base64
import copy
import io
import json
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.commands import backup

VALUES: dict[str, Any] = {
    "airflow": {
        "airflowVersion": "2.9.3",
        "fernetKeySecretName": "ml-pipelines-fernet-key",
        "webserverSecretKeySecretName": "ml-pipelines-webserver-secret-key",
        "data": {"metadataSecretName": "ml-pipelines-metadata"},
    },
    "admin": {"enabled": True, "existingSecret": "", "secretKey": "password"},
    "global": {"imageRegistry": ""},
    "imagePullSecrets": [],
    "images": {"postgres": {"repository": "localhost/postgres", "tag": "15", "digest": ""}},
    "mlflow": {"enabled": True},
    "secrets": {"fernetKey": {"create": True}, "webserverSecretKey": {"create": True}},
}


def tar(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


class Kube:
    """A namespace with a database of some runs, Secrets, and Deployments that can be scaled."""

    namespace = "ml-pipelines"

    def __init__(self, key: str = "of-before", runs: int = 0, postgres: str = "15.4") -> None:
        def secret(**data: str) -> dict[str, str]:
            return {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}

        self.secrets = {
            "ml-pipelines-fernet-key": secret(**{"fernet-key": key}),
            "ml-pipelines-webserver-secret-key": secret(**{"webserver-secret-key": f"{key}-web"}),
            "ml-pipelines-admin": secret(password=f"{key}-password"),
        }
        self.answers = {"show server_version": postgres, "select count(*) from dag_run": str(runs)}
        self.sent = {"pg_dump": tar(dump=b"PGDMP"), "sqlite3": tar(db=b"SQLite")}
        self.replicas = {f"ml-pipelines-{name}": 1 for name in ("scheduler", "webserver", "mlflow")}
        self.replicas["somebody-elses"] = 1
        self.done: list[str] = []
        self.pods: dict[str, Any] = {}

    def apply(self, pod: dict[str, Any]) -> None:
        self.pods[pod["metadata"]["name"]] = pod

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        if kind == "secret":
            return {"data": self.secrets[name]} if name in self.secrets else None
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        return self.pods[name] | {"status": ready}

    def items(self, kind: str) -> list[dict[str, Any]]:
        if kind == "deployments":
            return [
                {"metadata": {"name": name}, "spec": {"replicas": number}}
                for name, number in self.replicas.items()
            ]
        return [
            {"metadata": {"name": name, "labels": {"component": name.rpartition("-")[2]}}}
            for name, number in self.replicas.items()
            if number
        ]

    def run(self, *words: str, **_: Any) -> SimpleNamespace:
        out = ""
        if words[0] == "delete":
            del self.pods[words[2]]
        elif words[0] == "scale":
            self.replicas[words[2]] = int(words[3].partition("=")[2])
            self.done.append(f"{words[2]} to {self.replicas[words[2]]}")
        elif words[0] == "patch":
            self.secrets[words[2]] = json.loads(words[-1])["data"]
            self.done.append(words[2])
        else:
            out = self.answers[words[-1]]
        return SimpleNamespace(stdout=f"{out}\n", returncode=0)

    def transfer(self, *words: str, source: Path | None = None, target: Path | None = None) -> None:
        (part,) = [part for part in ("pg_dump", "sqlite3", "pg_restore", "mv") if part in words[-1]]
        self.done.append(part)
        if target:
            target.write_bytes(self.sent[part])
        if source:
            self.sent[part] = source.read_bytes()


def stack(kube: Kube, values: dict[str, Any] = VALUES) -> Any:
    release = SimpleNamespace(
        installed_values=lambda: values, wait_ready=lambda _: kube.done.append("ready")
    )
    return SimpleNamespace(kube=kube, image="localhost/classic", release=lambda: release)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A backup of a release that is lost."""
    backup.backup(stack(Kube()), tmp_path / "kept")
    return tmp_path / "kept"


def other(**changes: Any) -> dict[str, Any]:
    """The values with some set: a__b=1 is {"a": {"b": 1}}."""
    values = copy.deepcopy(VALUES)
    for path, value in changes.items():
        *above, last = path.split("__")
        place = values
        for name in above:
            place = place[name]
        place[last] = value
    return values


def test_a_backup_has_all_that_is_needed_and_says_of_what_it_is(kept: Path) -> None:
    manifest = json.loads((kept / "manifest.json").read_text())
    assert {manifest[key] for key in ("format", "release", "airflow", "postgres")} == {
        *(1, "ml-pipelines", "2.9.3", "15.4"),
    }
    assert manifest["files"].keys() == {"database.tar", "mlflow.tar", "secrets.json"}
    assert kept.stat().st_mode & 0o77 == 0
    assert [path.name for path in kept.parent.iterdir()] == ["kept"]


def test_a_restore_stops_what_writes_and_starts_it_again(kept: Path) -> None:
    kube = Kube("of-now")
    backup.restore(stack(kube), kept, replace=False)
    parts = ("scheduler", "webserver", "mlflow")
    assert kube.done == [
        *(f"ml-pipelines-{part} to 0" for part in parts),
        "pg_restore",
        "mv",
        *(f"ml-pipelines-{name}" for name in ("fernet-key", "webserver-secret-key", "admin")),
        *(f"ml-pipelines-{part} to 1" for part in parts),
        "ready",
    ]
    assert kube.secrets == Kube().secrets
    assert kube.sent["pg_restore"] == Kube().sent["pg_dump"]
    assert kube.sent["mv"] == Kube().sent["sqlite3"]
    assert kube.pods == {}


def test_models_that_are_elsewhere_stay_there(tmp_path: Path) -> None:
    values = other(mlflow__enabled=False)
    backup.backup(stack(Kube(), values), tmp_path / "kept")
    kube = Kube("of-now")
    backup.restore(stack(kube, values), tmp_path / "kept", replace=False)
    assert "mv" not in kube.done


@pytest.mark.parametrize(
    ("values", "kube", "told"),
    [
        (other(airflow__airflowVersion="3.3.2"), {}, "of Airflow 2.9.3, and 3.3.2 is installed"),
        (other(airflow__airflowVersion="2.9.2"), {}, r"install 2.9.3 \(AIRFLOW=2\), restore"),
        (other(mlflow__enabled=False), {}, "mlflow.enabled is false"),
        (VALUES, {"postgres": "14.9"}, "of Postgres 15.4, newer than 14.9"),
        (VALUES, {"runs": 3}, "the database has 3 runs, which would be lost: YES=1"),
        (other(secrets__fernetKey__create=False), {"key": "x"}, "holds another Fernet key"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_changed(
    kept: Path, values: dict[str, Any], kube: dict[str, Any], told: str
) -> None:
    here = Kube(**{"key": "of-now"} | kube)
    secrets = copy.deepcopy(here.secrets)
    with pytest.raises(UserError, match=told):
        backup.restore(stack(here, values), kept, replace=False)
    assert (here.done, here.pods, here.secrets) == ([], {}, secrets)


def test_a_key_that_is_kept_elsewhere_and_is_the_same_is_fine(kept: Path) -> None:
    values = other(secrets__fernetKey__create=False, secrets__webserverSecretKey__create=False)
    kube = Kube()
    backup.restore(stack(kube, values), kept, replace=False)
    assert [one for one in kube.done if one in kube.secrets] == ["ml-pipelines-admin"]


def test_runs_may_be_lost_by_a_word(kept: Path) -> None:
    kube = Kube(runs=3)
    backup.restore(stack(kube), kept, replace=True)
    assert "pg_restore" in kube.done


def spoil(name: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (spoil("database.tar"), "database.tar missing or not as written"),
        (lambda at: (at / "mlflow.tar").unlink(), "mlflow.tar missing or not as written"),
        (lambda at: (at / "manifest.json").unlink(), "is no backup"),
        (lambda at: (at / "manifest.json").write_text("{}"), "is no backup: 'format'"),
        (
            lambda at: (at / "manifest.json").write_text('{"format": 2, "files": {}}'),
            "has the format 2, this checkout reads 1",
        ),
    ],
)
def test_a_backup_that_is_not_whole_is_refused(
    kept: Path, change: Callable[[Path], None], told: str
) -> None:
    change(kept)
    kube = Kube("of-now")
    with pytest.raises(UserError, match=told):
        backup.restore(stack(kube), kept, replace=True)
    assert kube.done == []


def test_a_backup_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    kube = Kube()
    kube.sent["sqlite3"] = kube.sent["sqlite3"][:600]
    with pytest.raises(UserError, match=r"mlflow\.tar broke off"):
        backup.backup(stack(kube), tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []
    assert kube.pods == {}


def test_an_older_backup_is_not_written_over(kept: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        backup.backup(stack(Kube()), kept)


def test_what_was_stopped_starts_again_when_the_database_refuses(kept: Path) -> None:
    kube = Kube("of-now")

    def refuse(*_: str, **__: Any) -> None:
        raise UserError("no room")

    kube.transfer = refuse  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no room"):
        backup.restore(stack(kube), kept, replace=False)
    assert set(kube.replicas.values()) == {1}
    assert kube.secrets == Kube("of-now").secrets


def test_the_files_of_mlflow_come_back_and_what_was_there_goes(tmp_path: Path) -> None:
    old, new, archive = tmp_path / "old", tmp_path / "new", tmp_path / "mlflow.tar"
    (old / "artifacts" / "1").mkdir(parents=True)
    (old / "artifacts" / "1" / "model").write_text("weights")
    (old / "served-by").write_text("image:1")
    with sqlite3.connect(old / "mlflow.db") as database:
        database.execute("create table models (name)")
        database.execute("insert into models values ('m')")
    (new / "artifacts" / "9").mkdir(parents=True)
    (new / "mlflow.db").write_text("another")
    with archive.open("wb") as out:
        script = backup.COPY_MLFLOW.replace("/mlflow/", f"{old}/").replace('"/mlflow"', f'"{old}"')
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    with archive.open("rb") as feed:
        script = backup.REPLACE_MLFLOW.replace("/volume", str(new))
        subprocess.run(["sh", "-ceu", script], stdin=feed, check=True)
    assert sorted(path.name for path in new.iterdir()) == ["artifacts", "mlflow.db", "served-by"]
    assert [path.name for path in (new / "artifacts").iterdir()] == ["1"]
    with sqlite3.connect(new / "mlflow.db") as database:
        assert database.execute("select name from models").fetchall() == [("m",)]
