"""The git repository that pods clone the DAGs from.

``dags.git`` borrows the objects of the user's checkout and has one branch, ``live``. It
follows the checkout's HEAD: a commit is published within a second of being made. Work that
is not committed is published on request as a commit that only ``dags.git`` knows; the
user's branch, index and object store are never written to.
"""

import os
import sys
import tempfile
import threading
from pathlib import Path

from mlctl.base.errors import UserError, output

BRANCH = "live"
POLL_SECONDS = 1.0
_SOURCE = "source-checkout"
_SEEN = "source-head"


def use_checkout(git: Path, checkout: Path) -> None:
    """Make ``git/dags.git`` (if need be) and let it follow ``checkout``.

    Raises UserError when ``checkout`` is not a git checkout.
    """
    repository = git / "dags.git"
    if not (repository / "HEAD").exists():
        git.mkdir(parents=True, exist_ok=True)
        run_git("init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(repository))
    objects = _git_path(checkout, "objects")
    # Earlier checkouts stay listed: the commit that is live now may be one of theirs.
    alternates = repository / "objects" / "info" / "alternates"
    known = alternates.read_text().splitlines() if alternates.exists() else []
    lines = [
        str(objects),
        *[line for line in known if line != str(objects) and Path(line).is_dir()],
    ]
    alternates.write_text("".join(f"{line}\n" for line in lines))
    shallow = _git_path(checkout, "shallow")
    if shallow.exists():
        (repository / "shallow").write_bytes(shallow.read_bytes())
    if _read(git / _SOURCE) != str(checkout):
        (git / _SEEN).unlink(missing_ok=True)
        (git / _SOURCE).write_text(str(checkout))


def follow(git: Path) -> str | None:
    """Publish the checkout's HEAD if it moved since the last look; return what was published."""
    source = _read(git / _SOURCE)
    if not source or not Path(source).is_dir():
        return None
    head = _head(Path(source))
    if head is None or head == _read(git / _SEEN):
        return None
    _publish(git, head)
    (git / _SEEN).write_text(head)
    return head


def publish(git: Path, checkout: Path, *, worktree: bool) -> str:
    """Publish HEAD, or the files as they are now, and return the commit's id.

    Raises UserError when there is nothing to publish.
    """
    use_checkout(git, checkout)
    head = _head(checkout)
    if worktree:
        commit = _snapshot(git, checkout, head)
    elif head is None:
        raise UserError(f"{checkout} has no commit yet: commit first, or use `make sync`")
    else:
        commit = head
    _publish(git, commit)
    # The watcher must not put HEAD over a snapshot that was asked for after HEAD was made.
    (git / _SEEN).write_text(head or "")
    return commit


def _snapshot(git: Path, checkout: Path, head: str | None) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        env = {
            "GIT_INDEX_FILE": f"{scratch}/index",
            "GIT_OBJECT_DIRECTORY": str(git / "dags.git" / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(_git_path(checkout, "objects")),
            **identity("make sync", "sync@ml-pipelines.invalid"),
        }
        if head:
            run_git("read-tree", head, at=checkout, env=env)
        run_git("add", "--all", "--", "dags", at=checkout, env=env)
        tree = run_git("write-tree", at=checkout, env=env)
        parents = ["-p", head] if head else []
        return run_git(
            "commit-tree", tree, *parents, "-m", "Uncommitted work", at=checkout, env=env
        )


def _publish(git: Path, commit: str) -> None:
    run_git("update-ref", f"refs/heads/{BRANCH}", commit, at=git / "dags.git")


def _head(checkout: Path) -> str | None:
    try:
        return run_git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", at=checkout)
    except UserError:
        return None


def _git_path(checkout: Path, name: str) -> Path:
    return (checkout / run_git("rev-parse", "--git-path", name, at=checkout)).resolve()


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def identity(name: str, email: str) -> dict[str, str]:
    """Return the environment in which git commits as this person."""
    return {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", email))
    }


def run_git(*words: str, at: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run git in ``at`` and return what it prints. Raises UserError when it fails."""
    # The checkout may belong to another user than root, who runs the cluster.
    safe = ["-c", "safe.directory=*"]
    place = ["-C", str(at)] if at else []
    command = ["git", *safe, *place, *words]
    return output(command, f"git {words[0]} in {at}", env=os.environ | (env or {})).strip()


def main() -> None:
    """Follow the checkout until told to stop."""
    git = Path(sys.argv[1])
    never = threading.Event()
    while True:
        try:
            if commit := follow(git):
                print(f"published {commit}", flush=True)
        except UserError as error:
            print(error, flush=True)
        never.wait(POLL_SECONDS)


if __name__ == "__main__":
    main()
