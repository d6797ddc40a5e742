"""A commit reaches Airflow by itself, uncommitted work on request.

The cluster is told to serve a clone, so that the checkout under test is left alone.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlctl.base.progress import Phase
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.cluster.embedded import dag_source
from mlctl.publishing import publish, served
from mlctl.release.release import Release
from mlctl.stack import Stack
from tests.helpers.checkouts import clone_of_the_checkout, git

SHOWN_SECONDS = 300
"""Other suites may have both cores meanwhile; `make bench` tells how long it takes."""


@pytest.fixture(scope="module")
def clone(
    stack: Stack, release: Release, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A clone of the checkout which the cluster serves in its place."""
    if stack.cluster.kind != "embedded":
        pytest.skip("only the embedded cluster serves a checkout")
    directory = clone_of_the_checkout(tmp_path_factory.mktemp("served"))
    served = stack.cluster.config.git
    dag_source.publish(served, directory, worktree=False)
    try:
        yield directory
    finally:
        publish(stack, Phase("publish the checkout again"))
        shutil.rmtree(directory)


def describe(directory: Path, text: str) -> None:
    """Change what Airflow shows as the description of training_dag."""
    file = directory / "dags" / "training_dag.py"
    old = file.read_text()
    new = re.sub('description=".*"', f'description="{text}"', old)
    assert new != old
    file.write_text(new)


def shown(airflow: Airflow) -> str:
    dag = airflow.dag("training_dag")
    return dag["description"] if dag else ""


def test_a_commit_shows_by_itself(clone: Path, airflow: Airflow) -> None:
    describe(clone, "as committed")
    git(clone, "commit", "--quiet", "--all", "--message", "Change a description")
    until(SHOWN_SECONDS, lambda: shown(airflow) == "as committed", "the commit does not show")


def test_uncommitted_work_is_published_on_request(
    clone: Path, stack: Stack, airflow: Airflow
) -> None:
    describe(clone, "as it is on disk")
    # Something staged and something new: both must come out as they were.
    (clone / "dags" / "scratch.txt").write_text("not tracked\n")
    (clone / "README.md").write_text("staged\n")
    git(clone, "add", "README.md")
    before = (git(clone, "status", "--porcelain"), git(clone, "rev-parse", "HEAD"))

    commit = dag_source.publish(stack.cluster.config.git, clone, worktree=True)
    until(SHOWN_SECONDS, lambda: served(stack)[0] == commit, "it is not served")
    until(SHOWN_SECONDS, lambda: shown(airflow) == "as it is on disk", "Airflow does not show it")
    assert (git(clone, "status", "--porcelain"), git(clone, "rev-parse", "HEAD")) == before


def test_a_broken_dag_is_an_import_error_until_it_is_mended(clone: Path, airflow: Airflow) -> None:
    file = clone / "dags" / "broken_dag.py"
    # The names without which Airflow does not take a file for one with DAGs.
    file.write_text("from airflow import DAG\nimport not_there\n")
    git(clone, "add", "dags")
    git(clone, "commit", "--quiet", "--message", "Break something")

    def told() -> list[str]:
        errors = airflow.import_errors()
        return [one["stack_trace"] for one in errors if one["filename"].endswith(file.name)]

    trace, *_ = until(SHOWN_SECONDS, told, "no import error is shown")
    assert "No module named 'not_there'" in trace

    file.write_text("from airflow import DAG\n")
    git(clone, "commit", "--quiet", "--all", "--message", "Mend it")
    until(SHOWN_SECONDS, lambda: told() == [], "the import error stays")
