"""Hand built images to a containerd, without a registry."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from images import oci
from tools.errors import UserError
from tools.progress import Phase

NAMESPACE = ["--namespace", "k8s.io"]
"""The namespace of containerd in which the kubelet looks for images."""


def load(ctr_command: Sequence[str], lock: Mapping[str, Mapping[str, str]], phase: Phase) -> None:
    """Import those images of ``lock`` (build/images.json) that containerd does not have.

    ``ctr_command`` is ``ctr`` with what it needs to reach the daemon; the archives go through
    its standard input, so that it may run in another mount namespace. All go as one archive: the
    base layer that they share is read, sent and unpacked once.

    Raises UserError when containerd refuses.
    """
    ctr = [*ctr_command, *NAMESPACE]
    present = images_of(_output([*ctr, "images", "list"]))
    missing = [
        entry
        for entry in lock.values()
        if present.get(f"{entry['repository']}:{entry['tag']}") != entry["digest"]
    ]
    if not missing:
        return
    names = ", ".join(entry["repository"].rpartition("/")[2] for entry in missing)
    size = sum(Path(entry["archive"]).stat().st_size for entry in missing) / 1e6
    phase.note(f"importing {names} ({size:.0f} MB)")
    archives = [oci.read_archive(Path(entry["archive"])) for entry in missing]
    command = [*ctr, "images", "import", "-"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    broken = False
    try:
        oci.stream(archives, process.stdin)
        process.stdin.close()
    except BrokenPipeError:
        # ctr has ended early; what it printed says why.
        broken = True
    output = process.stdout.read().decode(errors="replace")
    if process.wait() != 0 or broken:
        tail = "\n".join(f"    {line}" for line in output.strip().splitlines()[-5:])
        raise UserError(f"containerd did not take the images {names}:\n{tail}")


def images_of(listing: str) -> dict[str, str]:
    """Return name -> digest from the table that ``ctr images list`` prints."""
    rows = [line.split() for line in listing.splitlines()[1:] if line.strip()]
    return {row[0]: row[2] for row in rows}


def _output(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout
