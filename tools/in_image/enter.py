"""The inner side of container.py: the first process of the container's namespaces.

Argument: the specification as JSON. Standard library only; ends by becoming the command.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def mount(*words: str) -> None:
    """Call mount(8)."""
    subprocess.run(["mount", *words], check=True)


def make_root(memory: Path, layers: list[str]) -> Path:
    """Mount the layers with memory on top of them, and the file systems that programs expect."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(memory))
    upper, work, root = memory / "upper", memory / "work", memory / "root"
    for directory in (upper, work, root):
        directory.mkdir()
    # The topmost layer comes first in overlayfs, last in an image.
    lower = ":".join(reversed(layers))
    mount("-t", "overlay", "overlay", str(root),
          "-o", f"lowerdir={lower},upperdir={upper},workdir={work}")  # fmt: skip
    for name in ("proc", "dev", "sys", "tmp", "etc"):
        (root / name).mkdir(exist_ok=True)
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev"))
    for device in DEVICES:
        (root / "dev" / device).touch()
        mount("--bind", f"/dev/{device}", str(root / "dev" / device))
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/{target}")
    (root / "dev" / "shm").mkdir()
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "dev" / "shm"))
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    return root


def main() -> None:
    """Enter the image and become the command."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    root = make_root(Path(wanted["memory"]), wanted["layers"])
    if wanted["resolves"]:
        shutil.copyfile("/etc/resolv.conf", root / "etc" / "resolv.conf")
    for path, target in wanted["mounts"].items():
        place, _, flag = target.partition(":")
        inside = root / place.lstrip("/")
        if not inside.resolve().is_relative_to(root):
            # /var/run is a link to /run: followed from here it would be this machine's.
            sys.exit(f"{place} leads out of the image: name the directory behind the link")
        inside.mkdir(parents=True, exist_ok=True)
        mount("--bind", path, str(inside))
        if flag == "ro":
            mount("-o", "remount,bind,ro", str(inside))
    for place, size in wanted["sizes"].items():
        (root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        options = f"size={size},mode=1777"
        mount("-t", "tmpfs", "-o", options, "tmpfs", str(root / place.lstrip("/")))
    if wanted["read_only"]:
        # This mount alone: the volumes below it stay as they are.
        mount("-o", "remount,ro", str(root))
    os.chroot(root)
    os.chdir(wanted["workdir"])
    os.setgroups([])
    os.setgid(wanted["gid"])
    os.setuid(wanted["uid"])
    libc = ctypes.CDLL(None)
    # What allowPrivilegeEscalation: false sets.
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A change of user cancels the death with `unshare --kill-child`: ordered again.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    argv = wanted["argv"]
    env = wanted["env"] | {name: os.environ[name] for name in wanted["secrets"]}
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
