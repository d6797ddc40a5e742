"""The embedded cluster: a single-node Kubernetes in namespaces of this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from mlctl.base import processes
from mlctl.base.errors import UserError
from mlctl.base.packages import ensure_packages
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phase, Phases
from mlctl.base.wheels import kubectl
from mlctl.builder import load
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
    pki,
)
from mlctl.cluster.embedded.binary import node_binary
from mlctl.cluster.embedded.config import NODE_NAME, Config
from mlctl.cluster.embedded.machine import private_directories

START_SECONDS = 120
WORKLOAD_SECONDS = 300
"""For what ran before: Airflow's pages need more than two minutes where the machine is busy."""

STOP_SECONDS = 60
REQUEST_SECONDS = 20
LAST_BREATH_SECONDS = 5
POLL_SECONDS = 0.3


class EmbeddedCluster:
    """See provider.Provider. All its data are below ``config.state``."""

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
            self.config = Config(
                name=name,
                state=known.state,
                api_port=known.api_port if keep_port else self.config.api_port,
                pod_cidr=known.pod_cidr,
                service_cidr=known.service_cidr,
                outbound=known.outbound if keep_outbound else self.config.outbound,
            )
        self.kubeconfig = self.config.kubeconfig

    # Checks and preparation

    def doctor(self) -> None:
        """Raise UserError with everything that is in the way of ``up``."""
        if not control.is_running(self.config):
            self._await_last_breath()
            doctor.check(self.config)

    def _await_last_breath(self) -> None:
        """Give a node that was killed the moment that its processes take to let go of the port."""
        deadline = time.monotonic() + LAST_BREATH_SECONDS
        known = (self.config.state / "pid").exists()
        while known and time.monotonic() < deadline and doctor.check_port(self.config):
            time.sleep(POLL_SECONDS)

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
            self._kubectl("apply", "--filename", str(self.config.etc / "cluster.yaml"))
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
                pid = self._pid()
                control.ask(self.config, "shut-down")
                self._wait("the node to end", phase, lambda: not _alive(pid), seconds=STOP_SECONDS)
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

    def cut_power(self) -> None:
        """End the node as a power cut does: every process of it at once, nothing is told before.

        Raises UserError when it does not run.
        """
        process = self._pid()
        if not _alive(process):
            raise UserError(f"the cluster {self.name} does not run: `make up`")
        os.kill(process[0], signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while _alive(process):
            if time.monotonic() > deadline:
                raise UserError(f"the node {self.name} has not ended after {STOP_SECONDS} s")
            time.sleep(POLL_SECONDS)

    def in_network(self, *command: str) -> list[str]:
        """Return the command line that runs a command of this machine in the node's network."""
        return ["nsenter", "--target", str(self._pid()[0]), "--net", "--", *command]

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
    def _ctr(self) -> list[str]:
        return ["ctr", "--address", str(self.config.containerd_socket)]

    def _prepare(self, pause_image: str) -> None:
        config = self.config
        self._remove_traces(None)
        config.save()
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
        (config.state / "pid").write_text(f"{process.pid} {_start_time(process.pid)}")

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
        if not self.config.control_socket.exists():
            if (self.config.state / "pid").exists() and not _alive(self._pid()):
                log = self.config.log / "supervisor.log"
                tail = "\n".join(log.read_text().splitlines()[-8:])
                raise UserError(f"the node ended at once; whole log: {log}\n{tail}")
            return {}
        answer = control.ask(self.config, "status")
        if answer["failure"]:
            log = self.config.log / f"{answer['failure'].split()[0]}.log"
            raise UserError(f"{answer['failure']}: see {log}, then `make down`")
        return answer

    def _node_ready(self, since: datetime) -> bool:
        result = self._kubectl("get", "node", NODE_NAME, "--output", "json", check=False)
        if result.returncode != 0:
            return False
        for condition in json.loads(result.stdout)["status"].get("conditions", []):
            if condition["type"] == "Ready":
                beat = datetime.fromisoformat(condition["lastHeartbeatTime"])
                # After a restart the stored condition is that of the earlier life.
                return condition["status"] == "True" and beat >= since.replace(microsecond=0)
        return False

    def _has_service_account(self) -> bool:
        words = ["get", "serviceaccount", "default", "--namespace", "default"]
        return self._kubectl(*words, check=False).returncode == 0

    def _pods_ready(self, phase: Phase) -> bool:
        pods = json.loads(self._kubectl("get", "pods", "-A", "--output", "json").stdout)["items"]
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
        if _alive(self._pid()):
            # The supervisor does not answer: end it, and with it everything inside.
            os.kill(self._pid()[0], 9)
            if phase:
                self._wait("the node to end", phase, lambda: not _alive(self._pid()))
        deadline = time.monotonic() + 10
        while cgroups.remove(self.config.cgroup) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        mountpoints.remove()
        shutil.rmtree(self.config.run, ignore_errors=True)
        (self.config.state / "pid").unlink(missing_ok=True)

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

    def _pid(self) -> tuple[int, str]:
        """Return the node's process and start time as written at the launch, (0, '') if none."""
        path = self.config.state / "pid"
        if not path.exists():
            return (0, "")
        pid, _, started = path.read_text().partition(" ")
        return int(pid), started

    def _wait(
        self, what: str, phase: Phase, done: Callable[[], bool], seconds: float = START_SECONDS
    ) -> None:
        # Raises Interrupted in a thread of a command that was interrupted.
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise UserError(
                    f"waited {seconds:.0f} s for {what} ({phase.detail or 'no sign'}); "
                    f"logs: {self.config.log}, or `make logs`"
                )
            processes.check()
            time.sleep(POLL_SECONDS)

    def _kubectl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # An API server that takes connections and does not answer must not hold up who waits.
        patience = f"--request-timeout={REQUEST_SECONDS}s"
        command = [str(kubectl()), "--kubeconfig", str(self.kubeconfig), patience, *words]
        result = subprocess.run(command, capture_output=True, text=True)
        if check and result.returncode != 0:
            raise UserError(f"kubectl {words[0]}: {result.stderr.strip()}")
        return result


def _start_time(pid: int) -> str:
    """Return the kernel's start time of a process, '' when it has ended: pids are reused."""
    try:
        # proc(5): the fields after the command's name begin with the state, the 20th is the time.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _alive(process: tuple[int, str]) -> bool:
    pid, started = process
    return pid > 0 and started != "" and _start_time(pid) == started
