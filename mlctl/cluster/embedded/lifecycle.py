"""The embedded cluster: a single-node Kubernetes in namespaces of this machine."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from mlctl.base.errors import UserError
from mlctl.base.packages import ensure_packages
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phase, Phases
from mlctl.base.waiting import until, within
from mlctl.builder import load
from mlctl.clients.kube import Kube, KubectlError
from mlctl.clients.pods import is_ready
from mlctl.cluster.checkout import dag_values
from mlctl.cluster.embedded import (
    cgroups,
    config_files,
    control,
    dag_source,
    doctor,
    mountpoints,
    outbound,
    pause,
)
from mlctl.cluster.embedded.binary import node_binary
from mlctl.cluster.embedded.config import NODE_NAME, Config
from mlctl.cluster.embedded.machine import private_directories

START_SECONDS = 120
WORKLOAD_SECONDS = 300
"""For what ran before: Airflow's pages need more than two minutes where the machine is busy."""

STOP_SECONDS = 60
LAST_BREATH_SECONDS = 5
ANSWER_SECONDS = 10
CLOCK_SECONDS = 5


class EmbeddedCluster:
    """A Provider whose node is processes of this machine; its data are below ``config.state``."""

    kind = "embedded"
    made_here = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = Config.from_environment(name)
        saved = self.config.state / "config.json"
        if saved.exists():
            known = Config.load(self.config.state)
            # A cluster keeps its networks: certificates and objects carry the addresses. The
            # port and the way out are kept too unless something else is asked for.
            keep_port = "API_PORT" not in os.environ
            keep_outbound = not os.environ.get("OUTBOUND")
            self.config = replace(
                known,
                api_port=known.api_port if keep_port else self.config.api_port,
                outbound=known.outbound if keep_outbound else self.config.outbound,
            )
        self.kubeconfig = self.config.kubeconfig
        self._launched = False

    # Checks and preparation

    def doctor(self) -> None:
        """Raise UserError with everything that is in the way of ``up``."""
        if not control.is_running(self.config):
            self._await_last_breath()
            doctor.check(self.config)

    def _await_last_breath(self) -> None:
        """Give a node that was killed the moment that its processes take to let go of the port."""
        if self._pid_file.exists():
            within(LAST_BREATH_SECONDS, lambda: not doctor.check_port(self.config))

    def up(self, phases: Phases) -> None:
        """Start the node and wait until it is ready, and what ran on it before is ready again."""
        if self._ready_mark.exists() and control.is_running(self.config):
            dag_source.use_checkout(self.config.git, ROOT)
            self._switch_outbound(phases)
            return
        self.doctor()
        with phases.phase("Cluster: packages of this machine"):
            ensure_packages("the embedded cluster", self.host_packages())
        pause_image = pause.pause(phases)
        # From here on a start that was interrupted is taken up where it stopped.
        with phases.phase("Cluster: container runtime") as phase:
            if not control.is_running(self.config):
                self._prepare(f"{pause_image['repository']}:{pause_image['tag']}")
                self._launch()
            self.load_images({"pause": pause_image}, phase)
        with phases.phase("Cluster: Kubernetes from Go modules") as phase:
            binary = node_binary(phase)
        with phases.phase("Cluster: start") as phase:
            started = datetime.now().astimezone()
            if not self.config.node_binary.exists():
                self.config.node_binary.symlink_to(binary)
            self._wait("the programs to start", phase, lambda: self._booted(phase))
            self._kube.run("apply", "--filename", str(self.config.etc / "cluster.yaml"))
            self._wait("the node to be ready", phase, lambda: self._node_ready(started))
            # Pods are refused until the controllers have made this one.
            self._wait("the default service account", phase, self._has_service_account)
        with phases.phase("Cluster: workloads ready") as phase:
            self._wait(
                "the pods to be ready",
                phase,
                lambda: self._pods_ready(phase),
                seconds=WORKLOAD_SECONDS,
            )
        self._switch_outbound(phases)
        self._ready_mark.touch()

    def down(self, phases: Phases) -> None:
        """Stop everything; the data stay. Nothing is left on the host but the data."""
        with phases.phase("Cluster: stop") as phase:
            if control.is_running(self.config):
                control.ask(self.config, "shut-down")
                self._wait("the node to end", phase, lambda: self._process() is None, STOP_SECONDS)
            self._remove_traces(phase)

    def clean(self, phases: Phases) -> None:
        """Stop the cluster and delete its data: database, models, volumes, images."""
        self.down(phases)
        with phases.phase(f"Cluster: delete {self.config.state}"):
            shutil.rmtree(self.config.state, ignore_errors=True)
            if self.config.state.exists():
                raise UserError(f"{self.config.state} could not be deleted")

    def component(self, operation: str, name: str) -> None:
        """``stop``, ``start`` or ``restart`` one program of the node."""
        control.ask(self.config, operation, name)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the process of one program of the node.

        Raises UserError when that does not run.
        """
        for process in self._running().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # Programs of containers come and go.
                # All are one binary, whose first argument says which program it is.
                if process.cmdline()[1:2] == [name]:
                    process.send_signal(number)
                    return
        raise UserError(f"{name} does not run")

    def cut_power(self) -> None:
        """End the node as a power cut does: every process of it at once, nothing is told before.

        Raises UserError when it does not run.
        """
        self._running().kill()
        until(STOP_SECONDS, lambda: self._process() is None, f"the node {self.name} is still there")

    def in_network(self, *command: str) -> list[str]:
        """Return the command line that runs a command of this machine in the node's network."""
        return ["nsenter", "--target", str(self._running().pid), "--net", "--", *command]

    # What others need

    def host_packages(self) -> list[str]:
        """Return the Debian packages that the cluster needs on this machine."""
        return doctor.host_packages(self.config)

    def status(self) -> list[dict[str, Any]]:
        """Return a row for each program of the node."""
        if not control.is_running(self.config):
            return []
        return control.ask(self.config, "status")["components"]

    def remarks(self) -> list[str]:
        """Say whether pods have a way out."""
        if Config.load(self.config.state).outbound:
            return ["outbound traffic of pods: on (`OUTBOUND=0 make up` switches it off)"]
        return ["outbound traffic of pods: off (`OUTBOUND=1 make up` switches it on)"]

    def log_files(self) -> dict[str, Path]:
        """Return the log of each program."""
        return {path.stem: path for path in sorted(self.config.log.glob("*.log"))}

    def load_images(self, entries: dict[str, Any], phase: Phase) -> None:
        """Import the archives that the node does not have yet.

        May be called while ``up`` is under way: it waits for the container runtime only.
        """
        self._wait("the container runtime", phase, lambda: self._runs(phase, "containerd"))
        load.load(self._ctr, entries, phase)

    def images(self) -> set[str]:
        """Return the full names of the project's images that containerd has."""
        # No pod names the first: every pod has it, by containerd's own settings.
        return {
            name
            for name in load.project_images(self._ctr)
            if not name.startswith(f"{pause.REPOSITORY}:")
        }

    def remove_images(self, names: set[str]) -> None:
        """Remove images from containerd, and their layers that no other image has."""
        load.remove(self._ctr, names)

    def values(self) -> dict[str, Any]:
        """Return where the DAGs are cloned from and where the training volume lives."""
        storage = {
            "local": {"path": str(self.config.training_storage), "nodeName": NODE_NAME},
        }
        repository = dag_values(self.config.dag_repository, dag_source.BRANCH)
        return {**repository, "storage": storage}

    def publish(self, *, worktree: bool) -> str:
        """Publish this checkout's HEAD, or its files as they are, to the pods."""
        return self.serve(ROOT, worktree=worktree)

    def serve(self, checkout: Path, *, worktree: bool = False) -> str:
        """Publish the HEAD of any checkout, or its files as they are, to the pods."""
        return dag_source.publish(self.config.git, checkout, worktree=worktree)

    # Inside

    @property
    def _kube(self) -> Kube:
        return Kube(self.kubeconfig, "default")

    @property
    def _ctr(self) -> list[str]:
        return ["ctr", "--address", str(self.config.containerd_socket)]

    def _prepare(self, pause_image: str) -> None:
        config = self.config
        self._remove_traces(None)
        config.save()
        # Cryptography takes 0.2 s to import, which every command would pay.
        from mlctl.cluster.embedded import pki

        pki.write_all(config)
        config_files.write_all(config, pause_image)
        dag_source.use_checkout(config.git, ROOT)
        mountpoints.create(private_directories(config))
        cgroups.create(config.cgroup)

    def _launch(self) -> None:
        config = self.config
        config.log.mkdir(parents=True, exist_ok=True)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", config.api_port))
        listener.listen(128)
        unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc"]
        command = [*unshare, "--kill-child", "tini", "--", sys.executable]
        command += ["-m", "mlctl.cluster.embedded.supervisor", str(config.state)]
        namespaces = [outbound.open_namespace(kind) for kind in ("net", "mnt")]
        descriptors = [listener.fileno(), *namespaces]
        with (config.log / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *map(str, descriptors)],
                cwd=ROOT,
                env=os.environ
                | {"PYTHONPATH": f"{ROOT}:{ROOT / 'dags'}", "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                # The cluster outlives this command and its terminal.
                start_new_session=True,
            )
        listener.close()
        for namespace in namespaces:
            os.close(namespace)
        started = psutil.Process(process.pid).create_time()
        self._pid_file.write_text(f"{process.pid} {started}")
        self._launched = True

    @property
    def _ready_mark(self) -> Path:
        """Exists once a start has come to its end; each start begins with an empty directory."""
        return self.config.run / "ready"

    def _booted(self, phase: Phase) -> bool:
        answer = self._supervisor_status(phase)
        waiting = [c["name"] for c in answer.get("components", []) if c["state"] != "running"]
        phase.note(f"starting {waiting[0] if waiting else 'the last program'}")
        return bool(answer.get("booted"))

    def _runs(self, phase: Phase, name: str) -> bool:
        components = self._supervisor_status(phase).get("components", [])
        state = {row["name"]: row["state"] for row in components}.get(name)
        return state == "running" and self.config.containerd_socket.exists()

    def _supervisor_status(self, phase: Phase) -> dict[str, Any]:
        """Return the supervisor's answer, {} before it listens.

        Raises UserError when it has ended or given up.
        """
        # What an earlier life has left, its socket among it, says nothing before the launch.
        if self._launched and self._process() is None:
            log = self.config.log / "supervisor.log"
            tail = "\n".join(log.read_text().splitlines()[-8:])
            raise UserError(f"the node ended at once; whole log: {log}\n{tail}")
        try:
            answer = control.ask(self.config, "status", seconds=ANSWER_SECONDS)
        except UserError:
            return {}
        if answer["failure"]:
            log = self.config.log / f"{answer['failure'].split()[0]}.log"
            raise UserError(f"{answer['failure']}: see {log}, then `make down`")
        return answer

    def _node_ready(self, since: datetime) -> bool:
        node = self._get("node", NODE_NAME) or {"status": {}}
        for condition in node["status"].get("conditions", []):
            if condition["type"] == "Ready":
                beat = datetime.fromisoformat(condition["lastHeartbeatTime"])
                # After a restart the stored condition is that of the earlier life.
                return condition["status"] == "True" and beat >= since.replace(microsecond=0)
        return False

    def _has_service_account(self) -> bool:
        return self._get("serviceaccount", "default") is not None

    def _get(self, kind: str, name: str) -> dict[str, Any] | None:
        try:
            return self._kube.get(kind, name)
        except KubectlError:
            return None  # An API server that has just started is asked again.

    def _pods_ready(self, phase: Phase) -> bool:
        pods = self._kube.items("pods", all_namespaces=True)
        waiting = []
        for pod in pods:
            # Pods with an owner are restarted; a task's pod that died is Airflow's business.
            controlled = any(
                owner["kind"] in {"ReplicaSet", "StatefulSet", "DaemonSet"}
                for owner in pod["metadata"].get("ownerReferences", [])
            )
            # Right after a start the stored conditions are those of the earlier life.
            statuses = pod["status"].get("containerStatuses", [])
            started = any(container.get("started") for container in statuses)
            if controlled and not (is_ready(pod) and started):
                waiting.append(pod["metadata"]["name"])
        phase.note(f"waiting for {', '.join(waiting)}" if waiting else "all ready")
        return not waiting

    def _remove_traces(self, phase: Phase | None) -> None:
        """Remove what the namespaces' end does not: empty cgroups and mount points."""
        if process := self._process():
            # The supervisor does not answer: end it, and with it everything inside.
            process.kill()
            if phase:
                self._wait("the node to end", phase, lambda: self._process() is None)
        within(10, lambda: not cgroups.remove(self.config.cgroup))
        mountpoints.remove()
        shutil.rmtree(self.config.run, ignore_errors=True)
        self._pid_file.unlink(missing_ok=True)

    def _switch_outbound(self, phases: Phases) -> None:
        """Give a running node the way out, or take it, if it was started otherwise."""
        config = self.config
        if Config.load(config.state).outbound == config.outbound:
            return
        with phases.phase(f"Cluster: outbound traffic {'on' if config.outbound else 'off'}"):
            if problem := outbound.check(config):
                raise UserError(problem)
            ensure_packages("outbound traffic of pods", self.host_packages())
            self.component("start" if config.outbound else "stop", outbound.PROGRAM)
            config_files.write_corefile(config)
            self.component("restart", "coredns")
            config.save()

    @property
    def _pid_file(self) -> Path:
        """Holds the node's process and when that began, as written at the launch."""
        return self.config.state / "pid"

    def _process(self) -> psutil.Process | None:
        """Return the node's process, None when it has ended: process numbers are used again."""
        try:
            pid, started = self._pid_file.read_text().split()
            process = psutil.Process(int(pid))
            # The machine's clock may be set between the two looks.
            same = abs(process.create_time() - float(started)) < CLOCK_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None

    def _running(self) -> psutil.Process:
        if process := self._process():
            return process
        raise UserError(f"the cluster {self.name} does not run: `make up`")

    def _wait(
        self, what: str, phase: Phase, done: Callable[[], bool], seconds: float = START_SECONDS
    ) -> None:
        until(
            seconds,
            done,
            lambda: (
                f"waited for {what} ({phase.detail or 'no sign'}); "
                f"logs: {self.config.log}, or `make logs`"
            ),
        )
