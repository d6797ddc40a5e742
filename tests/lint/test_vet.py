"""go vet over the node's module. It type-checks against Kubernetes: slow before the first build."""

import subprocess

from cluster.embedded.binary import SOURCE, build_environment, find_go


def test_go_is_vetted() -> None:
    go, _ = find_go()
    command = [go, "vet", "./..."]
    result = subprocess.run(
        command, cwd=SOURCE, env=build_environment(go), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
