"""Backup and restore with a played namespace: what is kept, what is refused, and in which order.

The scripts for MLflow's files run here, those for Postgres in tests/images/test_postgres.py; all of
it runs in tests/long/test_loss.py.
"""

import copy
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.commands import backup
from tests.helpers.played_stack import VALUES, PlayedKube, PlayedStack


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A backup of a release that is lost."""
    backup.backup(PlayedStack(PlayedKube()), tmp_path / "kept")
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
    kube = PlayedKube("of-now")
    backup.restore(PlayedStack(kube), kept, replace=False)
    parts = ("scheduler", "webserver", "mlflow")
    assert kube.done == [
        *(f"ml-pipelines-{part} to 0" for part in parts),
        "pg_restore",
        "mv",
        *(f"ml-pipelines-{name}" for name in ("fernet-key", "webserver-secret-key", "admin")),
        *(f"ml-pipelines-{part} to 1" for part in parts),
        "ready",
    ]
    assert kube.secrets == PlayedKube().secrets
    assert kube.sent["pg_restore"] == PlayedKube().sent["pg_dump"]
    assert kube.sent["mv"] == PlayedKube().sent["sqlite3"]
    assert kube.pods == {}


def test_models_that_are_elsewhere_stay_there(tmp_path: Path) -> None:
    values = other(mlflow__enabled=False)
    backup.backup(PlayedStack(PlayedKube(), values), tmp_path / "kept")
    kube = PlayedKube("of-now")
    backup.restore(PlayedStack(kube, values), tmp_path / "kept", replace=False)
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
    here = PlayedKube(**{"key": "of-now"} | kube)
    secrets = copy.deepcopy(here.secrets)
    with pytest.raises(UserError, match=told):
        backup.restore(PlayedStack(here, values), kept, replace=False)
    assert (here.done, here.pods, here.secrets) == ([], {}, secrets)


def test_a_key_that_is_kept_elsewhere_and_is_the_same_is_fine(kept: Path) -> None:
    values = other(secrets__fernetKey__create=False, secrets__webserverSecretKey__create=False)
    kube = PlayedKube()
    backup.restore(PlayedStack(kube, values), kept, replace=False)
    assert [one for one in kube.done if one in kube.secrets] == ["ml-pipelines-admin"]


def test_runs_may_be_lost_by_a_word(kept: Path) -> None:
    kube = PlayedKube(runs=3)
    backup.restore(PlayedStack(kube), kept, replace=True)
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
    kube = PlayedKube("of-now")
    with pytest.raises(UserError, match=told):
        backup.restore(PlayedStack(kube), kept, replace=True)
    assert kube.done == []


def test_a_backup_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    kube = PlayedKube()
    kube.sent["sqlite3"] = kube.sent["sqlite3"][:600]
    with pytest.raises(UserError, match=r"mlflow\.tar broke off"):
        backup.backup(PlayedStack(kube), tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []
    assert kube.pods == {}


def test_an_older_backup_is_not_written_over(kept: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        backup.backup(PlayedStack(PlayedKube()), kept)


def test_what_was_stopped_starts_again_when_the_database_refuses(kept: Path) -> None:
    kube = PlayedKube("of-now")

    def refuse(*_: str, **__: Any) -> None:
        raise UserError("no room")

    kube.transfer = refuse  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no room"):
        backup.restore(PlayedStack(kube), kept, replace=False)
    assert set(kube.replicas.values()) == {1}
    assert kube.secrets == PlayedKube("of-now").secrets


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
