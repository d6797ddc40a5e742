"""A cluster in Docker containers, made by kind (https://kind.sigs.k8s.io)."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlctl.base.errors import UserError
from mlctl.base.paths import BUILD
from mlctl.base.progress import Phase, Phases, run
from mlctl.builder.oci import read_layout, write_archive
from mlctl.cluster.checkout import dag_values, head, work_directory

CREATE_SECONDS = 600
VOLUME_IN_NODE = "/var/local/training-storage"


class KindCluster:
    """Needs a Docker engine and the `kind` program; DAGS_REPO names the git address of the DAGs."""

    kind = "kind"
    made_here = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = work_directory(name)
        self.kubeconfig = self.directory / "kubeconfig"
        self.log = BUILD / "log" / f"kind-{name}.log"
        self.created = threading.Event()

    def doctor(self) -> None:
        problems = []
        if not docker_answers():
            problems.append("no Docker engine answers: start it, or use CLUSTER=embedded")
        if not shutil.which("kind"):
            problems.append("no `kind` program: https://kind.sigs.k8s.io/docs/user/quick-start/")
        if not os.environ.get("DAGS_REPO"):
            problems.append("set DAGS_REPO to a git address that pods can clone, holding dags/")
        if problems:
            raise UserError("; ".join(problems))

    def host_packages(self) -> list[str]:
        return []

    def up(self, phases: Phases) -> None:
        self.doctor()
        with self._tell_created(), phases.phase("Cluster: kind") as phase:
            if self.name not in self._clusters():
                config = self.directory / "kind.yaml"
                config.write_text(yaml.safe_dump(self._config()))
                command = ["kind", "create", "cluster", "--name", self.name, "--wait", "120s"]
                command += ["--config", str(config), "--kubeconfig", str(self.kubeconfig)]
                run(command, log=self.log, phase=phase)
            else:
                export = ["kind", "export", "kubeconfig", "--name", self.name]
                run([*export, "--kubeconfig", self.kubeconfig], log=self.log, phase=phase)

    def down(self, phases: Phases) -> None:
        with phases.phase("Cluster: stop") as phase:
            run(["docker", "stop", self.node], log=self.log, phase=phase)

    def clean(self, phases: Phases) -> None:
        with phases.phase("Cluster: delete") as phase:
            run(["kind", "delete", "cluster", "--name", self.name], log=self.log, phase=phase)
            shutil.rmtree(self.directory, ignore_errors=True)

    def status(self) -> list[dict[str, Any]]:
        inspect = ["docker", "inspect", "--format", "{{.State.Status}}", self.node]
        result = subprocess.run(inspect, capture_output=True, text=True)
        return [{"name": self.node, "state": result.stdout.strip() or "absent"}]

    def remarks(self) -> list[str]:
        return []

    def log_files(self) -> dict[str, Path]:
        return {"kind": self.log} if self.log.exists() else {}

    def load_images(self, entries: dict[str, Any], phase: Phase) -> None:
        if not self.created.is_set() and self.name not in self._clusters():
            phase.note("waiting for the cluster")
            self.created.wait(CREATE_SECONDS)
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            for image in entries.values():
                archive = Path(place) / "image.tar"
                write_archive(archive, [read_layout(Path(image["layout"]))])
                command = ["kind", "load", "image-archive", str(archive), "--name", self.name]
                run(command, log=self.log, phase=phase)

    def images(self) -> set[str]:
        return set()  # kind deletes its node with all of them.

    def remove_images(self, names: set[str]) -> None:
        pass

    def values(self) -> dict[str, Any]:
        repository, ref = os.environ.get("DAGS_REPO", ""), os.environ.get("DAGS_REF", "main")
        storage = {"local": {"path": VOLUME_IN_NODE, "nodeName": self.node}}
        return {**dag_values(repository, ref), "storage": storage}

    def publish(self, *, worktree: bool) -> str:
        if worktree:
            raise UserError("push to DAGS_REPO instead: only CLUSTER=embedded serves a checkout")
        return head()

    @contextmanager
    def _tell_created(self) -> Iterator[None]:
        # Also when it failed: who waits then gets kind's own message.
        try:
            yield
        finally:
            self.created.set()

    @property
    def node(self) -> str:
        """The name of kind's one node, and of its container."""
        return f"{self.name}-control-plane"

    def _config(self) -> dict[str, Any]:
        host = self.directory / "training-storage"
        host.mkdir(exist_ok=True)
        host.chmod(0o777)
        mounts = [{"hostPath": str(host), "containerPath": VOLUME_IN_NODE}]
        return {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": [{"role": "control-plane", "extraMounts": mounts}],
        }

    def _clusters(self) -> list[str]:
        result = subprocess.run(["kind", "get", "clusters"], capture_output=True, text=True)
        return result.stdout.split()


def docker_answers() -> bool:
    """Say whether a Docker engine answers."""
    if not shutil.which("docker"):
        return False
    try:
        result = subprocess.run(["docker", "info"], capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0
