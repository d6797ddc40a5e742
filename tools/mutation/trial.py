"""Run the DAG tests on mutants of dags/ml_pipelines, each in a fork of a warm process.

    python -m tools.mutation.trial TREE < mutants.json > results.jsonl

Airflow takes most of a test run to import, and pytest most of the rest to collect: both are done
once. A mutant gets a fork of that process, where its code and its constants take the place of the
right ones; where they cannot, what is ours is imported and collected again from TREE, a copy of the
checkout that has the mutant. A mutant meets the tests that have run the statement which
it changes, first those that have found others of its function.
"""

import ast
import builtins
import gc
import hashlib
import importlib
import inspect
import itertools
import json
import os
import resource
import shutil
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, NoneType
from typing import Any, TextIO

import pytest

PACKAGE = "dags/ml_pipelines"
# A mutant may never end. Seconds of the processor, so that a busy machine makes no difference.
MUTANT_SECONDS = 120
# To look for plugins, and to find the lines of a traceback, takes longer than most tests.
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "-p", "pytest_timeout", "--tb=native", "-rN"]
PLAIN = (NoneType, bool, int, float, str, tuple, list, dict, set, Path)
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"


class Marks(ast.NodeTransformer):
    """Has each statement in a function noted before it is run, by `_seen_(module, line)`."""

    def __init__(self, module: str) -> None:
        self.module, self.inside = module, False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Mark what it holds."""
        before, self.inside = self.inside, True
        self.generic_visit(node)
        self.inside = before
        return node

    def visit(self, node: ast.AST) -> Any:
        """Put marks before a statement; those of what handles its exceptions as well."""
        is_statement = self.inside and isinstance(node, ast.stmt)
        visited = super().visit(node)
        if not is_statement:
            return visited
        lines = [node.lineno, *(one.lineno for one in getattr(node, "handlers", []))]
        marks = [ast.parse(f"_seen_({self.module!r}, {line})").body[0] for line in lines]
        return [
            *(ast.fix_missing_locations(ast.copy_location(one, node)) for one in marks),
            visited,
        ]


class Watch:
    """Notes which lines of the package each test runs, and what it imports."""

    def __init__(self) -> None:
        self.run: dict[str, set[tuple[str, int]]] = {}
        self.lines: set[tuple[str, int]] = set()
        self.modules: list[str] = []

    def pytest_sessionstart(self) -> None:
        """Mark the package when it is imported."""
        builtins._seen_ = lambda module, line: self.lines.add((module, line))
        compiled = SourceFileLoader.source_to_code

        def source_to_code(loader: Any, data: bytes, path: str, **more: Any) -> CodeType:
            if PACKAGE not in str(path):
                return compiled(loader, data, path, **more)
            return compile(Marks(Path(path).stem).visit(ast.parse(data)), path, "exec")

        SourceFileLoader.source_to_code = source_to_code
        sys.dont_write_bytecode = True

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Give each test, with its fixtures, lines of its own."""
        self.lines = self.run[item.nodeid] = set()
        yield

    def pytest_sessionfinish(self) -> None:
        """Note what has been imported."""
        self.modules = list(sys.modules)

    def result(self) -> dict[str, Any]:
        """Return both."""
        return {
            "run": {test: sorted(run) for test, run in self.run.items()},
            "modules": self.modules,
        }


class Chosen:
    """Runs these tests, in this order, in Airflow's environment of the process before."""

    def __init__(self, tests: list[str]) -> None:
        self.tests, self.found = tests, ""
        self.environment = dict(os.environ)

    def pytest_collection(self) -> None:
        """Take the environment back, which conftest.py has set anew: Airflow has read it."""
        os.environ.update(self.environment)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the others out."""
        there = {item.nodeid: item for item in items}
        items[:] = [there[test] for test in self.tests if test in there]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember which test has failed."""
        if report.failed:
            self.found = report.nodeid

    def result(self) -> str:
        """Return its name."""
        return self.found


class Trials:
    """Tries mutants where pytest would run the tests that it has collected."""

    def __init__(self, mutants: list[dict[str, Any]], tree: Path, results: TextIO) -> None:
        self.mutants, self.tree, self.results = mutants, tree, results
        self.log = tree.parent / "pytest.log"
        self.run, self.modules = watched(self.log)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Print what comes of each mutant: its name, and the test that finds it, or null."""
        empty = warm(self.modules)
        where: dict[str, set[str]] = defaultdict(set)
        for test, lines in self.run.items():
            for module, line in lines:
                where[f"{module}:{line}"].add(test)
                where[module].add(test)
        finders: dict[str, Counter[str]] = defaultdict(Counter)
        gc.freeze()
        for mutant in self.mutants:
            of_function = finders[mutant["name"].split(":")[0]]
            tests = sorted(
                set().union(*(where[place] for place in mutant["places"])),
                key=lambda test, known=of_function: (-known[test], len(self.run[test]), test),
            )
            tests = tests[: int(os.environ.get("CAP", "9999"))]
            shutil.copy(empty, empty.with_suffix(".db"))
            status, found = self.tried(mutant, tests, session) if tests else (0, None)
            if found:
                of_function[found] += 1
            by = None if status == 0 else found or f"ended with status {status}"
            said = {"name": mutant["name"], "by": by, "tests": len(tests)}
            print(json.dumps(said), file=self.results, flush=True)
        return True

    def tried(
        self, mutant: dict[str, Any], tests: list[str], session: pytest.Session
    ) -> tuple[int, str | None]:
        """Return the status of these tests on a mutant, and which of them has failed."""
        chosen = Chosen(tests)
        file = self.tree / PACKAGE / f"{mutant['module']}.py"
        good = file.read_text()

        def run() -> int:
            try:
                become(sys.modules[f"ml_pipelines.{mutant['module']}"], mutant["code"])
            except Exception:
                for name in list(filter(is_ours, sys.modules)):
                    del sys.modules[name]
                files = sorted({test.split("::")[0] for test in tests})
                return pytest.main([*OPTIONS, *files], plugins=[chosen])
            chosen.pytest_collection_modifyitems(session.items)
            session.config.pluginmanager.register(chosen)
            for item, following in itertools.pairwise([*session.items, None]):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if chosen.found:
                    return 1
            return 0

        file.write_text(mutant["code"])
        ended = forked(run, chosen, self.log)
        file.write_text(good)
        return ended


def become(module: ModuleType, text: str) -> None:
    """Give a module and its classes the code, the defaults and the constants of another text.

    Raises what that text raises, and ValueError for a function that uses other names around it.
    """

    def function(value: Any) -> Any:
        value = getattr(value, "func", getattr(value, "__func__", value))
        return inspect.unwrap(value) if callable(value) else value

    other = ModuleType(module.__name__)
    other.__file__ = module.__file__
    exec(compile(text, module.__file__, "exec"), vars(other))
    pairs: list[tuple[Any, Any]] = [(module, other)]
    for old, new in pairs:
        for name, value in list(vars(new).items()):
            there = vars(old).get(name)
            was, becomes = function(there), function(value)
            if isinstance(becomes, PLAIN) and was != becomes and not name.startswith("__"):
                ours = [one for key, one in list(sys.modules.items()) if is_ours(key)]
                for holder in ours if old is module else [old]:
                    if vars(holder).get(name) is there:  # it may have been imported from here
                        setattr(holder, name, becomes)
            elif getattr(becomes, "__module__", None) != module.__name__:
                continue
            elif isinstance(becomes, type):
                pairs.append((was, becomes))
            elif isinstance(becomes, FunctionType):
                was.__code__ = becomes.__code__
                was.__defaults__, was.__kwdefaults__ = becomes.__defaults__, becomes.__kwdefaults__


def forked(run: Callable[[], int], plugin: Watch | Chosen, log: Path) -> tuple[int, Any]:
    """Run tests in a fork; return their status, and what the plugin has to say."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if isinstance(plugin, Chosen):
            resource.setrlimit(resource.RLIMIT_CPU, (MUTANT_SECONDS, MUTANT_SECONDS))
        status = run()
        with os.fdopen(writer, "w") as pipe:
            json.dump(plugin.result(), pipe)
        sys.stdout.flush()
        os._exit(status)  # what the process before has to do at its end is not for this one
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return status, json.loads(said) if said else None


def watched(log: Path) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the lines that each test runs, and the modules that all of them import.

    Both are kept, beside the log, for the files that are still as they were.
    """
    known = log.with_name("watched.json")
    kept = json.loads(known.read_text()) if known.exists() else {"files": {}, "modules": []}
    files = sorted(map(str, Path("tests/dags").glob("test_*.py")))
    shared = [*sorted(Path("dags").rglob("*.py")), *Path("tests/dags").glob("[!t]*.py")]
    digests = {name: digest(*shared, Path(name)) for name in files}
    old = {name: of for name, of in kept["files"].items() if digests.get(name) == of["digest"]}
    if new := [name for name in files if name not in old]:
        watch = Watch()
        # Not by their names: conftest.py leaves out what is not for this Airflow.
        words = [*OPTIONS, *(f"--ignore={name}" for name in old), "tests/dags"]
        status, seen = forked(lambda: pytest.main(words, plugins=[watch]), watch, log)
        if status != 0:
            sys.exit(f"error: the tests fail without a mutant: {log}")
        for name in new:
            run = {test: of for test, of in seen["run"].items() if test.startswith(f"{name}::")}
            old[name] = {"digest": digests[name], "run": run}
        modules = sorted({*kept["modules"], *seen["modules"]})
        kept = {"files": old, "modules": modules}
        known.write_text(json.dumps(kept))
    run = {test: of for file in old.values() for test, of in file["run"].items()}
    return run, kept["modules"]


def digest(*files: Path) -> str:
    """Return a hash over files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def warm(modules: list[str]) -> Path:
    """Import what the tests have imported. Returns a copy of Airflow's database, just made."""
    for name in modules:
        if not is_ours(name):
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                importlib.import_module(name)  # or it is a name that is made at run time
    if (child := os.fork()) == 0:
        from airflow.utils.db import initdb

        os.dup2(2, 1)
        initdb()
        os._exit(0)
    os.waitpid(child, 0)
    database = Path(os.environ["AIRFLOW_HOME"], "airflow.db")
    return shutil.copy(database, database.with_suffix(".empty"))


def is_ours(module: str) -> bool:
    """Say whether each mutant imports this module anew."""
    return module.split(".")[0] in {"ml_pipelines", "tests", "mlctl", "conftest"}


def main() -> None:
    """Try the mutants of the standard input, and print what comes of each as a line of JSON."""
    tree, mutants = Path(sys.argv[1]), json.load(sys.stdin)
    results, sys.stdout = sys.stdout, sys.stderr
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "dags")]
    trials = Trials(mutants, tree, results)
    sys.dont_write_bytecode = True  # a mutant that is as long as another, in the same second
    sys.exit(pytest.main([*OPTIONS, "-s", "tests/dags"], plugins=[trials]))


if __name__ == "__main__":
    main()
