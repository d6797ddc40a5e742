"""A clone of the checkout under test, for a cluster to serve in its place."""

import subprocess
from pathlib import Path

from mlctl.base.paths import ROOT


def git(at: Path, *words: str) -> str:
    """Return the output of git, which knows an author and trusts every directory."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    command = ["git", "-c", "safe.directory=*", *identity, "-C", str(at), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def clone_of_the_checkout(directory: Path) -> Path:
    """Make a clone below a directory and return it."""
    clone = directory / "clone"
    git(ROOT, "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone))
    return clone
