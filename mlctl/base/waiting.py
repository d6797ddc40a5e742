"""Waiting for what takes its time, in the one way that can be interrupted."""

import time
from collections.abc import Callable
from typing import TypeVar

from mlctl.base import processes
from mlctl.base.errors import UserError

Found = TypeVar("Found")

POLL_SECONDS = 0.3


def until(
    probe: Callable[[], Found],
    seconds: float,
    problem: str | Callable[[], str],
    *,
    poll: float = POLL_SECONDS,
) -> Found:
    """Return the first true answer of ``probe``, which is asked every ``poll`` seconds.

    Raises UserError with ``problem`` and the time after so many seconds, and Interrupted in a
    thread of a command that was interrupted.
    """
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        if time.monotonic() > deadline:
            words = problem if isinstance(problem, str) else problem()
            raise UserError(f"after {seconds:.0f} s: {words}")
        processes.check()
        time.sleep(poll)
    return found
