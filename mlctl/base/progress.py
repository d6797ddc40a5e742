"""Phases, commands and what they cost, shown while they run.

Long work must never look dead: a phase that has printed nothing for a few seconds prints
its age and the last line its command wrote, on a terminal and in a log file alike.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlctl.base import processes
from mlctl.base.errors import UserError

HEARTBEAT_SECONDS = 5.0
TABLE_WIDTH = 1000
console = Console(highlight=False, soft_wrap=True)


def confirmed(question: str) -> bool:
    """Ask on a terminal, where no answer is a no. YES=1, or no terminal, counts as yes."""
    if os.environ.get("YES") == "1" or not sys.stdin.isatty():
        return True
    console.print(f"{question} [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


@dataclass
class Phase:
    """One step of a long command."""

    name: str
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    detail: str = ""

    @property
    def age(self) -> float:
        """Seconds since the phase began."""
        return time.monotonic() - self.started

    def note(self, text: str) -> None:
        """Say in the next heartbeat what is going on."""
        self.detail = text.strip()

    def say(self, text: str) -> None:
        """Print a line that belongs to the phase."""
        _show(f"    [dim]{self.age:5.0f}s[/] {self.name}: {_plain(text)}")


class Phases:
    """The phases of one command, in order. Phases may overlap (threads)."""

    def __init__(self) -> None:
        self.all: list[Phase] = []

    def report(self) -> list[dict[str, object]]:
        """Return ``[{"name", "seconds"}]`` of the finished phases."""
        return [
            {"name": phase.name, "seconds": round(phase.seconds, 1)}
            for phase in self.all
            if phase.seconds is not None
        ]

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Show a phase: its start, a heartbeat, its end and seconds.

        Raises Interrupted in a thread of a command that was interrupted.
        """
        processes.check()
        current = Phase(name)
        self.all.append(current)
        _show(f"[bold]==>[/] {name}")
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(current, stop), daemon=True)
        beat.start()
        try:
            yield current
        except KeyboardInterrupt:
            console.print(f"[red]xxx[/] {name} stopped after {current.age:.0f} s")
            raise
        except BaseException:
            console.print(f"[red]xxx[/] {name} failed after {current.age:.0f} s")
            raise
        else:
            current.seconds = current.age
            _show(f"[green]ok [/] {name} [dim]({current.seconds:.1f} s)[/]")
        finally:
            stop.set()
            beat.join()


def _show(progress: str) -> None:
    if os.environ.get("QUIET") != "1":
        console.print(progress)


def _heartbeat(phase: Phase, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        phase.say(phase.detail[:160] or "working")


def gib(size: int) -> str:
    """Return bytes as people read them."""
    return f"{size / 2**30:.1f} GiB"


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print rows in columns, as wide as they are: a log file has no width."""
    table = Table(*columns, title=title or None, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else _plain(str(cell)) for cell in row))
    Console(highlight=False, width=TABLE_WIDTH).print(table)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    phase: Phase | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> None:
    """Run a command with its output appended to ``log``; the heartbeat shows its last line.

    Raises UserError with the end of the log when the command fails, Interrupted when it was ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    tail: list[str] = []
    with log.open("a") as file:
        file.write(f"$ {' '.join(words)}\n")
        file.flush()
        with processes.started(
            words,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(env) if env is not None else None,
            cwd=cwd,
        ) as process:
            if stdin is not None:
                process.stdin.write(stdin)
                process.stdin.close()
            for line in process.stdout:
                file.write(line)
                file.flush()
                if line.strip():
                    tail = [*tail[-19:], line.rstrip()]
                    if phase is not None:
                        phase.note(line)
    status = process.returncode
    if status != 0:
        shown = "\n".join(f"    {line}" for line in tail)
        raise UserError(f"{words[0]} ended with status {status}; whole log: {log}\n{shown}")
