"""Signs of life for steps that take longer than a few seconds, and limits for calls that hang."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

from classic_example.errors import WorkloadError

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Seconds between two lines of a long step. Nothing is silent for 10 s, so stay well below.
INTERVAL_SECONDS = 5.0


@contextmanager
def heartbeat(what: str) -> Iterator[None]:
    """Log `what` now, every few seconds while the block runs, and how long it took."""
    start, done = time.monotonic(), threading.Event()

    def beat() -> None:
        while not done.wait(INTERVAL_SECONDS):
            logger.info("%s: %.0f s so far", what, time.monotonic() - start)

    logger.info("%s", what)
    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    logger.info("%s: done in %.1f s", what, time.monotonic() - start)


class Ticker:
    """Says whether it is time for another progress line of a loop."""

    def __init__(self) -> None:
        self.next = time.monotonic() + INTERVAL_SECONDS

    def due(self) -> bool:
        """Return True at most once per interval."""
        if (now := time.monotonic()) < self.next:
            return False
        self.next = now + INTERVAL_SECONDS
        return True


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Return `call()`, or raise WorkloadError when it has not ended after `seconds`.

    Name resolution has no time limit of its own in Python, and SDKs retry for minutes; a daemon
    thread bounds both. The thread is left behind: the process is about to end anyway.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name="within").start()
    if not wait([answer], seconds).done:
        raise WorkloadError(f"{what} did not answer within {seconds:.0f} s")
    return answer.result()
