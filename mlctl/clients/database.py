"""The metadata database of Airflow, wherever it is: through a pod that may reach it."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlctl.base.names import RELEASE
from mlctl.base.paths import CHART
from mlctl.clients.helper_pod import HelperPod
from mlctl.clients.kube import Kube

USER = 999
# Sets $url, as for the chart's own dump.
_URL = (CHART / "files" / "database.sh").read_text()
# The dump is a file before it is sent, inside a tar: one that breaks off is noticed.
_DUMP = f"""{_URL}
cd /tmp
pg_dump --format=custom --no-owner --file database.dump --dbname "$url"
exec tar --create database.dump"""
# In one transaction, and not before all of the dump is there and is one. Dropped by schema: tables
# that came after the dump are not in it.
_RESTORE = f"""{_URL}
cd /tmp
tar --extract
pg_restore --no-owner --file database.sql database.dump
exec psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --single-transaction --dbname "$url" \\
  --command 'DROP SCHEMA public CASCADE' --command 'CREATE SCHEMA public' --file database.sql"""
_QUERY = f"""{_URL}
exec psql --no-psqlrc --tuples-only --csv --dbname "$url" --command "$0"
"""


class Database(HelperPod):
    """A pod with PostgreSQL's programs and the login that Airflow has, for one block.

    Its methods raise KubectlError or UserError when the login leads to a connection pooler: the
    Secret of the database's URL needs the key ``direct`` then.
    """

    def __init__(self, kube: Kube, values: Mapping[str, Any], image: str) -> None:
        """``values`` are the release's, ``image`` has PostgreSQL's programs."""
        airflow = values["airflow"]
        secret = airflow["data"]["metadataSecretName"]
        keys = {
            "DATABASE_URL": {"name": secret, "key": "connection"},
            "DIRECT_URL": {"name": secret, "key": "direct", "optional": True},
        }
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
            "env": [
                {"name": "URL_SECRET", "value": secret},
                *({"name": name, "valueFrom": {"secretKeyRef": key}} for name, key in keys.items()),
            ],
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
        return list(csv.reader(self.run("sh", "-ceu", _QUERY, sql).splitlines()))

    def number(self, sql: str) -> int:
        """Return the one number that a statement gives. Raises UserError as ``query``."""
        return int(self.query(sql)[0][0])
