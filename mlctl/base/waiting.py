"""Waiting for what takes its time, in the one way that can be interrupted."""

import time
from collections.abc import Callable
from typing import TypeVar

from mlctl.base import processes
from mlctl.base.errors import UserError

Found = TypeVar("Found")

POLL_SECONDS = 0.3


def within(seconds: float, probe: Callable[[], Found], *, poll: float = POLL_SECONDS) -> Found:
    """Return the first true answer of ``probe``, or its last one when the seconds are over.

    It is asked every ``poll`` seconds. Raises Interrupted in a thread of a command that was
    interrupted.
    """
    deadline = time.monotonic() + seconds
    while not (found := probe()) and time.monotonic() < deadline:
        processes.check()
        time.sleep(poll)
    return found


def until(
    seconds: float,
    probe: Callable[[], Found],
    problem: str | Callable[[], str],
    *,
    poll: float = POLL_SECONDS,
) -> Found:
    """Return the first true answer of ``probe``, as ``within`` does.

    Raises UserError with ``problem`` when the seconds are over.
    """
    found = within(seconds, probe, poll=poll)
    if not found:
        words = problem if isinstance(problem, str) else problem()
        raise UserError(f"after {seconds:.0f} s: {words}")
    return found
