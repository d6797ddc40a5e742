"""Errors meant for the person at the terminal."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The text names the thing and the way out."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit; a UserError becomes one line and status 1."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
