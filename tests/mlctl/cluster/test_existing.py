"""What stands in the way of a cluster that somebody else runs; tests/e2e tries a live one."""

import json
import socket
from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.base.progress import Phases
from mlctl.cluster.existing import ExistingCluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExistingCluster:
    """No kubeconfig is there, and no git address is named."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("DAGS_REPO", raising=False)
    return ExistingCluster("try")


def lead_to(port: int, kubeconfig: Path) -> None:
    """Write a kubeconfig for an API server on this machine."""
    server = f"http://127.0.0.1:{port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        "current-context": "c",
    }
    kubeconfig.write_text(json.dumps(config))


def test_all_that_is_in_the_way_is_named_at_once(
    cluster: ExistingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"set DAGS_REPO.*; no kubeconfig at .*: set KUBECONFIG"):
        cluster.up(Phases())
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        lead_to(nobody_listens.getsockname()[1], cluster.kubeconfig)
        with pytest.raises(UserError, match=r"set DAGS_REPO.*; the API server .* refused"):
            cluster.up(Phases())
        monkeypatch.setenv("DAGS_REPO", "https://example.org/dags.git")
        with pytest.raises(UserError, match=r"^the API server does not answer: "):
            cluster.up(Phases())
        assert cluster.status() == [{"name": "kube-apiserver", "state": "unreachable"}]


def test_it_is_neither_stopped_nor_deleted(cluster: ExistingCluster) -> None:
    for end in (cluster.down, cluster.clean):
        with pytest.raises(UserError, match="not ours to stop; `helm uninstall`"):
            end(Phases())
