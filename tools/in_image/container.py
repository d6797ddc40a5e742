"""Run a command inside a built image on this machine, without a container runtime.

For tests, as root: the image's layers as an overlay whose upper side is memory, in namespaces of
its own, with the image's environment, user and working directory.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlctl.base.cache import cached
from mlctl.base.errors import UserError
from mlctl.base.paths import CACHE, ROOT
from mlctl.builder import oci
from mlctl.builder.isolation import isolated

Found = TypeVar("Found")

LAYERS = "image-layers"
"""What the cache calls unpacked layers."""

OPAQUE = ".wh..wh..opq"
WHITEOUT = ".wh."


@dataclass(frozen=True)
class Image:
    """An image that can run here."""

    layout: oci.Layout
    layers: tuple[Path, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The ``config`` object of the OCI image configuration."""
        config: dict[str, Any] = self.layout.config()["config"]
        return config

    def file(self, path: str) -> Path:
        """Return a file of the image as it lies in the topmost layer that has it.

        Raises FileNotFoundError when no layer has it.
        """
        for layer in reversed(self.layers):
            if os.path.lexists(layer / path.lstrip("/")):
                return layer / path.lstrip("/")
        raise FileNotFoundError(path)


def open_image(directory: Path) -> Image:
    """Open a layout of the builder; its layers are unpacked once (CACHE/image-layers)."""
    opened = oci.read_layout(directory)
    layers = tuple(_layer(opened.blob(digest), digest) for digest in opened.layers())
    return Image(opened, layers)


def _layer(blob: Path, digest: str) -> Path:
    def unpack(directory: Path) -> None:
        target = directory / "root"
        target.mkdir()
        tar = ["tar", "--extract", "--numeric-owner", "--same-permissions", "--xattrs"]
        command = [*tar, "--file", str(blob), "--directory", str(target)]
        if subprocess.run(command).returncode != 0:
            raise UserError(f"tar could not unpack {blob}")
        _translate_whiteouts(target)

    return cached(LAYERS, layer_key(digest), unpack) / "root"


def layer_key(digest: str) -> str:
    """Return the cache key of an unpacked layer."""
    return digest.removeprefix("sha256:")[:24]


def _translate_whiteouts(root: Path) -> None:
    # OCI marks a deleted file with an empty one (image-spec, layer.md), overlayfs with a device.
    for directory, _, files in os.walk(root):
        for name in files:
            if name == OPAQUE:
                os.setxattr(directory, "trusted.overlay.opaque", b"y")
            elif name.startswith(WHITEOUT):
                os.mknod(Path(directory) / name.removeprefix(WHITEOUT), 0o600 | 0o020000, 0)
            else:
                continue
            (Path(directory) / name).unlink()


def _mount_point() -> Path:
    # Seen full in the container's mount namespace only: one directory serves all.
    path = CACHE / LAYERS / ".mount"
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Command:
    """What to run in an image. Fields left None are the image's own."""

    arguments: Sequence[str] | None = None
    """Replaces the image's Cmd (its Entrypoint stays)."""
    entrypoint: Sequence[str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the image's environment."""
    secrets: Sequence[str] = ()
    """Names of variables of this process that are handed on: their values are on no command line,
    where every user of the machine could read them."""
    user: str | None = None
    """uid:gid"""
    workdir: str | None = None
    mounts: Mapping[Path, str] = field(default_factory=dict)
    """Directory of this machine -> ``/place`` or ``/place:ro`` in the container."""
    resolves: bool = False
    """Names resolve as on this machine; else only localhost does, as the tests expect."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Place in the container -> bytes: a file system of that size, empty, which anyone may use."""
    read_only: bool = False
    """No file of the image can be written, as with readOnlyRootFilesystem."""

    def line(self, image: Image) -> list[str]:
        """Return the command line that runs it here."""
        config = image.config
        entrypoint = config.get("Entrypoint", []) if self.entrypoint is None else self.entrypoint
        arguments = config.get("Cmd", []) if self.arguments is None else self.arguments
        env = dict(entry.split("=", 1) for entry in config.get("Env", []))
        user, _, group = (self.user or config.get("User") or "0:0").partition(":")
        specification = {
            "memory": str(_mount_point()),
            "layers": [str(layer) for layer in image.layers],
            "argv": [*entrypoint, *arguments],
            "env": env | dict(self.env),
            "secrets": list(self.secrets),
            "resolves": self.resolves,
            "uid": int(user),
            "gid": int(group or 0),
            "workdir": self.workdir or config.get("WorkingDir") or "/",
            "mounts": {str(path): place for path, place in self.mounts.items()},
            "sizes": dict(self.memory),
            "read_only": self.read_only,
        }
        enter = [sys.executable, str(Path(__file__).with_name("enter.py"))]
        return isolated([*enter, json.dumps(specification)])


class Container:
    """A running command; a context manager that kills what is left."""

    def __init__(self, image: Image, command: Command) -> None:
        self.process = subprocess.Popen(
            command.line(image),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_: object) -> None:
        # unshare --kill-child ends every process of the namespace with its first one.
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the first process of the container, as a kubelet's stop does."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (child,) = children.read_text().split()
        os.kill(int(child), number)

    def wait(self, seconds: float) -> tuple[int, str]:
        """Return exit status and output. Raises subprocess.TimeoutExpired."""
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output

    def until(self, seconds: float, probe: Callable[[], Found]) -> Found:
        """Return the first true answer of a probe. Raises TimeoutError with the output."""
        deadline = time.monotonic() + seconds
        while not (found := probe()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.process.kill()
                raise TimeoutError(self.process.communicate()[0])
            time.sleep(0.05)
        return found


def run(image: Image, command: Command, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return status and output (stdout and stderr as one)."""
    with Container(image, command) as container:
        status, output = container.wait(seconds)
    return subprocess.CompletedProcess(list(command.arguments or []), status, output)
