"""Commands in mount and process namespaces of their own.

Whatever a build mounts or starts ends with it, also when it is killed: the machine's own mount
table never sees it.
"""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlctl.base.errors import UserError
from mlctl.base.progress import Phase, run


def isolated(command: Sequence[str | Path], *, tmpfs: Path | None = None) -> list[str]:
    """Return the command line that runs ``command`` as the first process of new namespaces.

    ``tmpfs`` names an existing directory that is memory for the command. The command dies with
    the thread that started it (a builder that is killed leaves nothing running).
    """
    words = [str(word) for word in command]
    if tmpfs is not None:
        words = ["sh", "-ceu", 'mount -t tmpfs tmpfs "$0"; exec "$@"', str(tmpfs), *words]
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", *unshare, *words]


def run_isolated(
    command: Sequence[str | Path],
    *,
    log: Path,
    phase: Phase,
    env: Mapping[str, str],
    tmpfs: Path | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a command in namespaces of its own, its output in ``log`` and in the phase's heartbeat.

    Raises UserError with the end of the log when the command fails.
    """
    try:
        run(isolated(command, tmpfs=tmpfs), log=log, phase=phase, env=env, cwd=cwd)
    except UserError as error:
        # Named after the command, not after what wraps it.
        raise UserError(str(error).replace("setpriv", str(command[0]), 1)) from None


def can_overlay(directory: Path) -> bool:
    """Say whether the directory's file system can carry the upper side of an overlay mount.

    (Inside a container it is often an overlay itself, and cannot.)
    """
    directory.mkdir(parents=True, exist_ok=True)
    script = (
        'cd "$1"; mkdir lower upper work merged; '
        "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged; "
        "echo > merged/file; umount merged"
    )
    with tempfile.TemporaryDirectory(prefix=".overlay-", dir=directory) as place:
        mount = isolated(["sh", "-ceu", script, "sh", place])
        return subprocess.run(mount, capture_output=True).returncode == 0
