"""What a task is told about where it comes from: commit of the DAGs, image digests of before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ml_pipelines import lineage
from ml_pipelines.lineage import dags_commit
from tests.helpers.pipelines import stored

OLD, NEW = "0a" * 20, "1b" * 20
DIGEST = f"sha256:{'1a' * 32}"


def git(at: Path, *words: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    done = subprocess.run(
        ["git", *identity, "-C", str(at), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one commit."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "a.py").write_text("pass\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "dags")
    git(tmp_path, "commit", "--quiet", "--message", "First")
    return tmp_path


@pytest.mark.parametrize(
    "layout",
    [".worktrees/{}", "{}", "bundles/dags/versions/{}"],
    ids=["git-sync 4", "git-sync 3", "Airflow 3"],
)
def test_commit_is_the_one_that_was_imported_also_when_the_link_has_moved_on(
    tmp_path: Path, layout: str
) -> None:
    """As a worker or a scheduler that lives longer than a commit."""
    trees = {commit: tmp_path / layout.format(commit) for commit in (OLD, NEW)}
    for tree in trees.values():
        package = tree / "dags" / "ml_pipelines"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        shutil.copy(lineage.__file__, package / "lineage.py")
    link = tmp_path / "link"
    link.symlink_to(trees[OLD])
    script = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(link / 'dags')!r})\n"
        "from ml_pipelines.lineage import dags_commit\n"
        f"os.symlink({str(trees[NEW])!r}, {str(link)!r} + '.new')\n"
        f"os.replace({str(link)!r} + '.new', {str(link)!r})\n"
        "print(dags_commit())\n"
    )
    said = []
    for _ in range(2):  # The second process starts behind the new link.
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
        )
        said.append(done.stdout.strip())
    assert said == [OLD, NEW]


def test_commit_of_a_checkout_is_its_head(checkout: Path) -> None:
    # No DAG has changed.
    (checkout / "README.md").write_text("changed\n")
    git(checkout, "add", "README.md")
    assert dags_commit(checkout / "dags") == git(checkout, "rev-parse", "HEAD")


def test_commit_of_a_checkout_with_changes_says_so(checkout: Path) -> None:
    (checkout / "dags" / "a.py").write_text("changed\n")
    index = (checkout / ".git" / "index").stat()
    assert dags_commit(checkout / "dags") == f"{git(checkout, 'rev-parse', 'HEAD')}-dirty"
    assert (checkout / ".git" / "index").stat().st_mtime_ns == index.st_mtime_ns


def test_without_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert dags_commit(tmp_path) == ""
    assert dags_commit(tmp_path / "gone") == ""


def test_without_git_there_is_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dags_commit(checkout / "dags") == ""


def test_git_that_hangs_is_not_waited_for(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("ml_pipelines.lineage.GIT_SECONDS", 0.2)
    assert dags_commit(checkout / "dags") == ""


def variables(pod: dict) -> dict[str, str]:
    return {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}


def test_the_commit_is_filled_in_by_the_worker(load_dag, render_pod) -> None:
    dag = load_dag("training_dag")
    # A DAG is stored alike from every commit, and a worker says which one it runs from.
    assert dags_commit() not in stored(dag)
    pod = render_pod(dag.get_task("train_model"), "run")
    assert variables(pod)["ML_PIPELINES_DAGS_COMMIT"] == dags_commit()


@pytest.mark.parametrize(
    ("dag_id", "task_id", "before", "variable"),
    [
        ("training_dag", "upload_model", "train_model", "ML_PIPELINES_TRAINING_IMAGE_DIGEST"),
        ("inference_dag", "clean_up", "run_inference", "ML_PIPELINES_INFERENCE_IMAGE_DIGEST"),
    ],
)
@pytest.mark.parametrize(
    ("results", "digest"),
    [
        ({"image_digest": DIGEST, "image": "i"}, DIGEST),
        ([{"image_digest": DIGEST}, {"image_digest": "another"}], DIGEST),
        ({"image": "i"}, ""),
        ([], ""),
        (None, ""),
    ],
    ids=["known", "mapped", "unknown", "mapped over nothing", "did not run"],
)
def test_the_digest_of_an_earlier_task_is_handed_on(
    load_dag,
    render_pod,
    dag_id: str,
    task_id: str,
    before: str,
    variable: str,
    results: dict | None,
    digest: str,
) -> None:
    handed = {before: results, "load_data": {"image_digest": "another task's"}}
    pod = render_pod(load_dag(dag_id).get_task(task_id), "run", handed)
    assert variables(pod)[variable] == digest
