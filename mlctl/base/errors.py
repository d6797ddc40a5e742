"""Errors meant for the person at the terminal."""

import sys
from collections.abc import Callable

from mlctl.base import processes


class UserError(Exception):
    """Something the user can mend. The text names the thing and the way out."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit; a UserError becomes one line and status 1.

    Ctrl-C, SIGTERM and SIGHUP become one line and status 130.
    """
    processes.interrupt_on_signals()
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print(processes.interrupted_line(str(stop)), file=sys.stderr)
        sys.exit(processes.INTERRUPTED_STATUS)
