"""What a lost cluster takes with it, kept outside of it: `backup`, and the way back: `restore`.

A backup is a directory:

    manifest.json   what it is of, and the SHA-256 and size of the other files
    database.tar    a dump of the metadata database (pg_dump's custom format)
    mlflow.tar      the release's own MLflow: its database and the files of models; where it has one
    secrets.json    the Secrets that the chart may have drawn: without the Fernet key nobody reads
                    the connections and variables of the database

Not in it: predictions, data and logs on their claims, and what is outside of the release.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.names import MLFLOW_SERVICE, RELEASE
from mlctl.base.paths import BUILD
from mlctl.base.progress import Phases
from mlctl.clients.database import Database
from mlctl.clients.kube import Kube
from mlctl.clients.volume import Volume
from mlctl.commands.telling import say
from mlctl.release.release import airflow_version
from mlctl.stack import Stack

FORMAT = 1
MANIFEST, SECRETS = "manifest.json", "secrets.json"
DATABASE, MLFLOW = "database.tar", "mlflow.tar"
AIRFLOW = ("scheduler", "webserver", "triggerer", "dag-processor")
"""Deployments that write to the database; without a run that goes on there are no workers."""
WRITERS = (*AIRFLOW, "mlflow")
"""And the one that holds MLflow's files."""

# SQLite's own copy: nobody has to stop.
COPY_MLFLOW = r"""
import os, sqlite3, subprocess, tempfile
with tempfile.TemporaryDirectory() as copy:
    target = sqlite3.connect(f"{copy}/mlflow.db")
    sqlite3.connect("/mlflow/mlflow.db").backup(target)
    target.close()
    os.makedirs("/mlflow/artifacts", exist_ok=True)
    words = ["-C", copy, "mlflow.db", "-C", "/mlflow", "served-by", "artifacts"]
    # Files may come while it is read, of models that the copy does not know.
    done = subprocess.run(["tar", "--create", "--warning=no-file-changed", *words]).returncode
raise SystemExit(0 if done <= 1 else done)"""
# Beside what is there, which goes when all of it has come.
REPLACE_MLFLOW = r"""
cd /volume
rm -rf .restored
mkdir .restored
tar --extract --directory .restored
rm -rf mlflow.db artifacts served-by
mv .restored/* .
rmdir .restored"""


@dataclass(frozen=True)
class Backup:
    """A backup that is whole: its files are those of its manifest."""

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "Backup":
        """Return the backup in a directory.

        Raises UserError when it is none, is of another format, or a file is not as it was written.
        """
        try:
            manifest = json.loads((directory / MANIFEST).read_text())
            form, files = manifest["format"], manifest["files"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{directory} is no backup: {error}; `make backup` writes one"
            ) from None
        if form != FORMAT:
            raise UserError(f"{directory} has the format {form}, this checkout reads {FORMAT}")
        bad = [name for name, known in files.items() if _facts(directory / name) != known]
        if bad:
            names = ", ".join(bad)
            raise UserError(f"{directory}: {names} missing or not as written; take another backup")
        return cls(directory, manifest)

    def secrets(self) -> dict[str, dict[str, str]]:
        """Return Secret -> key -> value in base64."""
        found: dict[str, dict[str, str]] = json.loads((self.directory / SECRETS).read_text())
        return found


def backup(stack: Stack, directory: Path | None) -> None:
    """Copy database, models and keys of the release into a directory (DIR)."""
    directory = back_up(stack, directory)
    say(f"{directory}: whoever has it can read all secrets of Airflow; keep it away from here")


def back_up(stack: Stack, directory: Path | None = None) -> Path:
    """Write a backup into a directory and return that, build/backups/TIME when None is given.

    Raises UserError when it is there already, and for what fails: half a backup is not left.
    """
    moment = datetime.now(UTC)
    directory = directory or BUILD / "backups" / moment.strftime("%Y%m%dT%H%M%SZ")
    if directory.exists():
        raise UserError(f"{directory} is there already; name another DIR")
    values = stack.release().installed_values()
    directory.parent.mkdir(parents=True, exist_ok=True)
    phases = Phases()
    # It holds keys: for nobody else, and under its name only when it is whole.
    part = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with phases.phase("metadata database") as phase, stack.database() as database:
            database.dump(part / DATABASE)
            server = database.query("show server_version")[0][0]
            phase.say(_size(part / DATABASE))
        if values["mlflow"]["enabled"]:
            with phases.phase("models") as phase:
                where = [f"deployment/{MLFLOW_SERVICE}", "--container", "mlflow"]
                copy = ["--", "python", "-c", COPY_MLFLOW]
                stack.kube.fetch_tar("exec", *where, *copy, target=part / MLFLOW)
                phase.say(_size(part / MLFLOW))
        (part / SECRETS).write_text(json.dumps(_secrets(stack.kube, values)))
        manifest = {
            "format": FORMAT,
            "time": moment.isoformat(timespec="seconds"),
            "release": RELEASE,
            "airflow": airflow_version(values),
            "postgres": server,
            "files": {file.name: _facts(file) for file in sorted(part.iterdir())},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        part.rename(directory)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return directory


def restore(stack: Stack, directory: Path, replace: bool) -> None:
    """Put a backup (DIR) into the release: what its database and registry hold now is lost.

    A database that knows runs is refused unless YES=1.
    """
    kept = Backup.read(directory)
    values = stack.release().installed_values()
    keys = _keys_to_write(stack.kube, values, kept)
    phases = Phases()
    with stack.database() as database:
        with phases.phase("does it fit?") as phase:
            _refuse_what_does_not_fit(kept, values, database, replace)
            phase.say(f"a backup of {kept.manifest['time']}, Airflow {kept.manifest['airflow']}")
        with stack.stopped(WRITERS, phases):
            with phases.phase("metadata database"):
                database.restore(directory / DATABASE)
            if MLFLOW in kept.manifest["files"]:
                with (
                    phases.phase("models"),
                    Volume(stack.kube, MLFLOW_SERVICE, stack.image, read_only=False) as volume,
                ):
                    volume.feed(directory / MLFLOW, "sh", "-ceu", REPLACE_MLFLOW)
            for name, data in keys.items():
                patch = json.dumps({"data": data})
                stack.kube.run("patch", "secret", name, "--type", "merge", "--patch", patch)
        with phases.phase("start again") as phase:
            stack.release().wait_ready(phase)
        runs = database.number("select count(*) from dag_run")
    say(f"restored: {runs} runs of before {kept.manifest['time']}")


def _refuse_what_does_not_fit(
    kept: Backup, values: dict[str, Any], database: Database, replace: bool
) -> None:
    problems = []
    then, now = kept.manifest["airflow"], airflow_version(values)
    if then != now:
        problems.append(
            f"it is of Airflow {then}, and {now} is installed: install {then} "
            f"(AIRFLOW={then.split('.')[0]}), restore, then upgrade"
        )
    if MLFLOW in kept.manifest["files"] and not values["mlflow"]["enabled"]:
        problems.append("it has models of the release's own MLflow, and mlflow.enabled is false")
    server = database.query("show server_version")[0][0]
    if int(server.split(".")[0]) < int(kept.manifest["postgres"].split(".")[0]):
        problems.append(f"its dump is of Postgres {kept.manifest['postgres']}, newer than {server}")
    runs = database.number("select count(*) from dag_run")
    if runs and not replace:
        problems.append(f"the database has {runs} runs, which would be lost: YES=1 if they may be")
    if problems:
        raise UserError(f"{kept.directory} is not restored:\n- " + "\n- ".join(problems))


def _keys_to_write(kube: Kube, values: dict[str, Any], kept: Backup) -> dict[str, dict[str, str]]:
    """Return Secret -> data that the chart has drawn here, as the backup has it.

    Raises UserError for a Secret that is somebody else's to change.
    """
    drawn = _names(values)
    fernet = values["airflow"]["fernetKeySecretName"]
    saved = kept.secrets()
    if "fernet-key" not in saved.get("fernet", {}):
        raise UserError(f"{kept.directory} has no Fernet key: its connections can't be read")
    if "fernet" not in drawn and _data(kube, fernet) != saved["fernet"]:
        raise UserError(
            f"the Secret {fernet} holds another Fernet key than the backup, whose connections and "
            f"variables could not be read: give it the one in {kept.directory / SECRETS} (base64)"
        )
    return {drawn[use]: data for use, data in saved.items() if use in drawn}


def _names(values: dict[str, Any]) -> dict[str, str]:
    """Return use -> name of the Secrets that the chart draws and a database depends on."""
    airflow, made = values["airflow"], values["secrets"]
    admin = values["admin"]
    names = {
        "fernet": (made["fernetKey"]["create"], airflow["fernetKeySecretName"]),
        "sessions": (
            made["webserverSecretKey"]["create"],
            airflow["webserverSecretKeySecretName"],
        ),
        # The hash of this password is in the database.
        "admin": (admin["enabled"] and not admin["existingSecret"], f"{RELEASE}-admin"),
    }
    return {use: name for use, (here, name) in names.items() if here}


def _secrets(kube: Kube, values: dict[str, Any]) -> dict[str, dict[str, str]]:
    names = {"fernet": values["airflow"]["fernetKeySecretName"]} | _names(values)
    return {use: _data(kube, name) for use, name in names.items()}


def _data(kube: Kube, name: str) -> dict[str, str]:
    found = kube.get("secret", name)
    if found is None:
        raise UserError(f"the Secret {name} is not there")
    data: dict[str, str] = found["data"]
    return data


def _facts(file: Path) -> dict[str, Any]:
    """Return SHA-256 and size of a file; nothing of one that is not there."""
    if not file.is_file():
        return {}
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return {"sha256": sha256, "bytes": file.stat().st_size}


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
