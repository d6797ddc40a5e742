"""The repository that pods clone follows the checkout and never writes to it."""

import hashlib
from pathlib import Path

import pytest

from mlctl.base.errors import UserError, output
from mlctl.cluster.embedded import dag_source


def git(at: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    return output(["git", *identity, "-C", at, *words]).strip()


def commit(checkout: Path, text: str) -> str:
    (checkout / "dags" / "training_dag.py").write_text(text)
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", text)
    return git(checkout, "rev-parse", "HEAD")


def live(store: Path) -> str:
    return git(store / "dags.git", "rev-parse", "refs/heads/live")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "checkout"
    (path / "dags").mkdir(parents=True)
    git(path, "init", "--quiet", "--initial-branch=main")
    commit(path, "first")
    return path


@pytest.fixture
def store(tmp_path: Path, checkout: Path) -> Path:
    dag_source.use_checkout(tmp_path / "git", checkout)
    return tmp_path / "git"


def test_a_commit_is_published_once(store: Path, checkout: Path) -> None:
    assert dag_source.follow(store) == git(checkout, "rev-parse", "HEAD")
    assert dag_source.follow(store) is None
    second = commit(checkout, "second")
    assert dag_source.follow(store) == second
    assert live(store) == second


def test_what_is_published_can_be_cloned(store: Path, checkout: Path, tmp_path: Path) -> None:
    dag_source.follow(store)
    clone = tmp_path / "clone"
    remote = f"file://{store}/dags.git"
    git(tmp_path, "clone", "--quiet", "--depth=1", "--branch=live", remote, str(clone))
    assert (clone / "dags" / "training_dag.py").read_text() == "first"


def test_uncommitted_work_is_published_without_touching_the_checkout(
    store: Path, checkout: Path
) -> None:
    dag_source.follow(store)
    (checkout / "dags" / "training_dag.py").write_text("changed")
    (checkout / "dags" / "new_dag.py").write_text("new")
    (checkout / "elsewhere.txt").write_text("not a DAG")

    def snapshot() -> dict[str, str]:
        everything = [p for p in (checkout / ".git").rglob("*") if p.is_file()]
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in everything}

    before = snapshot()
    published = dag_source.publish(store, checkout, worktree=True)
    assert snapshot() == before
    assert live(store) == published
    show = ["ls-tree", "-r", "--name-only", published]
    assert git(store / "dags.git", *show) == "dags/new_dag.py\ndags/training_dag.py"
    assert git(store / "dags.git", "show", f"{published}:dags/training_dag.py") == "changed"


def test_uncommitted_work_stays_published_until_the_next_commit(
    store: Path, checkout: Path
) -> None:
    (checkout / "dags" / "training_dag.py").write_text("changed")
    published = dag_source.publish(store, checkout, worktree=True)
    assert dag_source.follow(store) is None
    assert live(store) == published
    third = commit(checkout, "third")
    assert dag_source.follow(store) == third
    assert live(store) == third


def test_another_checkout_takes_over(store: Path, checkout: Path, tmp_path: Path) -> None:
    dag_source.follow(store)
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(checkout), str(other))
    fourth = commit(other, "fourth")
    assert dag_source.publish(store, other, worktree=False) == fourth
    assert live(store) == fourth
    assert dag_source.follow(store) is None


def test_a_worktree_of_git_is_a_checkout_too(store: Path, checkout: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(checkout, "worktree", "add", "--quiet", str(linked), "-b", "topic")
    fifth = commit(linked, "fifth")
    assert dag_source.publish(store, linked, worktree=False) == fifth


def test_a_checkout_without_a_commit_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    with pytest.raises(UserError, match="has no commit yet: commit first, or use `make sync`"):
        dag_source.publish(tmp_path / "git", empty, worktree=False)


def test_no_checkout_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="git rev-parse in"):
        dag_source.use_checkout(tmp_path / "git", tmp_path)
