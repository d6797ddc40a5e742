"""Debian's registry of images and charts, on the loopback and without TLS."""

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlctl.base.packages import ensure_packages
from mlctl.base.waiting import until
from tests.helpers.ports import free_port

CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{address}"}}
"""
ANY_MANIFEST = {"Accept": "application/vnd.oci.image.manifest.v1+json"}


def ask(address: str, path: str) -> tuple[dict[str, str], bytes]:
    """Return headers and text of a registry's answer."""
    url = f"http://{address}/v2/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=ANY_MANIFEST)) as answer:
        return dict(answer.headers), answer.read()


@contextmanager
def registry(directory: Path) -> Iterator[str]:
    """Yield the address of an empty registry, which keeps its files in the directory."""
    ensure_packages("a registry for tests", ["docker-registry"])
    address = f"127.0.0.1:{free_port()}"
    config = directory / "registry.yaml"
    config.write_text(CONFIG.format(root=directory / "registry", address=address))
    with (directory / "registry.log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        until(
            120,
            lambda: process.poll() is None and _listens(address),
            lambda: f"no registry: {(directory / 'registry.log').read_text()}",
            poll=0.1,
        )
        yield address
    finally:
        process.terminate()
        process.wait()


def _listens(address: str) -> bool:
    try:
        return ask(address, "")[1] == b"{}"
    except OSError:
        return False
