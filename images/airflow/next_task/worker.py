"""The program of a worker's container: `python -P -m next_task.worker airflow tasks run ...`.

Each task runs in a fork of this process, which has imported what all of them need and has read no
DAG: one task leaves nothing to the next.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from next_task import COMMAND, FIRST, IDLE, OPEN, SECONDS, only_if, path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RETRY_SECONDS = 1
# What a task with a pod has imported at its end, but for what its DAG imports.
NEEDED = (
    "airflow.__main__",
    "airflow.cli.commands.task_command",
    "airflow.decorators",
    "airflow.jobs.local_task_job_runner",
    "airflow.models.dagbag",
    "airflow.operators.subdag",
    "airflow.providers.cncf.kubernetes.operators.pod",
    "airflow.providers.cncf.kubernetes.template_rendering",
    "airflow.task.task_runner.standard_task_runner",
    "airflow.triggers.temporal",
    "cryptography.hazmat.primitives.hmac",
    "cryptography.hazmat.primitives.padding",
    "importlib_metadata._adapters",
    "jinja2.ext",
    *(
        f"kubernetes.client.models.v1_{model}"
        for model in (
            "container_state_terminated",
            "container_state_waiting",
            "pod_list",
            "resource_field_selector",
        )
    ),
)


def prepare() -> None:
    """Import and set up what a task needs, whatever it does."""
    for name in NEEDED:
        import_module(name)
    from airflow.cli import cli_parser
    from airflow.listeners.listener import get_listener_manager
    from airflow.plugins_manager import integrate_macros_plugins
    from pendulum import local_timezone
    from sqlalchemy.orm import configure_mappers

    # Each keeps what it finds out at its first call.
    for at_first in (
        cli_parser.get_parser,
        configure_mappers,
        get_listener_manager,
        integrate_macros_plugins,
        local_timezone,
    ):
        at_first()


def started(command: list[str]) -> int:
    """Run a command line of Airflow in a fork; return the number of its process."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = command
        status = 1
        try:
            from airflow.__main__ import main

            main()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            # Not as Python ends: that takes a tenth of a second, which the next task waits for.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


class Pod:
    """This worker's own pod."""

    def __init__(self) -> None:
        from kubernetes import client, config

        config.load_incluster_config()
        self.api = client.CoreV1Api()
        self.namespace = (ACCOUNT / "namespace").read_text()
        self.name = os.environ["HOSTNAME"]
        # What the label says now may have been changed for the next task.
        self.open = os.environ[FIRST]

    def read(self) -> Any:
        """Return it as it is now."""
        return self.api.read_namespaced_pod(self.name, self.namespace, _request_timeout=10)

    def patch(self, operation: str, label: str, **more: str) -> Any:
        """Change a label while nobody has given it a task; return what it is then."""
        change = [only_if(self.open), {"op": operation, "path": path(label), **more}]
        return self.api.patch_namespaced_pod(self.name, self.namespace, change, _request_timeout=10)

    def patient(self, ask: Any, *words: str) -> Any:
        """Return what the API server says, once it does. Raises ApiException for a refusal."""
        from kubernetes.client import ApiException

        while True:
            try:
                return ask(*words)
            except ApiException as error:
                if error.status in (403, 404, 422):
                    raise
                print(f"asking again: {error.status} {error.reason}", file=sys.stderr)
            except Exception as error:
                print(f"asking again: {error}", file=sys.stderr)
            time.sleep(RETRY_SECONDS)

    def next_command(self, seconds: float) -> list[str]:
        """Return the next task's command, or nothing after so many seconds."""
        from kubernetes import watch

        # What fails here makes nobody wait longer than he has to: the label decides, in `leave`.
        with suppress(Exception):
            now = self.patch("add", IDLE, value="true")
            changes = watch.Watch().stream(
                self.api.list_namespaced_pod,
                self.namespace,
                field_selector=f"metadata.name={self.name}",
                resource_version=now.metadata.resource_version,
                timeout_seconds=round(seconds),
                _request_timeout=seconds + 10,
            )
            for change in changes:
                if command := self.given(change["object"]):
                    return command
        return self.leave()

    def leave(self) -> list[str]:
        """Take no other task; return the command of one that was given already."""
        from kubernetes.client import ApiException

        try:
            self.patient(self.patch, "remove", OPEN)
        except ApiException as error:
            if error.status == 422:  # the label has another value
                return self.given(self.patient(self.read))
        return []

    def given(self, pod: Any) -> list[str]:
        """Return the command that the executor has written, if it has."""
        value, command = json.loads((pod.metadata.annotations or {}).get(COMMAND, '["", []]'))
        if value != self.open:
            return []
        self.open = pod.metadata.labels[OPEN]
        return command


class Ending:
    """A signal to end, which reaches the task as well: dumb-init sends it to all processes."""

    def __init__(self) -> None:
        self.asked = self.waiting = False
        signal.signal(signal.SIGTERM, self.ask)

    def ask(self, *_: object) -> None:
        """End now, or when the task has ended."""
        self.asked = True
        if self.waiting:
            raise SystemExit(128 + signal.SIGTERM)


def main(command: list[str]) -> NoReturn:
    """Run a task and those that it is given; exit as the last one."""
    # Airflow's settings look here for what kind of process this is.
    sys.argv = command
    ending, pod, status = Ending(), None, 0
    prepare()
    while command and not ending.asked:
        child = started(command)
        pod = pod or Pod()  # while the task runs
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ending.waiting = True
        ends = status or ending.asked
        command = pod.leave() if ends else pod.next_command(float(os.environ[SECONDS]))
        ending.waiting = False
    sys.exit(128 + signal.SIGTERM if ending.asked else status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(sys.argv[1:])
