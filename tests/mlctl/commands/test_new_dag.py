"""`make new-dag`: what it writes, and the names that it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from mlctl.commands import new_dag

NEIGHBOURS = """
a = DAG("positional")
b = DAG(dag_id='by_keyword', schedule=None)
with DAG(
    "on_its_own_line",
): pass
@dag(schedule=None)
def decorated():
    pass
@dag(dag_id="decorated_with_id")
def other(): pass
PodOperator(task_id="a_task")
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, with a file of some DAGs in a folder of its own."""
    dags, tests = tmp_path / "dags", tmp_path / "tests" / "dags"
    (dags / "team").mkdir(parents=True)
    (dags / "team" / "several.py").write_text(NEIGHBOURS)
    (dags / "ml_pipelines").mkdir()
    tests.mkdir(parents=True)
    (tests / "test_runs.py").touch()
    for name, path in {"ROOT": tmp_path, "DAGS": dags, "TESTS": tests}.items():
        monkeypatch.setattr(new_dag, name, path)
    return tmp_path


def files(checkout: Path) -> set[str]:
    return {str(path.relative_to(checkout)) for path in checkout.rglob("*.py")}


@pytest.mark.parametrize("name", ["churn", "x" * 63])
def test_it_writes_a_short_dag_and_its_test_in_good_form(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = files(checkout)
    new_dag.new_dag(name)
    written = files(checkout) - before
    assert written == {f"dags/{name}.py", f"tests/dags/test_{name}.py"}
    assert len((checkout / "dags" / f"{name}.py").read_text().splitlines()) <= 30
    ruff = [Path(sys.executable).with_name("ruff"), "--config", ROOT / "pyproject.toml"]
    for words in (["check"], ["format", "--check"]):
        command = [*ruff, *words, "--no-cache", *written]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    told = capsys.readouterr().out
    for command in (f"make test-dags K={name}", "make sync", f"make trigger DAG={name}"):
        assert command in told


@pytest.mark.parametrize(
    "name",
    ["", "2fast", "my-dag", "my.dag", "../churn", "a b", "für", "class", "_x", "x" * 64, "x\n"],
)
def test_what_can_be_no_id_and_no_file_is_refused(checkout: Path, name: str) -> None:
    before = files(checkout)
    with pytest.raises(UserError, match=r"a letter, then letters, digits and _"):
        new_dag.new_dag(name)
    assert files(checkout) == before


@pytest.mark.parametrize("name", ["statistics", "airflow"])
def test_a_file_that_would_hide_a_module_is_refused(checkout: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"would hide the Python module .*{name}|dags/{name}.py"):
        new_dag.new_dag(name)


@pytest.mark.parametrize(
    "name", ["positional", "by_keyword", "on_its_own_line", "decorated", "decorated_with_id"]
)
def test_the_name_of_another_dag_is_refused(checkout: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"dags/team/several\.py has a DAG of this name"):
        new_dag.new_dag(name)


def test_the_name_of_a_task_is_free(checkout: Path) -> None:
    new_dag.new_dag("a_task")
    assert (checkout / "dags" / "a_task.py").is_file()


@pytest.mark.parametrize(
    ("name", "there"), [("runs", r"tests/dags/test_runs\.py"), ("ml_pipelines", r"dags/ml_pipel")]
)
def test_nothing_is_overwritten(checkout: Path, name: str, there: str) -> None:
    before = files(checkout)
    with pytest.raises(UserError, match=f"{there}.* is there"):
        new_dag.new_dag(name)
    assert files(checkout) == before
