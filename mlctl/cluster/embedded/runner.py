"""One program of the node, kept running until told otherwise."""

import os
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mlctl.base.waiting import within
from mlctl.cluster.embedded.components import READY_SECONDS, Component
from mlctl.cluster.embedded.config import Config
from mlctl.cluster.embedded.machine import say

BACKOFF_SECONDS = (0.5, 1, 2, 5, 10)
STABLE_SECONDS = 30
STOP_SECONDS = 15
LOG_LIMIT_BYTES = 50_000_000


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
        return within(
            READY_SECONDS,
            lambda: self.process is not None and check(self.component.ready),
            poll=0.1,
        )

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
