"""A release without a cluster, for commands about what it holds."""

import base64
import io
import json
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlctl.clients.kube import Kube
from mlctl.stack import Stack

VALUES: dict[str, Any] = {
    "airflow": {
        "nodeSelector": {},
        "tolerations": [],
        "affinity": {},
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


class PlayedKube(Kube):
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
        if words[:2] == ("delete", "pod"):
            del self.pods[words[2]]
        elif words[0] == "delete":
            self.done.append(words[1])
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
        script = re.sub(r"^#.*", "", words[-1], flags=re.MULTILINE)
        (part,) = [part for part in ("pg_dump", "sqlite3", "pg_restore", "mv") if part in script]
        self.done.append(part)
        if target:
            target.write_bytes(self.sent[part])
        if source:
            self.sent[part] = source.read_bytes()


class PlayedStack(Stack):
    """The release on it, with values that a test gives."""

    image = "localhost/classic"  # type: ignore[assignment]

    def __init__(self, kube: PlayedKube, values: dict[str, Any] = VALUES) -> None:
        self.kube = kube
        self.values = values

    def release(self, _: Any = None) -> Any:
        return SimpleNamespace(
            installed_values=lambda: self.values,
            wait_ready=lambda _: self.kube.done.append("ready"),
        )
