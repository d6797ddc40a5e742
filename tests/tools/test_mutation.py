"""How mutants are placed, judged and summed up; trying them takes an hour (`make mutation`)."""

import ast
import sys
from types import ModuleType

import pytest

from mlctl.base.paths import ROOT
from tools.mutation import __main__ as mutation
from tools.mutation.places import place, uses
from tools.mutation.trial import Marks, become

CODE = """\
LIMIT = 5
def f(a=1):
    if (a
            and LIMIT):
        return g(
            a)
    try:
        pass
    except ValueError:
        raise
class C:
    seen = None
    @property
    def m(self):
        def inner(b=2):
            return b
        return inner
"""


@pytest.mark.parametrize(
    ("line", "names", "lines"),
    [
        (1, (), None),
        (2, ("f",), None),
        (3, ("f",), [3, 4]),
        (4, ("f",), [3, 4]),
        (6, ("f",), [5, 6]),
        (8, ("f",), [8]),
        (9, ("f",), [9]),
        (10, ("f",), [10]),
        (12, ("C",), None),
        (13, ("C",), None),
        (16, ("C", "m", "inner"), [16]),
        (17, ("C", "m"), [17]),
    ],
)
def test_a_line_lies_in_a_statement(
    line: int, names: tuple[str, ...], lines: list[int] | None
) -> None:
    assert place(ast.parse(CODE).body, line) == (names, lines)


def test_a_constant_is_seen_where_functions_use_it() -> None:
    tree = ast.parse(CODE)
    assert uses(tree, 1, {"a": tree}) == ["a:3", "a:4"]
    other = ast.parse("import a\ndef g():\n    return a.LIMIT\n")
    assert uses(tree, 1, {"a": tree, "b": other}) == ["a:3", "a:4", "b:3"]
    imported = ast.parse("from a import LIMIT\nTWICE = 2 * LIMIT\n")
    assert uses(tree, 1, {"a": tree, "b": imported}) == []
    assert uses(tree, 2, {"a": tree}) == []


def test_statements_of_functions_are_noted_before_they_run() -> None:
    seen = set()
    names = {"_seen_": lambda *one: seen.add(one)}
    exec(compile(Marks("a").visit(ast.parse(CODE)), "a.py", "exec"), names)
    assert seen == set()
    names["f"](0)
    # What handles an exception goes with what may raise it.
    assert seen == {("a", 3), ("a", 7), ("a", 8), ("a", 9)}
    seen.clear()
    assert names["C"]().m() == 2
    assert seen == {("a", 15), ("a", 16), ("a", 17)}


def made(code: str) -> ModuleType:
    module = sys.modules["tests.a"] = ModuleType("a")
    module.__file__ = "a.py"
    exec(compile(code, "a.py", "exec"), vars(module))
    return module


def test_a_module_becomes_its_mutant_with_all_that_holds_it() -> None:
    module = made(CODE)
    function, instance = module.f, module.C()
    become(module, CODE.replace("pass", "return a"))
    assert function(0) == 0
    become(module, CODE.replace("pass", "return a").replace("a=1", "a=0"))
    assert function() == 0
    become(module, CODE.replace("LIMIT = 5", "LIMIT = None"))
    assert module.LIMIT is None
    become(module, CODE.replace("seen = None", "seen = 3"))
    assert instance.seen == 3
    with pytest.raises(NameError):
        become(module, CODE.replace("LIMIT = 5", "LIMIT = no"))
    named = "class N:\n    @classmethod\n    def of(cls): ...\nMAKE = N.of\n"
    module = made(named)
    become(module, named.replace("MAKE = N.of", "MAKE = None"))
    assert module.MAKE is None


RESULTS = {"a.f: 1  ->  2": "test_f", "a.f: 1  ->  0": None, "a: x  ->  y": None, "b: 1  ->  2": ""}


def test_what_survives_needs_a_reason_and_a_reason_a_survivor() -> None:
    reasons = dict.fromkeys(["a: x  ->  y", "a.f: 1  ->  2", "a.g: 1  ->  2", "c: 1  ->  2"], "why")
    assert list(mutation.judge(RESULTS, reasons)) == [
        "SURVIVED a.f: 1  ->  0",
        "FOUND a.f: 1  ->  2, by test_f",
        "NO SUCH MUTANT a.g: 1  ->  2",
    ]


def test_the_table_counts_by_module() -> None:
    heading, *rows = mutation.table(RESULTS, {"a: x  ->  y": "why"})
    assert heading.split() == ["mutants", "found", "explained", "survived", "score"]
    assert [row.split() for row in rows] == [
        ["a", "3", "1", "1", "1", "33.3%"],
        ["b", "1", "1", "0", "0", "100.0%"],
        ["all", "4", "2", "1", "1", "50.0%"],
    ]


def test_every_accepted_survivor_has_a_reason_and_a_place() -> None:
    accepted = mutation.accepted(mutation.ACCEPTED.read_text())
    for name, why in accepted.items():
        assert len(why) > 20, name
        assert mutation.module_of(name) in mutation.MODULES
        assert "  ->  " in name


def test_every_module_is_there() -> None:
    for name in mutation.MODULES:
        assert (ROOT / "dags" / "ml_pipelines" / f"{name}.py").is_file()
