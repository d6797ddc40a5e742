"""Each command of the pages for people with DAGs of their own is run by a test.

That targets and variables are some is in test_main.py. The YAML of the pages is rendered by
tests/chart/test_settings.py, their Python is loaded by tests/dags/test_documents.py.
"""

import ast
import re
import subprocess
from pathlib import Path

from mlctl.base.paths import ROOT
from mlctl.base.versions import pins
from tests.helpers.checkouts import clone_of_the_checkout
from tests.helpers.pages import blocks

PAGES = ("add-a-pipeline.md", "bring-your-dags.md")
BEGUN, PUBLISHED = "tests/dags/test_documents.py", "tests/e2e/test_dag_sync.py"
RUNS = "tests/mlctl/commands/test_runs.py"
TRIGGERED = (RUNS, "test_runs_of_any_dag_get_the_parameters_and_tell_them")
LAID_ON_TOP = ("tests/mlctl/release/test_release.py", "test_values_files_follow_the_variables")
RUN_BY = {
    "make new-dag NAME=churn": (__file__, "test_make_new_dag_writes_two_files"),
    "make test-dags K=churn": (BEGUN, "test_what_new_dag_writes_passes"),
    "make sync": (PUBLISHED, "test_uncommitted_work_is_published_on_request"),
    "make status": (RUNS, "test_status_names_every_dag_and_a_triggerer_that_is_off"),
    "make logs DAG=churn": (RUNS, "test_logs_are_the_last_lines_of_the_newest_run"),
    "make trigger DAG=churn": TRIGGERED,
    "make trigger DAG=my_dag": TRIGGERED,
    "N=5 make trigger DAG=churn": TRIGGERED,
    """make trigger DAG=churn PARAMS='{"day": "2024-01-01"}'""": TRIGGERED,
    "VALUES=my.yaml make up": LAID_ON_TOP,
}


def commands() -> set[str]:
    """The commands in the blocks of the pages."""
    found = [block.text for page in PAGES for block in blocks(f"docs/{page}", "sh", "console")]
    lines = (re.sub(r" +# .*", "", line) for text in found for line in text.splitlines())
    return {line for line in lines if line}


def test_each_command_is_run_by_a_test() -> None:
    assert commands() == set(RUN_BY)
    for file, test in RUN_BY.values():
        tree = ast.parse((ROOT / file).read_text())
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_make_new_dag_writes_two_files(tmp_path: Path) -> None:
    clone = clone_of_the_checkout(tmp_path)
    command = next(command for command in RUN_BY if "new-dag" in command)
    done = subprocess.run(["sh", "-euc", command], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    new = subprocess.run(status, cwd=clone, capture_output=True, text=True, check=True).stdout
    assert set(new.split()) == {"??", "dags/churn.py", "tests/dags/test_churn.py"}


def test_the_versions_that_are_told_as_tested_together_are_the_pinned_ones() -> None:
    node = (ROOT / "mlctl/cluster/embedded/node/go.mod").read_text()
    kubernetes = re.findall(r"k8s\.io/kubernetes v([\d.]+)", node)[0]
    wheels = pins()["wheels"]
    newest, older = (wheels[name]["helm"][1:] for name in ("kubectl-and-helm", "helm3"))
    rows = []
    for name, of_helm, command in (
        ("airflow", f"{newest}, {older}", "test"),
        ("airflow3", newest, "test-long"),
    ):
        locked = (ROOT / f"requirements/{name}.txt").read_text()
        packages = dict(re.findall(r"^([\w-]+)==(\S+)", locked, re.MULTILINE))
        provider = "apache-airflow-providers-cncf-kubernetes"
        of_packages = [packages[one] for one in ("apache-airflow", provider, "kubernetes")]
        row = [*of_packages, pins()["chart"]["version"], kubernetes, of_helm, f"`make {command}`"]
        rows.append(f"| {' | '.join(row)} |\n")
    assert "".join(rows) in (ROOT / "docs/upgrading.md").read_text()
