"""The command line: what it calls things, and what it takes from the environment."""

import os
import re
import sys

import click
import pytest

from mlctl.__main__ import VARIABLES, add, app, main
from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
BUILD_TIME = {"ML_PIPELINES_CACHE", "ML_PIPELINES_STATE"}


def commands(group: click.Group) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        below = commands(command) if isinstance(command, click.Group) else [()]
        found += [(name, *words) for words in below]
    return found


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | None:
    monkeypatch.setattr(sys, "argv", ["mlctl", *words])
    return main()


@pytest.mark.parametrize("words", commands(app), ids=" ".join)
def test_every_command_helps(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *words, "--help") == 0
    assert f"Usage: mlctl {' '.join(words)} [OPTIONS]" in capsys.readouterr().out


def test_every_make_target_is_a_line_of_it() -> None:
    lines = re.findall(r"^\t@(.*)$", MAKEFILE, re.MULTILINE)
    called = [tuple(line.split()[1:]) for line in lines if line.startswith("$(MLCTL) ")]
    assert len(called) == len(lines) - 1  # `help` reads the Makefile.
    for words in called:
        assert any(words[: len(one)] == one for one in commands(app)), words


def test_every_variable_of_make_is_an_option() -> None:
    named = set(re.findall(r"^#: ([A-Z_]+)=", MAKEFILE, re.MULTILINE))
    parameters = [one for words in commands(app) for one in resolve(words).params]
    assert len(named) > 8
    assert named <= {str(one.envvar) for one in parameters if one.envvar}


def resolve(words: tuple[str, ...]) -> click.Command:
    command: click.Command = app
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def test_every_variable_of_the_operations_page_is_an_option() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("## Variables")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z_]+)`", "".join(re.findall(r"^\|.*?\|", table, re.MULTILINE))))
    assert named - BUILD_TIME <= {str(one.envvar) for one in VARIABLES}
    assert named >= BUILD_TIME


@pytest.mark.parametrize(
    ("words", "expected"), [([], "of the environment"), (["--values", "mine.yaml"], "mine.yaml")]
)
def test_an_option_goes_over_its_variable(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUES", "of the environment")
    seen = []
    add(lambda: seen.append(os.environ["VALUES"]), name="look-at-values")
    try:
        call(monkeypatch, "look-at-values", *words)
    finally:
        del app.commands["look-at-values"]
    assert seen == [expected]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["up", "--frobnicate"], "No such option '?--frobnicate"),
        (["cluster", "stop"], "Missing argument 'PART'"),
        (["train", "--n", "0"], "'--n'.*0 is not in the range 1<=x<=100"),
    ],
)
def test_what_it_does_not_know_is_an_error_in_one_line(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=told):
        call(monkeypatch, *words)
