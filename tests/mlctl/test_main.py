"""The command line: what it calls things, and what it takes from the environment."""

import os
import re
import sys
from pathlib import Path

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
    """The command that the first of the words are the name of."""
    command: click.Command = app
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.commands[word]
    return command


def test_every_variable_of_the_operations_page_is_an_option() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("## Variables")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z_]+)`", "".join(re.findall(r"^\|.*?\|", table, re.MULTILINE))))
    assert named - BUILD_TIME <= {str(one.envvar) for one in VARIABLES}
    assert named >= BUILD_TIME


def calls_of_make(text: str) -> list[list[str]]:
    """Return the words after and the variables before each `make` in the code of a page."""
    code = [*re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    value = r"[A-Z_]+=(?:'[^']*'|[^\s`)]+)"
    call = re.compile(rf"((?:{value} +)*)\bmake((?: +(?:-s|{value}|[a-z][a-z0-9-]*))+)")
    found = [call.findall(part) for part in code]
    words = re.compile(rf"{value}|[^\s]+")
    return [words.findall(" ".join(one)) for calls in found for one in calls]


def test_calls_of_make_are_found_in_blocks_and_in_lines() -> None:
    block = "```sh\nmake a K=b # c\nexport X=$(make -s d)\n```\n"
    text = f"{block}make no call: `A=1 make e P='{{\"f\": 1}}'`\n"
    assert calls_of_make(text) == [["a", "K=b"], ["-s", "d"], ["A=1", "e", "P='{\"f\": 1}'"]]


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name
)
def test_every_call_of_make_in_the_documents_has_its_target_and_variables(page: Path) -> None:
    lines = re.findall(r"^([a-z0-9-]+):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    targets = {name: re.findall(r"\$\(MLCTL\) (.*)", recipe) for name, recipe in lines}
    for words in calls_of_make(page.read_text()):
        variables = {word.partition("=")[0] for word in words if "=" in word} - BUILD_TIME
        for target in {word for word in words if "=" not in word and word != "-s"}:
            assert target in targets, words
            commands_called = [resolve(tuple(line.split())) for line in targets[target]]
            known = {str(one.envvar) for command in commands_called for one in command.params}
            assert variables <= known, words


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
