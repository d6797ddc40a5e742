"""The first program inside the node's namespaces: it sets up the node and runs its programs.

It runs under ``tini``, which adopts and reaps what the programs leave behind; when it ends,
so do the namespaces with every process, mount, link and rule in them.

Commands come as one JSON object a line over a unix socket, see control.py.
"""

import json
import signal
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any

from mlctl.cluster.embedded import outbound
from mlctl.cluster.embedded.components import READY_SECONDS, Descriptors, components
from mlctl.cluster.embedded.config import Config
from mlctl.cluster.embedded.machine import say, set_up_mounts, set_up_network, stop_containers
from mlctl.cluster.embedded.runner import ReadyCheck, Runner


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
