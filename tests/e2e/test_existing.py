"""CLUSTER=existing, on the embedded cluster as if it were somebody else's.

Of that it has the kubeconfig, the images on the node and the address that serves the DAGs.
"""

import pytest
import yaml

from mlctl.base.errors import UserError
from mlctl.base.progress import Phases
from mlctl.builder.build import built
from mlctl.commands import bring_up, look
from mlctl.release.release import Release, image_values, merge
from mlctl.stack import Stack
from tests.e2e.conftest import Aloud


@pytest.fixture
def existing(
    stack: Stack, release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path_factory
) -> Stack:
    """The stack that the variables of the documentation lead to."""
    if stack.cluster.kind != "embedded":
        pytest.skip("this is about a cluster that was not made by CLUSTER=existing")
    values = stack.cluster.values()
    images = tmp_path_factory.mktemp("values") / "images.yaml"
    overlay = merge(image_values(built()), {"storage": values["storage"]})
    images.write_text(yaml.safe_dump(overlay))
    git = values["airflow"]["dags"]["gitSync"]
    for name, value in {
        "CLUSTER": "existing",
        "CLUSTER_NAME": "somebody-elses",
        "KUBECONFIG": str(stack.cluster.kubeconfig),
        "DAGS_REPO": git["repo"],
        "DAGS_REF": git["ref"],
        "VALUES": str(images),
    }.items():
        monkeypatch.setenv(name, value)
    return Stack()


def test_it_gets_the_same_release_and_loses_no_pod(
    existing: Stack, release: Release, aloud: Aloud, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> tuple:
        names = {pod["metadata"]["uid"] for pod in release.pods()}
        return names, release.installed_values(), release.status().revision

    pods, values, revision = state()
    with aloud("`make up` with CLUSTER=existing"):
        bring_up.up(existing)
    assert state() == (pods, values, revision + 1)
    assert look.status(existing) == 0
    told = capsys.readouterr().out
    assert f"release ml-pipelines: deployed, revision {revision + 1}" in told
    assert "NOT READY" not in told


def test_it_is_not_made_or_served_from_here(existing: Stack) -> None:
    with pytest.raises(UserError, match="push to DAGS_REPO"):
        bring_up.sync(existing)
    with pytest.raises(UserError, match="not ours to stop"):
        existing.cluster.clean(Phases())
