"""Where a secret could land in an installation, and the search for it in all of these places."""

import base64
import gzip
import io
import json
import re
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, quote_plus

import yaml

from mlctl.base.names import RELEASE
from mlctl.base.paths import ROOT
from mlctl.clients.airflow import Airflow
from mlctl.clients.kube import Kube, KubectlError
from mlctl.clients.pods import containers
from mlctl.commands.look import logs, status
from mlctl.commands.telling import explain_failure, summary
from mlctl.stack import Stack

# Shorter ones (a user's name) are no secrets.
SHORTEST = 12
HELM_RECORD = "helm.sh/release.v1"

Place = tuple[str, bytes]
"""Kind of place and name of the thing, e.g. ("config map settings", b"...")."""


@dataclass(frozen=True)
class Secret:
    """A value to look for. Its text is not part of `repr`: a failing test must not show it."""

    name: str
    value: str = field(repr=False)

    def forms(self) -> dict[str, set[bytes]]:
        """Return how the value may be written, by the name of the form."""
        raw = self.value.encode()
        escaped = json.dumps(self.value)[1:-1]
        return {
            "plain": {raw, escaped.encode()},
            "base64": set(_inside_base64(raw)),
            "URL-encoded": {quote(self.value, safe="").encode(), quote_plus(self.value).encode()},
        }


def _inside_base64(raw: bytes) -> Iterator[bytes]:
    """Yield what a base64 text holds when ``raw`` is a part of what it encodes.

    E.g. of `user:password` in a header: there are three ways to lie in groups of three bytes. The
    characters at either end also depend on the neighbours and are left out.
    """
    for before in range(3):
        text = base64.b64encode(bytes(before) + raw)
        first = -(-before * 8 // 6)
        whole = (before + len(raw)) * 8 // 6
        yield text[first:whole]
        yield text[first:whole].translate(bytes.maketrans(b"+/", b"-_"))


def secrets_of(kube: Kube) -> list[Secret]:
    """Return every value that the Secrets of the namespace hold, Helm's records left out."""
    found = []
    for secret in kube.items("secrets"):
        if secret["type"] == HELM_RECORD:
            continue
        for key, encoded in secret.get("data", {}).items():
            value = base64.b64decode(encoded).decode(errors="replace")
            if len(value) >= SHORTEST:
                found.append(Secret(f"{secret['metadata']['name']}/{key}", value))
    return found


def search(places: Iterable[Place], secrets: Iterable[Secret]) -> set[str]:
    """Return "place: secret, form" for all that was found."""
    looked_for = [
        (f"{secret.name}, {form}", text)
        for secret in secrets
        for form, texts in secret.forms().items()
        for text in texts
    ]
    return {
        f"{place}: {name}"
        for place, content in places
        for name, text in looked_for
        # A Secret may hold its own value, and nothing else may.
        if text in content and place != f"secret {name.partition('/')[0]}"
    }


class PodRecorder:
    """Keeps every state of every pod of the namespace that the API server reports."""

    def __init__(self, kube: Kube) -> None:
        self._command = kube.command("get", "pods", "--watch", "--output", "json")
        self._closed = threading.Event()
        self._seen: dict[bytes, None] = {}
        self._begun = threading.Event()

    def _watch(self) -> None:
        while not self._closed.is_set():
            with subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as self._process:
                assert self._process.stdout is not None
                pod = b""
                for line in self._process.stdout:
                    # kubectl indents: an object ends where it began, at the left.
                    pod += line
                    if line.rstrip() == b"}":
                        self._seen[pod] = None
                        self._begun.set()
                        pod = b""
            # The API server ends every watch after half an hour or so, and all when it restarts.
            self._closed.wait(1)

    def pods(self) -> list[dict[str, Any]]:
        """Return the states seen so far, each a whole pod, in their order."""
        return [json.loads(pod) for pod in list(self._seen)]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        if not self._begun.wait(30):
            raise KubectlError("kubectl get pods --watch reports nothing within 30 s")
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._process.terminate()
        self._thread.join()


def pods(kube: Kube, recorder: PodRecorder) -> Iterator[Place]:
    """Pods that are there, and those that were there since the recorder began."""
    for pod in [*recorder.pods(), *kube.items("pods")]:
        yield f"pod {pod['metadata']['name']}", json.dumps(pod).encode()


def objects(kube: Kube) -> Iterator[Place]:
    """Objects of the namespace in which nothing secret belongs, and the Secrets, each by itself."""
    kinds = ["configmaps", "events", "deployments", "statefulsets", "replicasets", "jobs"]
    kinds += ["services", "serviceaccounts", "persistentvolumeclaims", "secrets"]
    for found in kube.items(",".join(kinds)):
        if found.get("type") != HELM_RECORD:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", found["kind"]).lower()
            yield f"{kind} {found['metadata']['name']}", json.dumps(found).encode()


def helm_records(kube: Kube) -> Iterator[Place]:
    """What Helm keeps of every revision: values, notes, hooks and manifests.

    The manifests of Secrets are left out. Helm has to keep what it has applied, in a Secret of the
    same namespace: whoever may read the one may read the other.
    """
    for secret in kube.items("secrets"):
        if secret["type"] != HELM_RECORD:
            continue
        packed = base64.b64decode(base64.b64decode(secret["data"]["release"]))
        record = json.loads(gzip.decompress(packed))
        manifests = re.split(r"^---$", record.pop("manifest", ""), flags=re.MULTILINE)
        record["manifests"] = [
            text for text in manifests if (yaml.safe_load(text) or {}).get("kind") != "Secret"
        ]
        yield f"Helm record {secret['metadata']['name']}", json.dumps(record).encode()


def container_logs(kube: Kube) -> Iterator[Place]:
    """The logs of all containers, and of what ran before a restart."""
    for pod in kube.items("pods"):
        for container in containers(pod):
            name = (pod["metadata"]["name"], container["name"])
            yield f"log of {'/'.join(name)}", kube.logs(*name, -1).encode()
            if container["restartCount"]:
                yield f"log of {'/'.join(name)}", kube.logs(*name, -1, previous=True).encode()


def task_logs(stack: Stack) -> Iterator[Place]:
    """All logs on the claim, each by itself: those of tasks and of the DAG processor."""
    script = "cd /opt/airflow/logs && find . -type f -exec sh -c 'echo \"$1\"; cat \"$1\"' - {} ';'"
    text = stack.in_scheduler("sh", "-c", script, timeout=300)
    yield "task logs", text.encode()


def database(kube: Kube) -> Iterator[Place]:
    """A whole dump of the metadata database. Values in binary columns are added as they are."""
    dump = kube.run(
        *("exec", f"statefulset/{RELEASE}-postgres", "--"),
        *("pg_dump", "--username=airflow", "airflow"),
        timeout=300,
    ).stdout
    table = "?"
    rows: dict[str, list[str]] = {}
    for line in dump.splitlines():
        begins = re.match(r"COPY public\.(\w+) ", line)
        table = begins[1] if begins else table
        rows.setdefault(table, []).append(line)
    for table, lines in rows.items():
        text = "\n".join(lines)
        binary = (bytes.fromhex(found) for found in re.findall(r"\\\\x((?:[0-9a-f]{2})+)", text))
        yield f"table {table}", b"\n".join([text.encode(), *binary])


def mlflow_database(kube: Kube) -> Iterator[Place]:
    """MLflow's database, with what uploads have said about themselves."""
    script = (
        "import glob, sqlite3, sys\n"
        "for name in glob.glob('/mlflow/*.db'):\n"
        "    print(*sqlite3.connect(name).iterdump(), sep='\\n')\n"
    )
    where = [f"deployment/{RELEASE}-mlflow", "--"]
    text = kube.run("exec", *where, "python", "-c", script, timeout=120).stdout
    yield "database of MLflow", text.encode()


def pages(airflow: Airflow, runs: Iterable[tuple[str, str]]) -> Iterator[Place]:
    """What Airflow's API and pages tell a user: of variables, settings, and the tasks of runs."""
    for path in ("variables", "connections", "dags", "importErrors", "eventLogs", "providers"):
        yield f"API {path}", airflow.request("GET", path, params={"limit": 100}).content
    yield "API config", airflow.request("GET", "config", good=(403,)).content
    for path in ("home", "configuration", "variable/list/", "connection/list/"):
        yield f"page {path}", airflow.page(path).content
    for dag_id, run_id in runs:
        for path in ("", "/taskInstances"):
            found = airflow.request("GET", f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}{path}")
            yield f"API run of {dag_id}{path}", found.content
        when = quote(airflow.run(dag_id, run_id)["execution_date"], safe="")
        for task in airflow.tasks(dag_id, run_id):
            query = f"dag_id={dag_id}&task_id={task.task_id}"
            for page in ("rendered-templates", "rendered-k8s", "xcom"):
                answer = airflow.page(f"{page}?{query}&execution_date={when}")
                yield f"page {page} of {task.task_id}", answer.content


def repository(root: Path = ROOT) -> Iterator[Place]:
    """Tracked files of a checkout, and what commands have left in build/."""
    words = ["git", "-c", "safe.directory=*", "-C", str(root), "ls-files", "-z"]
    tracked = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\0")
    built = [str(path.relative_to(root)) for path in (root / "build").rglob("*")]
    for name in [*tracked, *built]:
        if (root / name).is_file():
            yield f"file {name}", (root / name).read_bytes()


def commands(stack: Stack, airflow: Airflow, runs: Iterable[tuple[str, str]]) -> Iterator[Place]:
    """What commands of the Makefile print about the release and its runs."""
    described = {
        "training_dag": {"state": "", "seconds": 0, "model_version": "", "gate": ""}
        | dict.fromkeys(("accuracy", "baseline_accuracy"), 0),
        "inference_dag": {"state": "", "seconds": 0, "predictions": "", "rows": 0},
        "cluster": {"kubeconfig": ""},
    }
    with redirect_stdout(io.StringIO()) as printed:
        status(stack)
        logs(stack, None, None)
        summary(stack, described)
        for dag_id, run_id in runs:
            explain_failure(airflow, dag_id, run_id)
    yield "output of commands", printed.getvalue().encode()


def everywhere(
    stack: Stack, airflow: Airflow, recorder: PodRecorder, runs: Iterable[tuple[str, str]]
) -> Iterator[Place]:
    """All places of an installation; ``runs`` are (DAG id, run id) of those to look at closely."""
    runs = list(runs)
    kube = stack.kube
    yield from pods(kube, recorder)
    yield from objects(kube)
    yield from helm_records(kube)
    yield from container_logs(kube)
    yield from task_logs(stack)
    yield from database(kube)
    yield from mlflow_database(kube)
    yield from pages(airflow, runs)
    yield from commands(stack, airflow, runs)
    yield from repository()
