"""The first program inside the node's namespaces: it sets up the node and runs its programs.

It runs under ``tini``, which adopts and reaps what the programs leave behind; when it ends,
so do the namespaces with every process, mount, link and rule in them.

Commands come as one JSON object a line over a unix socket, see control.py.
"""

import json
import os
import shutil
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mlctl.cluster.embedded import outbound
from mlctl.cluster.embedded.components import READY_SECONDS, Component, Descriptors, components
from mlctl.cluster.embedded.config import NODE_NAME, Config
from mlctl.cluster.embedded.config_files import BRIDGE

BACKOFF_SECONDS = (0.5, 1, 2, 5, 10)
STABLE_SECONDS = 30
STOP_SECONDS = 15
CONTAINER_STOP_SECONDS = 4
"""A database ends in less. Pages take half a minute to see their clients off, which nobody waits
for; and what is killed loses nothing that it has written: the host goes on running.
"""
LOG_LIMIT_BYTES = 50_000_000


def private_directories(config: Config) -> dict[Path, Path]:
    """Return the host directories that programs insist on, with what the node sees there."""
    return {
        Path("/var/lib/kubelet"): config.state / "kubelet",
        Path("/var/lib/cni"): config.run / "cni-cache",
        Path("/var/log"): config.log / "var-log",
    }


def set_up_mounts(config: Config) -> None:
    """Give the node a /run, /var/log and kubelet directory of its own."""
    shutil.rmtree(config.run, ignore_errors=True)
    for directory in (config.run, config.log, config.volumes, config.training_storage):
        directory.mkdir(parents=True, exist_ok=True)
    # Task pods of any user write here. No sticky bit: the kubelet gives this mode to directories of
    # runs, which it makes as root, and with the bit no pod could remove them.
    config.training_storage.chmod(0o777)
    for target, source in private_directories(config).items():
        source.mkdir(parents=True, exist_ok=True)
        call("mount", "--bind", str(source), str(target))
    call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/lock").mkdir()


def set_up_network(config: Config) -> None:
    """Make the loopback, the pods' bridge and the routes of the node's own network."""
    call("hostname", NODE_NAME)
    call("ip", "link", "set", "lo", "up")
    call("ip", "link", "add", BRIDGE, "type", "bridge")
    prefix = config.pod_cidr.partition("/")[2]
    call("ip", "address", "add", f"{config.node_ip}/{prefix}", "dev", BRIDGE)
    call("ip", "link", "set", BRIDGE, "up")
    # kube-proxy rewrites Service addresses on the way out, so they must have a way out.
    call("ip", "route", "add", config.service_cidr, "dev", BRIDGE)
    for key in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        path = Path("/proc/sys") / key
        if path.exists():
            path.write_text("1")
    call("iptables", "-P", "FORWARD", "ACCEPT")
    # Without the link it matches nothing; the link may come later.
    call(*outbound.masquerade(config))


def call(*command: str) -> None:
    """Run a command of the host; its output is in the supervisor's log."""
    subprocess.run(command, check=True)


class Runner:
    """Keeps one program running until told otherwise."""

    def __init__(self, component: Component, log: Path) -> None:
        self.component = component
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.restarts = 0
        self.exit_codes: list[int] = []
        self.wanted = threading.Event()
        self.changed = threading.Condition()
        threading.Thread(target=self._keep, name=component.name, daemon=True).start()

    def start(self) -> None:
        """Have the program run."""
        self.wanted.set()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End the program: SIGTERM, and SIGKILL after ``seconds``."""
        self.wanted.clear()
        deadline = time.monotonic() + seconds
        self._signal(signal.SIGTERM)
        with self.changed:
            while self.process is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._signal(signal.SIGKILL)
                    left = 5
                self.changed.wait(min(left, 1))

    def wait_ready(self, check: "ReadyCheck") -> bool:
        """Wait until the program serves; False if it does not within READY_SECONDS."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process is not None and check(self.component.ready):
                return True
            with self.changed:
                self.changed.wait(0.1)
        return False

    def status(self) -> dict[str, Any]:
        """Return what `make status` shows."""
        process = self.process
        return {
            "name": self.component.name,
            "state": "running" if process else ("waiting" if self.wanted.is_set() else "stopped"),
            "pid": process.pid if process else None,
            "seconds": round(time.monotonic() - self.started, 1) if process else None,
            "restarts": self.restarts,
            "exit_codes": self.exit_codes[-5:],
        }

    def _signal(self, number: int) -> None:
        process = self.process
        if process is not None:
            process.send_signal(number)

    def _keep(self) -> None:
        failures = 0
        while True:
            self.wanted.wait()
            code = self._run_once()
            if time.monotonic() - self.started > STABLE_SECONDS:
                failures = 0
            if self.wanted.is_set():
                self.restarts += 1
                pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]
                failures += 1
                say(f"{self.component.name} ended with {code}, again in {pause} s")
                with self.changed:
                    self.changed.wait(pause)

    def _run_once(self) -> int:
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.component.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.component.env,
                pass_fds=self.component.file_descriptors,
            )
        self.started = time.monotonic()
        self.process = process
        code = process.wait()
        self.exit_codes.append(code)
        with self.changed:
            self.process = None
            self.changed.notify_all()
        return code


class ReadyCheck:
    """Asks a URL with the administrator's certificate, or looks for a path."""

    def __init__(self, config: Config) -> None:
        self.context = ssl.create_default_context(cafile=str(config.pki / "ca.crt"))
        self.context.load_cert_chain(config.pki / "admin.crt", config.pki / "admin.key")

    def __call__(self, ready: str | Path | None) -> bool:
        if ready is None:
            return True
        if isinstance(ready, Path):
            return ready.exists()
        context = self.context if ready.startswith("https") else None
        try:
            with urllib.request.urlopen(ready, timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Supervisor:
    """All programs of the node."""

    def __init__(self, config: Config, node: Path, descriptors: Descriptors) -> None:
        self.config = config
        self.node = node
        self.booted = False
        self.failure = ""
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.check = ReadyCheck(config)
        self.runners = {
            component.name: Runner(component, config.log / f"{component.name}.log")
            for component in components(config, node, descriptors)
        }

    def boot(self) -> None:
        """Start everything in order."""
        for runner in self.runners.values():
            if runner.component.optional and not self.config.outbound:
                continue
            # Containers' images can be imported while Kubernetes is still being compiled.
            while runner.component.command[0] == str(self.node) and not self.node.exists():
                if self.stopping.wait(0.2):
                    return
            runner.start()
            if not runner.wait_ready(self.check):
                self.failure = f"{runner.component.name} is not ready after {READY_SECONDS} s"
                say(self.failure)
                return
        self.booted = True
        say("all programs are started")

    def shut_down(self) -> None:
        """Stop containers, then programs, each politely first."""
        say("stopping")
        self.stopping.set()
        order = list(self.runners.values())[::-1]
        last = {"containerd", "etcd", "kube-apiserver"}
        # With nobody left to restart or reschedule them, the containers end one after another.
        for runner in order:
            if runner.component.name not in last:
                runner.wanted.clear()
                runner._signal(signal.SIGTERM)
        for runner in order:
            if runner.component.name not in last:
                runner.stop(5)
        stop_containers(self.config)
        for runner in order:
            runner.stop()
        say("stopped")

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command of control.py."""
        operation, name = request.get("operation"), request.get("component", "")
        if operation == "status":
            return {
                "booted": self.booted,
                "failure": self.failure,
                "components": [
                    runner.status()
                    for runner in self.runners.values()
                    if runner.wanted.is_set() or not runner.component.optional
                ],
            }
        if operation == "shut-down":
            self.shut_down()
            self.ended.set()
            return {"ok": True}
        runner = self.runners.get(name)
        if runner is None:
            return {"error": f"no component {name!r}; there are {', '.join(self.runners)}"}
        if operation in {"stop", "restart"}:
            runner.stop()
        if operation in {"start", "restart"}:
            runner.start()
            if not runner.wait_ready(self.check):
                return {"error": f"{name} is not ready after {READY_SECONDS} s"}
        return {"ok": True}


def stop_containers(config: Config) -> None:
    """End every container: its image's stop signal (or SIGTERM), some seconds, SIGKILL."""
    ctr = ["ctr", "--address", str(config.containerd_socket), "--namespace", "k8s.io", "tasks"]

    def running() -> list[str]:
        result = subprocess.run([*ctr, "list"], capture_output=True, text=True)
        rows = [line.split() for line in result.stdout.splitlines()[1:]]
        return [row[0] for row in rows if len(row) == 3 and row[2] == "RUNNING"]

    def kill(name: str, *options: str) -> None:
        everybody = running()
        if everybody:
            say(f"{name} to {len(everybody)} containers")
        kills = [
            subprocess.Popen([*ctr, "kill", *options, container], stderr=subprocess.DEVNULL)
            for container in everybody
        ]
        for process in kills:
            process.wait()

    kill("stop signal")
    deadline = time.monotonic() + CONTAINER_STOP_SECONDS
    pause = threading.Event()
    while running() and time.monotonic() < deadline:
        pause.wait(0.3)
    kill("SIGKILL", "--signal", "SIGKILL")


class ControlServer(socketserver.ThreadingUnixStreamServer):
    """Answers control.py."""

    daemon_threads = True

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        super().__init__(str(supervisor.config.control_socket), ControlHandler)
        supervisor.config.control_socket.chmod(0o600)


class ControlHandler(socketserver.StreamRequestHandler):
    """One connection: one request, one answer."""

    server: ControlServer

    def handle(self) -> None:
        request = json.loads(self.rfile.readline() or b"{}")
        answer = self.server.supervisor.handle(request)
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def say(text: str) -> None:
    """Write a line to the supervisor's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", flush=True)


def main() -> None:
    """``supervisor STATE_DIRECTORY LISTENER NETWORK MOUNTS``: runs inside fresh namespaces.

    The last three are file descriptors: a socket and the host's namespaces.
    """
    config = Config.load(Path(sys.argv[1]))
    set_up_mounts(config)
    set_up_network(config)
    from_host = [int(word) for word in sys.argv[2:5]]
    descriptors = Descriptors(*from_host, node_network=outbound.open_namespace("net"))
    supervisor = Supervisor(config, config.node_binary, descriptors)
    server = ControlServer(supervisor)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: supervisor.handle({"operation": "shut-down"}))
    threading.Thread(target=supervisor.boot, daemon=True).start()
    supervisor.ended.wait()
    # Leave the answer to `shut-down` the time to reach its caller.
    server.shutdown()


if __name__ == "__main__":
    main()
