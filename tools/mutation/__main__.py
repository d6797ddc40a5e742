"""Change dags/ml_pipelines in every small way, and see whether the DAG tests find each change.

    python -m tools.mutation                       all of MODULES
    python -m tools.mutation failures settings     these
    python -m tools.mutation survivors operator    what survived the last run in one of these, or
                                                   was not tried before it was ended

tests/dags/survivors.toml says which changes make no difference, and why. Any other that survives
fails the run, and so does one in that list that is found or no longer there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import BUILD, ROOT
from tools.bootstrap import environment

MODULES = ("failures", "settings", "pod_manager", "operator")
ACCEPTED = ROOT / "tests" / "dags" / "survivors.toml"
PLACE = BUILD / "mutation"
AIRFLOWS = ("airflow", "airflow3")
"""Environments to try a mutant in, until one finds it: parts are for one provider's version."""
COPIED = ("dags", "tests", "pyproject.toml")


def copy_of_the_checkout(place: Path) -> Path:
    """Return a tree to write mutants to: what tests import is copied, the rest linked."""
    tree = place / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for entry in ROOT.iterdir():
        target = tree / entry.name
        if entry.name not in COPIED:
            target.symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, target)
    return tree


def made(modules: list[str]) -> list[dict[str, Any]]:
    """Return the mutants of these modules."""
    files = [f"dags/ml_pipelines/{name}.py" for name in modules]
    command = [str(environment(["mutation"])), "-m", "tools.mutation.mutants", *files]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


def tried(mutants: list[dict[str, Any]], airflow: str) -> Iterator[dict[str, Any]]:
    """Yield what came of each mutant with one of AIRFLOWS, as `trial` prints it."""
    python = environment([airflow, "dag-tests"])
    place = PLACE / airflow
    tree = copy_of_the_checkout(place)
    given = place / "mutants.json"
    given.write_text(json.dumps(mutants))
    command = [str(python), "-m", "tools.mutation.trial", str(tree)]
    # Forks leave their directories; a test wants to be outside of any checkout.
    with tempfile.TemporaryDirectory(prefix="mutation-") as temporary, given.open() as file:
        with subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=file,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": temporary},
        ) as process:
            yield from map(json.loads, process.stdout)
    if process.returncode:
        raise UserError(f"the trial ended with status {process.returncode}")


def accepted(text: str) -> dict[str, str]:
    """Return the reason of each mutant that a file like ACCEPTED lists."""
    return {
        mutant: group["why"]
        for group in tomllib.loads(text).get("accepted", [])
        for mutant in group["mutants"]
    }


def module_of(name: str) -> str:
    """Return the module of a mutant's name."""
    return re.match(r"\w+", name)[0]


def judge(results: dict[str, str | None], reasons: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong: survivors without a reason, reasons without a survivor."""
    modules = set(map(module_of, results))
    for name, by in results.items():
        if by is None and name not in reasons:
            yield f"SURVIVED {name}"
    for name in reasons:
        if module_of(name) in modules and name not in results:
            yield f"NO SUCH MUTANT {name}"
        elif results.get(name):
            yield f"FOUND {name}, by {results[name]}"


def table(results: dict[str, str | None], reasons: dict[str, str]) -> Iterator[str]:
    """Yield the lines of the table: mutants, found, explained and not, of each module."""
    yield f"{'':<14}{'mutants':>9}{'found':>9}{'explained':>11}{'survived':>10}{'score':>9}"
    for module in [*dict.fromkeys(map(module_of, results)), "all"]:
        of_it = {name: by for name, by in results.items() if module in ("all", module_of(name))}
        found = sum(by is not None for by in of_it.values())
        explained = sum(by is None and name in reasons for name, by in of_it.items())
        counts = f"{len(of_it):>9}{found:>9}{explained:>11}{len(of_it) - found - explained:>10}"
        yield f"{module:<14}{counts}{found / max(1, len(of_it)):>9.1%}"


def main() -> int:
    """Try the mutants of the modules that the command line names, of all if it names none."""
    words = sys.argv[1:]
    again = "survivors" in words
    modules = [word for word in words if word != "survivors"] or list(MODULES)
    if unknown := set(modules) - set(MODULES):
        raise UserError(f"no module {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    PLACE.mkdir(parents=True, exist_ok=True)
    kept = {name: PLACE / f"{name}.json" for name in modules}
    before: dict[str, str | None] = {}
    if again:
        for file in kept.values():
            before |= json.loads(file.read_text())
    started = time.monotonic()
    mutants = made(modules)
    mutants = [one for one in mutants if before.get(one["name"]) is None]
    print(f"{len(mutants)} mutants of {', '.join(modules)}", flush=True)
    results = {name: by for name, by in before.items() if by is not None}
    for airflow in AIRFLOWS:
        left = [one for one in mutants if results.get(one["name"]) is None]
        for number, one in enumerate(tried(left, airflow) if left else (), 1):
            results[one["name"]] = one["by"]
            module = module_of(one["name"])
            of_it = {name: by for name, by in results.items() if module_of(name) == module}
            kept[module].write_text(json.dumps(of_it, indent=1))
            age = time.monotonic() - started
            if one["by"] is None:
                told = f"{age:5.0f}s survived {one['tests']} tests ({airflow}): {one['name']}"
                print(told, flush=True)
            elif number % 20 == 0:
                print(f"{age:5.0f}s {number} of {len(left)} ({airflow})", flush=True)
    reasons = accepted(ACCEPTED.read_text())
    wrong = list(judge(results, reasons))
    print("\n".join([*table(results, reasons), *wrong]))
    print(f"{time.monotonic() - started:.0f} s; {ACCEPTED.relative_to(ROOT)} has the reasons")
    return 1 if wrong else 0


if __name__ == "__main__":
    run_main(main)
