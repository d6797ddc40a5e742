"""Build what the tests stand on: the node's programs and the images, side by side.

python -m tools.build
"""

from mlctl.base import processes
from mlctl.base.errors import run_main
from mlctl.base.progress import Phases
from mlctl.builder.build import build_all
from mlctl.cluster.embedded.binary import node_binary


def main() -> None:
    """Build what the cache does not have; while one part downloads, the other computes."""
    phases = Phases()

    def build_node() -> None:
        with phases.phase("Kubernetes from Go modules") as phase:
            node_binary(phase)

    with processes.thread_pool(2) as pool:
        for part in [pool.submit(build_node), pool.submit(build_all, phases)]:
            part.result()


if __name__ == "__main__":
    run_main(main)
