"""Hand built images to a containerd, without a registry."""

import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mlctl.base import processes
from mlctl.base.errors import UserError, output
from mlctl.base.names import REPOSITORY
from mlctl.base.progress import Phase
from mlctl.builder import oci

NAMESPACE = ["--namespace", "k8s.io"]
"""The namespace of containerd in which the kubelet looks for images."""

_SECOND_NAME = "sha256:"
"""What the name begins with under which containerd's side for the kubelet lists an image too."""


def load(
    ctr_command: Sequence[str], entries: Mapping[str, Mapping[str, str]], phase: Phase
) -> None:
    """Import those images of ``entries`` (of build/images.json) that containerd does not have.

    ``ctr_command`` is ``ctr`` with what it needs to reach the daemon; the images go through its
    standard input, so that it may run in another mount namespace. All go as one archive, without
    the layers that containerd has: an edit of the workload's code sends that code alone.

    Raises UserError when containerd refuses.
    """
    ctr = [*ctr_command, *NAMESPACE]
    present = images_of(output([*ctr, "images", "list"]))
    missing = [
        entry
        for entry in entries.values()
        if present.get(f"{entry['repository']}:{entry['tag']}") != entry["digest"]
    ]
    if not missing:
        return
    layouts = [oci.read_layout(Path(entry["layout"])) for entry in missing]
    there = set(output([*ctr, "content", "list", "--quiet"]).split())
    refusal = _import(ctr, layouts, there, phase)
    if refusal and any(there.intersection(one.layers()) for one in layouts):
        # A layer may have gone between the two questions: containerd's garbage collector.
        phase.say("once more, with every layer")
        refusal = _import(ctr, layouts, set(), phase)
    if refusal:
        tail = "\n".join(f"    {line}" for line in refusal.splitlines()[-5:])
        raise UserError(f"containerd did not take the images {_names(layouts)}:\n{tail}")


def _import(ctr: list[str], layouts: list[oci.Layout], there: set[str], phase: Phase) -> str:
    """Import the images; return what ctr said when it failed, '' when it did not."""
    size = sum(path.stat().st_size for path in oci.to_send(layouts, there).values()) / 1e6
    phase.note(f"importing {_names(layouts)} ({size:.1f} MB)")
    command = [*ctr, "images", "import", "-"]
    broken = False
    with processes.started(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            oci.stream(layouts, process.stdin, there)
            process.stdin.close()
        except BrokenPipeError:
            # ctr has ended early; what it printed says why.
            broken = True
        output = process.stdout.read().decode(errors="replace").strip()
    failed = process.returncode != 0 or broken
    return (output or f"ctr ended with status {process.returncode}") if failed else ""


def _names(layouts: list[oci.Layout]) -> str:
    return ", ".join(one.name.rpartition("/")[2].partition(":")[0] for one in layouts)


def project_images(ctr_command: Sequence[str]) -> set[str]:
    """Return the full names of this project's images that containerd has.

    Raises UserError when it does not answer.
    """
    found = images_of(output([*ctr_command, *NAMESPACE, "images", "list"]))
    return {name for name in found if name.startswith(f"{REPOSITORY}/")}


def remove(ctr_command: Sequence[str], names: Collection[str]) -> None:
    """Remove images, by their full names; the disk is free when it returns.

    Raises UserError when containerd refuses.
    """
    ctr = [*ctr_command, *NAMESPACE]
    present = images_of(output([*ctr, "images", "list"]))
    gone = [name for name in present if name in names]
    staying = {
        digest
        for name, digest in present.items()
        if name not in names and not name.startswith(_SECOND_NAME)
    }
    going = {present[name] for name in gone} - staying
    gone += [name for name in present if name.startswith(_SECOND_NAME) and present[name] in going]
    if gone:
        output([*ctr, "images", "remove", "--sync", *gone])


def images_of(listing: str) -> dict[str, str]:
    """Return name -> digest from the table that ``ctr images list`` prints."""
    rows = [line.split() for line in listing.splitlines()[1:] if line.strip()]
    return {row[0]: row[2] for row in rows}
