"""Debian packages that a command needs on this machine (standard library only)."""

import os
import subprocess
import sys

from mlctl.base.cache import lock
from mlctl.base.errors import UserError


def missing_packages(names: list[str]) -> list[str]:
    """Return those of the Debian packages that are not installed."""
    result = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *names],
        capture_output=True,
        text=True,
    )
    installed = {
        line.split()[0] for line in result.stdout.splitlines() if line.endswith("ok installed")
    }
    return [name for name in names if name not in installed]


def ensure_packages(purpose: str, names: list[str]) -> None:
    """Install the Debian packages that are missing; say so first, and ask on a terminal.

    YES=1, or an input that is no terminal, counts as yes.

    Raises UserError when the user declines, or apt cannot install.
    """
    if not names or not missing_packages(names):
        return
    # One at a time: apt waits for dpkg's lock, not for the one of its lists, and two questions
    # at once could not be told apart.
    with lock("apt"):
        wanted = missing_packages(names)
        if wanted:
            _install(purpose, wanted)


def _install(purpose: str, wanted: list[str]) -> None:
    print(f"==> {purpose} needs Debian packages: {' '.join(wanted)}", file=sys.stderr, flush=True)
    if os.geteuid() != 0:
        raise UserError(f"not root: run `sudo apt-get install {' '.join(wanted)}` first")
    if os.environ.get("YES") != "1" and sys.stdin.isatty():
        print("    install them? [Y/n] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in {"", "y", "yes"}:
            raise UserError(f"nothing was installed; needed: {' '.join(wanted)}")
    # A service that a package brings (containerd's unit) must not be started: the embedded
    # cluster runs its own in namespaces of its own. RUNLEVEL=1 makes invoke-rc.d leave it.
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *wanted]):
        result = subprocess.run([*apt, *words], env=env, capture_output=True, text=True)
        if result.returncode != 0:
            tail = "\n".join((result.stderr or result.stdout).strip().splitlines()[-5:])
            raise UserError(f"apt-get {words[0]} failed (are Debian's packages reachable?)\n{tail}")
