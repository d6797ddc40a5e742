"""The tests of the commands send them Ctrl-C, and hang up on them."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let children take these signals: what runs in the background, or by nohup, ignores them."""
    changed = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in changed.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
