"""Child processes and threads of a command, and how all of them end when it is interrupted.

Ctrl-C reaches Python's main thread only, while the children that other threads wait for go on.
So each child is started here, as the leader of a process group of its own, and an interrupt ends
the groups. Standard library only: `tools.bootstrap` runs on a fresh machine.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GRACE_SECONDS = 2.0
"""How long a child may take to end after SIGTERM; SIGKILL follows."""

END_SECONDS = 5.0
"""After so long an interrupted command ends, whatever its threads are doing."""

INTERRUPTED_STATUS = 128 + signal.SIGINT

_children: set[subprocess.Popen[Any]] = set()
_guard = threading.Lock()
_interrupted = threading.Event()


class Interrupted(KeyboardInterrupt):
    """Raised in the other threads of a command that was interrupted."""


def check() -> None:
    """Raise Interrupted once the command was interrupted: for loops that wait in a thread."""
    if _interrupted.is_set():
        raise Interrupted


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a child with the options of subprocess.Popen; it has ended when the block has.

    An exception in the block ends the child with all of its process group.

    Raises Interrupted, at the block's end too, when the command was interrupted meanwhile: what a
    child says that was ended is no news.
    """
    with _guard:
        check()
        child = subprocess.Popen(command, process_group=0, **options)
        _children.add(child)
    try:
        yield child
        child.wait()
    except BaseException:
        _end([child])
        child.wait()
        raise
    finally:
        with _guard:
            _children.discard(child)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
    check()


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a child to its end and return its status, output and errors (text)."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, stdin=subprocess.DEVNULL, text=True, **pipes, **options) as child:
        output, errors = child.communicate()
    return subprocess.CompletedProcess(list(command), child.returncode, output, errors)


@contextmanager
def thread_pool(workers: int, last_words: Callable[[], str] = str) -> Iterator[ThreadPoolExecutor]:
    """Give a thread pool; the block ends when its threads have.

    An interrupt ends the children that the threads started, and so the threads. Should one be
    busy with something else for more than END_SECONDS, the process exits with INTERRUPTED_STATUS
    after a line that ends in ``last_words()``.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        try:
            yield pool
        except Exception:
            # What is under way comes to its end, and an interrupt can reach this thread meanwhile.
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
    except KeyboardInterrupt:
        exit_at_last = threading.Timer(END_SECONDS, _exit, [last_words])
        exit_at_last.daemon = True
        exit_at_last.start()
        interrupt()
        pool.shutdown(cancel_futures=True)
        exit_at_last.cancel()
        raise


def interrupt() -> None:
    """End every child; from here on none is started, and ``check`` raises in every thread."""
    with _guard:
        if _interrupted.is_set():
            return
        _interrupted.set()
        children = list(_children)
    # A thread of its own, which the process waits for: a second Ctrl-C leaves no child behind.
    threading.Thread(target=_end, args=[children]).start()


def interrupted_line(last_words: str) -> str:
    """Return the line that an interrupted command ends with."""
    return f"interrupted; {last_words}" if last_words else "interrupted"


def interrupt_on_signals() -> None:
    """Have SIGTERM, and the end of the terminal, do to this process what Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` has it ignored, and that is meant to stay.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    signal.signal(signal.SIGURG, lambda *_: None)
    threading.Thread(target=_wake_the_main_thread, daemon=True).start()


def _wake_the_main_thread() -> None:
    """Wake it each second: what a signal asks for is done between waits only.

    One that comes in the instant before a wait for a lock does not end the wait.
    """
    while True:
        time.sleep(1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)


def _end(children: list[subprocess.Popen[Any]]) -> None:
    """End process groups: SIGTERM, and SIGKILL for those that are left after GRACE_SECONDS."""
    deadline = time.monotonic() + GRACE_SECONDS
    left = [child.pid for child in children if _signal(child.pid, signal.SIGTERM)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        for child in children:
            child.poll()
        left = [group for group in left if _signal(group, 0)]
    for group in left:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Signal a process group; say whether it had a member."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _exit(last_words: Callable[[], str]) -> None:
    print(interrupted_line(last_words()), file=sys.stderr, flush=True)
    os._exit(INTERRUPTED_STATUS)
