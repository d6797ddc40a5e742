"""A local port that leads to a Service of the cluster."""

import atexit
import queue
import re
import socket
import subprocess
import threading
from types import TracebackType
from typing import Self

from mlctl.base.waiting import until
from mlctl.clients.kube import Kube

ANSWER_SECONDS = 15
"""kubectl that has said nothing for so long is started anew."""


class Forward:
    """`kubectl port-forward` to one Service, in a process of its own.

    It is bound to one pod: when that pod goes, the forward ends, and ``ensure`` makes a new
    one on the same local port.
    """

    def __init__(self, kube: Kube, service: str, port: int, local_port: int = 0) -> None:
        self.kube = kube
        self.service = service
        self.port = port
        self.local_port = local_port
        self.process: subprocess.Popen[str] | None = None
        self._problem = ""

    @property
    def url(self) -> str:
        """The address of the Service on this machine."""
        return f"http://127.0.0.1:{self.local_port}"

    def ensure(self, timeout: float = 60) -> None:
        """Make sure that the forward is up. Raises UserError when it is not within ``timeout``."""
        if self.process is not None and self.process.poll() is None:
            return
        until(
            timeout,
            self._start,
            lambda: f"no way to the service {self.service}: {self._problem}",
            poll=1,
        )

    def _start(self) -> bool:
        self.close()
        target = f"{self.local_port or ''}:{self.port}"
        self.process = subprocess.Popen(
            self.kube.command("port-forward", f"service/{self.service}", target),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        atexit.register(self.close)
        lines: queue.Queue[str] = queue.Queue()
        # kubectl writes a line per connection: a full pipe would stop it.
        threading.Thread(target=_drain, args=(self.process, lines), daemon=True).start()
        try:
            line = lines.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            line = ""
        found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line)
        if found:
            self.local_port = int(found[1])
            return True
        self.close()
        self._problem = line.strip() or "kubectl port-forward said nothing"
        return False

    def close(self) -> None:
        """End the forward; its pod may be gone while the process still lives."""
        atexit.unregister(self.close)
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self) -> Self:
        self.ensure()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _drain(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def free_port(wanted: int) -> int:
    """Return the port when nothing listens on it on this machine, else 0 (any)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted
