"""A cluster in Docker containers, made by kind (https://kind.sigs.k8s.io)."""

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
from mlctl.base.names import NAMESPACE
from mlctl.base.paths import BUILD
from mlctl.base.progress import Phase, Phases, run
from mlctl.base.waiting import until
from mlctl.builder.oci import read_layout, write_archive
from mlctl.clients.kube import Kube
from mlctl.cluster.checkout import FromRepository

CREATE_SECONDS = 600
READY_SECONDS = 120
VOLUME_IN_NODE = "/var/local/training-storage"


class KindCluster(FromRepository):
    """Needs a Docker engine and the `kind` program; DAGS_REPO names the git address of the DAGs."""

    kind = "kind"
    made_here = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = BUILD / "clusters" / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.kubeconfig = self.directory / "kubeconfig"
        self.log = BUILD / "log" / f"kind-{name}.log"
        self.created = threading.Event()

    def doctor(self) -> None:
        if problems := program_problems() + self.repository_problems():
            raise UserError("; ".join(problems))

    def up(self, phases: Phases) -> None:
        self.doctor()
        with self._tell_created(), phases.phase("Cluster: kind") as phase:
            if self.name in _output("kind", "get", "clusters").split():
                # It runs, or `down` has stopped it.
                run(["docker", "start", self.node], log=self.log, phase=phase)
                self._kind(phase, "export", "kubeconfig", "--kubeconfig", self.kubeconfig)
            else:
                config = self.directory / "kind.yaml"
                config.write_text(yaml.safe_dump(self._config()))
                where = ["--config", config, "--kubeconfig", self.kubeconfig]
                self._kind(phase, "create", "cluster", "--wait", "120s", *where)
            kube = Kube(self.kubeconfig, NAMESPACE)
            until(READY_SECONDS, lambda: not kube.problem(), kube.problem)

    def down(self, phases: Phases) -> None:
        with phases.phase("Cluster: stop") as phase:
            if self.status():
                run(["docker", "stop", self.node], log=self.log, phase=phase)

    def clean(self, phases: Phases) -> None:
        if problems := program_problems():
            raise UserError("; ".join(problems))
        with phases.phase("Cluster: delete") as phase:
            self._kind(phase, "delete", "cluster", "--kubeconfig", self.kubeconfig)
            shutil.rmtree(self.directory, ignore_errors=True)

    def status(self) -> list[dict[str, Any]]:
        state = _output("docker", "inspect", "--format", "{{.State.Status}}", self.node).strip()
        return [{"name": self.node, "state": state}] if state == "running" else []

    def log_files(self) -> dict[str, Path]:
        return {"kind": self.log} if self.log.exists() else {}

    def load_images(self, entries: dict[str, Any], phase: Phase) -> None:
        phase.note("waiting for the cluster")
        until(CREATE_SECONDS, self.created.is_set, "kind has not made the cluster")
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            for image in entries.values():
                archive = Path(place) / "image.tar"
                write_archive(archive, [read_layout(Path(image["layout"]))])
                self._kind(phase, "load", "image-archive", archive)

    def values(self) -> dict[str, Any]:
        storage = {"local": {"path": VOLUME_IN_NODE, "nodeName": self.node}}
        return {**super().values(), "storage": storage}

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

    def _kind(self, phase: Phase, *words: str | Path) -> None:
        run(["kind", *words, "--name", self.name], log=self.log, phase=phase)

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


def program_problems() -> list[str]:
    """Return what is missing of Docker and kind."""
    problems = []
    if not docker_answers():
        problems.append("no Docker engine answers: start it, or use CLUSTER=embedded")
    if not shutil.which("kind"):
        problems.append("no `kind` program: https://kind.sigs.k8s.io/docs/user/quick-start/")
    return problems


def docker_answers() -> bool:
    """Say whether a Docker engine answers."""
    return bool(_output("docker", "info"))


def _output(*command: str) -> str:
    """Return what a program says, '' where it fails, is missing or does not answer."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
