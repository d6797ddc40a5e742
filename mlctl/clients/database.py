"""The metadata database of Airflow, wherever it is: through a pod that may reach it."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlctl.base.names import RELEASE
from mlctl.clients.helper_pod import HelperPod
from mlctl.clients.kube import Kube

USER = 999
# The programs of PostgreSQL take no name of SQLAlchemy's driver: postgresql+psycopg2://.
_URL = '"postgresql://${DATABASE_URL#*://}"'
# It may be starting again, or its name not be known yet.
_WAIT = f"""
tries=0
until pg_isready --quiet --dbname {_URL}; do
  tries=$((tries + 1))
  if [ "$tries" -ge 60 ]; then echo 'The database does not answer.' >&2; exit 1; fi
  sleep 2
done"""
# The dump is a file before it is sent, inside a tar: one that breaks off is noticed.
_DUMP = f"""{_WAIT}
cd /tmp
pg_dump --format=custom --no-owner --file database.dump --dbname {_URL}
exec tar --create database.dump"""
# In one transaction, and not before all of the dump is there and is one. Dropped by schema: tables
# that came after the dump are not in it.
_RESTORE = f"""{_WAIT}
cd /tmp
tar --extract
pg_restore --no-owner --file database.sql database.dump
exec psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --single-transaction --dbname {_URL} \\
  --command 'DROP SCHEMA public CASCADE' --command 'CREATE SCHEMA public' --file database.sql"""
_QUERY = f"exec psql --no-psqlrc --tuples-only --csv --dbname {_URL} --command"


class Database(HelperPod):
    """A pod with PostgreSQL's programs and the login that Airflow has, for one block."""

    def __init__(self, kube: Kube, values: Mapping[str, Any], image: str) -> None:
        """``values`` are the release's, ``image`` has PostgreSQL's programs."""
        airflow = values["airflow"]
        address = {"name": airflow["data"]["metadataSecretName"], "key": "connection"}
        identity = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}
        programs = {
            "name": "postgres",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "env": [{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": address}}],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }
        spec = {
            "automountServiceAccountToken": False,
            "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
            "imagePullSecrets": values["imagePullSecrets"],
            # Where the chart's own pods may be.
            **{key: airflow[key] for key in ("nodeSelector", "tolerations", "affinity")},
            "containers": [programs],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        # Those of the setup Job's pod, which may reach every database.
        labels = {
            "app.kubernetes.io/name": "ml-pipelines",
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": "setup",
            "tier": "airflow",
            "release": RELEASE,
        }
        super().__init__(kube, "database", "at the metadata database", spec, labels)

    def dump(self, file: Path) -> None:
        """Write all of it to a file: a tar of what `pg_dump --format=custom` gives.

        Raises KubectlError when it fails or breaks off on its way.
        """
        self.fetch_tar(file, "sh", "-ceu", _DUMP)

    def restore(self, file: Path) -> None:
        """Put such a dump in the place of all that is there; a failure changes nothing.

        Raises KubectlError when it fails.
        """
        self.feed(file, "sh", "-ceu", _RESTORE)

    def query(self, sql: str) -> list[list[str]]:
        """Return the rows that a statement gives, as text. Raises UserError when it fails."""
        return list(csv.reader(self.run("sh", "-ceu", f'{_QUERY} "$0"', sql).splitlines()))

    def number(self, sql: str) -> int:
        """Return the one number that a statement gives. Raises UserError as ``query``."""
        return int(self.query(sql)[0][0])
