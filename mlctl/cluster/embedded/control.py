"""Talk to the supervisor of a running cluster."""

import json
import socket
from typing import Any

from mlctl.base.errors import UserError
from mlctl.cluster.embedded.config import Config


def ask(
    config: Config, operation: str, component: str = "", seconds: float = 120
) -> dict[str, Any]:
    """Send one command and return the answer.

    Operations: status, shut-down; stop, start, restart with a component's name.

    Raises UserError when nobody answers or the supervisor refuses.
    """
    request = json.dumps({"operation": operation, "component": component}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(config.control_socket))
            connection.sendall(request)
            answer = json.loads(connection.makefile().readline() or "{}")
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"the cluster {config.name} does not answer ({error}): `make up`"
        ) from error
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def is_running(config: Config) -> bool:
    """Say whether the supervisor answers."""
    if not config.control_socket.exists():
        return False
    try:
        ask(config, "status", seconds=10)
    except UserError:
        return False
    return True
