"""A release seen from the outside: which helm is used, calls that must succeed, its Secrets."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlctl.release.release import Release
from tests.helpers.helm import program


def task(name: str, container: dict[str, Any] | None = None, **operator: Any) -> dict[str, Any]:
    """Settings of one task as the chart writes them: of its container, and of the operator."""
    pod = {"spec": {"containers": [{"name": "base"} | (container or {})]}}
    return {"tasks": {name: {"operator": operator, "pod": pod}}}


SHORT_TRAINING = task("train_model", {"env": [{"name": "TRAIN_MAX_STEPS", "value": "20"}]})
"""For a few steps, where it does not matter how well the model learns."""


@contextmanager
def helm_of(major: int) -> Iterator[None]:
    """Let the pinned Helm of a major version be the one in use."""
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("HELM", program(major))
        yield


def helm(release: Release, *words: str) -> str:
    """Return what helm printed. Raises AssertionError with its output when it fails."""
    result = subprocess.run(release.helm(*words), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def secrets(release: Release) -> dict[str, dict[str, str]]:
    """Return name -> data of the Secrets, without Helm's own records."""
    return {
        secret["metadata"]["name"]: secret.get("data", {})
        for secret in release.kube.items("secrets")
        if secret["type"] != "helm.sh/release.v1"
    }
