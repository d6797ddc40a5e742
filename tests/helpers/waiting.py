"""Waiting for what takes its time."""

import time
from collections.abc import Callable


def until(probe: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition, for so many seconds."""
    started = time.monotonic()
    while not probe():
        passed = time.monotonic() - started
        assert passed < seconds, f"after {passed:.0f} s: {what}"
        time.sleep(0.2)
