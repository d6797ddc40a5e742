"""Work in processes of its own, which may be killed.

They are forks of a process that has loaded torch and done nothing with it: autograd does not work
in a fork of one that has trained, as those of the tests have.
"""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["classic_example.fine_tuning", "classic_example.train"])


def started(work: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start `work`, which must be a function of a module, in a process of its own."""
    process = SERVER.Process(target=work, args=arguments)
    process.start()
    return process


def ended(work: Callable[..., Any], *arguments: Any) -> int:
    """Return the exit status of `work`, below zero when a signal has ended it."""
    process = started(work, *arguments)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die_at(number: int, moments: Sequence[str], work: Callable[..., Any], *arguments: Any) -> None:
    """Do `work`, killed at its call `number`, from 0, of the functions `moments` of os."""
    left = itertools.count(number, -1)

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return call

    for name in moments:
        setattr(os, name, deadly(getattr(os, name)))
    work(*arguments)


def asked_at(step: int, config: Path, threads: int) -> None:
    """Train with so many threads, and be asked to end in the middle of a step."""
    import torch
    from classic_example.fine_tuning import FineTuning
    from classic_example.train import train

    real = FineTuning.training_step

    def asked(self: FineTuning, *given: Any, **named: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *given, **named)

    torch.get_num_threads = lambda: threads
    FineTuning.training_step = asked
    train(config)
