"""A release seen from the outside: calls of helm that must succeed, and its Secrets."""

import subprocess

from mlctl.release.release import Release

SHORT_TRAINING = "pipelines.tasks.train_model.env.TRAIN_MAX_STEPS=120"
"""Value for a third of the steps, where it does not matter how well the model learns."""


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
