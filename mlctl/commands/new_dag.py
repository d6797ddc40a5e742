"""A pipeline to begin with: a DAG file and its test, made of the files in templates/."""

import keyword
import re
import sys
from pathlib import Path
from string import Template

from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from mlctl.commands.telling import say

TEMPLATES = Path(__file__).with_name("templates")
DAGS, TESTS = ROOT / "dags", ROOT / "tests" / "dags"
# Airflow has dags/ among the directories that it imports from.
TAKEN = sys.stdlib_module_names | {"airflow", "kubernetes"}

NEXT = """next:
    make test-dags K={name}
        its test, on both Airflows; takes no cluster
    make sync
        show it in Airflow as it is, without a commit; `make up` comes before, once
    make trigger DAG={name}
        run it, and follow the run
docs/add-a-pipeline.md: another image, its memory, a GPU, files, results"""


def new_dag(name: str) -> None:
    """Write a DAG of two tasks and its test, to begin with.

    Raises UserError for a name that cannot be that of a DAG and of a file, or is there already.
    """
    check(name)
    files = {DAGS / f"{name}.py": "dag.txt", TESTS / f"test_{name}.py": "test.txt"}
    for file in files:
        if file.exists() or file.with_suffix("").exists():
            raise UserError(f"NAME={name}: {file.relative_to(ROOT)} is there; choose another name")
    for file, template in files.items():
        text = Template((TEMPLATES / template).read_text()).substitute(name=name)
        file.write_text(text)
        say(f"written: {file.relative_to(ROOT)}")
    say(NEXT.format(name=name))


def check(name: str) -> None:
    """Raise UserError when a new DAG, or its file, cannot be called so."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name) or keyword.iskeyword(name):
        raise UserError(
            f"NAME={name}: a letter, then letters, digits and _ (63 at most): it becomes the id of "
            "the DAG, the name of its file and a label of its pods"
        )
    if name in TAKEN:
        raise UserError(f"NAME={name}: dags/{name}.py would hide the Python module of that name")
    # DAG("churn"), DAG(dag_id="churn"), and a function of this name below @dag.
    named = re.compile(
        rf"""\b(DAG|dag)\(\s*(dag_id\s*=\s*)?["']{name}["']|dag_id\s*=\s*["']{name}["']"""
        rf"""|@dag\b(?:(?!\ndef ).)*\ndef {name}\(""",
        re.DOTALL,
    )
    for file in sorted(DAGS.rglob("*.py")):
        if named.search(file.read_text()):
            there = file.relative_to(ROOT)
            raise UserError(f"NAME={name}: {there} has a DAG of this name; choose another")
