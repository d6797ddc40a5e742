"""What all suites share. It also runs inside the images: pytest and the standard library only."""

import signal

import pytest


def pytest_configure() -> None:
    """Have SIGTERM, and the end of the terminal, do what Ctrl-C does: fixtures are taken down."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` has it ignored, and that is meant to stay.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note in the JUnit file what the test took, and its fixtures (setup, teardown)."""
    item.user_properties.append((call.when, f"{call.duration:.3f}"))
