"""Run the DAG tests on mutants of dags/ml_pipelines, each in a fork of a warm process.

    python -m tools.mutation.trial TREE < mutants.json > results.jsonl

Airflow takes most of a test run to import, so that is done once; what is ours is imported in the
fork, which a mutant gets to itself. TREE is a copy of the checkout, where mutants are written. A
mutant meets the tests that have run the statement which it changes, first those that have found
others of its function.
"""

import hashlib
import importlib
import json
import os
import resource
import shutil
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

PACKAGE = "dags/ml_pipelines"
# A mutant may never end. Seconds of the processor, so that a busy machine makes no difference.
MUTANT_SECONDS = 120
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "--tb=short", "-rN"]


class Watch:
    """Notes which lines of the package each test runs, and what it imports."""

    def __init__(self) -> None:
        self.run: dict[str, set[tuple[str, int]]] = {}
        self.modules: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Trace a test and its fixtures."""
        lines = self.run[item.nodeid] = set()

        def line(frame: FrameType, _event: str, _value: Any) -> Callable[..., Any]:
            lines.add((Path(frame.f_code.co_filename).stem, frame.f_lineno))
            return line

        def call(frame: FrameType, event: str, value: Any) -> Callable[..., Any] | None:
            return line(frame, event, value) if PACKAGE in frame.f_code.co_filename else None

        threading.settrace(call)
        sys.settrace(call)
        yield
        sys.settrace(None)
        threading.settrace(None)

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


def forked(plugin: Watch | Chosen, files: list[str], log: Path) -> tuple[int, Any]:
    """Run pytest in a fork; return its status, and what the plugin has to say."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if isinstance(plugin, Chosen):
            resource.setrlimit(resource.RLIMIT_CPU, (MUTANT_SECONDS, MUTANT_SECONDS))
        status = pytest.main([*OPTIONS, *files], plugins=[plugin])
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
        status, seen = forked(Watch(), new, log)
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


def warm(modules: list[str]) -> tuple[Any, Path]:
    """Import what the tests have imported, but what is ours.

    Returns conftest.py, which has a directory for Airflow, and a copy of the database there.
    """
    conftest = importlib.import_module("tests.dags.conftest")
    for name in modules:
        if not is_ours(name):
            try:
                importlib.import_module(name)
            except Exception:  # a name that is made at run time
                continue
    if (child := os.fork()) == 0:
        from airflow.utils.db import initdb

        os.dup2(2, 1)
        initdb()
        os._exit(0)
    os.waitpid(child, 0)
    for name in list(filter(is_ours, sys.modules)):
        del sys.modules[name]
    database = Path(os.environ["AIRFLOW_HOME"], "airflow.db")
    return conftest, shutil.copy(database, database.with_suffix(".empty"))


def is_ours(module: str) -> bool:
    """Say whether each mutant imports this module anew."""
    return module.split(".")[0] in {"ml_pipelines", "tests", "mlctl", "conftest"}


def main() -> None:
    """Print a line of JSON for each mutant: its name, and the test that finds it, or null."""
    tree, mutants = Path(sys.argv[1]), json.load(sys.stdin)
    results, sys.stdout = sys.stdout, sys.stderr
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "dags")]
    log = tree.parent / "pytest.log"
    run, modules = watched(log)
    where: dict[str, set[str]] = defaultdict(set)
    for test, lines in run.items():
        for module, line in lines:
            where[f"{module}:{line}"].add(test)
            where[module].add(test)
    _conftest, empty = warm(modules)  # its directory goes with it
    sys.dont_write_bytecode = True  # a mutant that is as long as another, in the same second
    finders: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant in mutants:
        module, function = mutant["module"], mutant["name"].split(":")[0]
        tests = sorted(
            set().union(*(where[place] for place in mutant["places"])),
            key=lambda test: (-finders[function][test], len(run[test]), test),
        )
        file = tree / PACKAGE / f"{module}.py"
        good = file.read_text()
        file.write_text(mutant["code"])
        shutil.copy(empty, empty.with_suffix(".db"))
        files = sorted({test.split("::")[0] for test in tests})
        status, found = forked(Chosen(tests), files, log) if tests else (0, None)
        file.write_text(good)
        if found:
            finders[function][found] += 1
        by = None if status == 0 else found or f"ended with status {status}"
        print(json.dumps({"name": mutant["name"], "by": by, "tests": len(tests)}), file=results)
        results.flush()


if __name__ == "__main__":
    main()
