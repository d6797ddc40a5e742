"""What clusters have in common that do not serve this checkout: pods clone it from a server."""

import os
from typing import Any

from mlctl.base.errors import UserError, output
from mlctl.base.paths import ROOT


def dag_values(repository: str, ref: str) -> dict[str, Any]:
    """Return the Helm values that make git-sync follow ``ref`` of ``repository``."""
    return {"airflow": {"dags": {"gitSync": {"repo": repository, "ref": ref, "branch": ref}}}}


def head() -> str:
    """Return the commit this checkout is at."""
    command = ["git", "-c", "safe.directory=*", "-C", ROOT, "rev-parse", "HEAD"]
    return output(command, f"{ROOT} has no commit yet: commit first").strip()


class FromRepository:
    """The part of a provider.Provider that names DAGS_REPO and DAGS_REF."""

    def host_packages(self) -> list[str]:
        return []

    def remarks(self) -> list[str]:
        return []

    def images(self) -> set[str]:
        return set()  # It looks after its images itself.

    def remove_images(self, names: set[str]) -> None:
        pass

    def values(self) -> dict[str, Any]:
        return dag_values(os.environ.get("DAGS_REPO", ""), os.environ.get("DAGS_REF") or "main")

    def publish(self, *, worktree: bool) -> str:
        if worktree:
            raise UserError("push to DAGS_REPO instead: only CLUSTER=embedded serves a checkout")
        return head()

    def repository_problems(self) -> list[str]:
        """Return what is in the way of the pods' cloning, as far as it shows here."""
        if os.environ.get("DAGS_REPO"):
            return []
        return ["set DAGS_REPO to a git address that pods can clone, holding dags/"]
