"""Errors meant for the person at the terminal."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlctl.base import processes


class UserError(Exception):
    """Something the user can mend. The text names the thing and the way out."""


def output(command: Sequence[str | Path], problem: str = "", **options: Any) -> str:
    """Run a child to its end, with options of subprocess.Popen, and return what it prints.

    Raises UserError when it fails: ``problem`` (the command when there is none) and its errors.
    """
    result = processes.run(command, **options)
    if result.returncode != 0:
        words = problem or " ".join(map(str, command))
        raise UserError(f"{words}: {result.stderr.strip() or 'failed'}")
    return result.stdout


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
        # It may have come when no thread pool was there to see it.
        processes.interrupt()
        print(processes.interrupted_line(str(stop)), file=sys.stderr)
        sys.exit(processes.INTERRUPTED_STATUS)
