"""Find what is in the way of an embedded cluster, before anything is touched."""

import ipaddress
import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from mlctl.base.errors import UserError
from mlctl.base.packages import missing_packages
from mlctl.base.paths import CACHE
from mlctl.base.progress import gib
from mlctl.cluster.embedded import binary, outbound
from mlctl.cluster.embedded.config import Config

HOST_PACKAGES = [
    "containerd",
    "containernetworking-plugins",
    "git",
    "iproute2",
    "ipset",
    "iptables",
    "mount",
    "runc",
    "tini",
    "util-linux",
]
"""Debian packages that run every node, beside the binary built from Go modules."""

MEMORY_BYTES = 6 * 1024**3
DISK_BYTES = 17 * 1024**3
DISK_BYTES_WARM = 5 * 1024**3
"""Enough when the binary and the images are there already."""


def host_packages(config: Config) -> list[str]:
    """Return the Debian packages that this cluster needs."""
    return [*HOST_PACKAGES, *(outbound.PACKAGES if config.outbound else [])]


def check(config: Config) -> None:
    """Raise UserError naming everything that is in the way, a line each; change nothing."""
    checks: list[Callable[[Config], str | None]] = [
        check_system,
        check_root,
        check_kubelet,
        check_port,
        check_networks,
        outbound.check,
        check_memory,
        check_disk,
        check_registries,
    ]
    problems: list[str] = []
    for one in checks:
        problem = one(config)
        if problem:
            problems.append(problem)
        if problem and one is check_system:
            break
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"the embedded cluster cannot run here:\n{lines}")


def check_system(_: Config) -> str | None:
    """Linux on a processor that the images are built for."""
    if platform.system() != "Linux":
        return f"{platform.system()} has no Linux containers: use CLUSTER=kind or CLUSTER=existing"
    if not shutil.which("apt-get"):
        return "no apt-get: Debian or Ubuntu is needed; use CLUSTER=kind or CLUSTER=existing"
    return None


def check_root(_: Config) -> str | None:
    """Namespaces, mounts and cgroups need root."""
    if os.geteuid() != 0:
        return "not root: run the same command with sudo"
    return None


def check_kubelet(_: Config) -> str | None:
    """Another kubelet would share the pods' cgroups and /var/lib/kubelet."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "kubelet":
            return (
                f"another kubelet runs here (process {process.pid}): stop it, or use "
                "CLUSTER=existing"
            )
    directory = Path("/var/lib/kubelet")
    if directory.is_dir() and any(directory.iterdir()):
        return (
            "/var/lib/kubelet is not empty, so another Kubernetes is installed here: "
            "remove it, or use CLUSTER=existing"
        )
    return None


def check_port(config: Config) -> str | None:
    """The API server's port on the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", config.api_port))
        except OSError as error:
            return (
                f"port {config.api_port} of the loopback cannot be used ({error.strerror}): "
                "choose another with API_PORT=..."
            )
    return None


def check_networks(config: Config) -> str | None:
    """The pod and Service networks, against each other and against the host's routes."""
    pods = ipaddress.IPv4Network(config.pod_cidr)
    services = ipaddress.IPv4Network(config.service_cidr)
    if pods.overlaps(services):
        return f"POD_CIDR {pods} and SERVICE_CIDR {services} overlap: choose others"
    taken = [(route, "which this machine routes") for route in host_networks()]
    if config.outbound:
        taken.append((ipaddress.IPv4Network(outbound.NETWORK), "which OUTBOUND=1 uses"))
    for route, whose in taken:
        for variable, network in (("POD_CIDR", pods), ("SERVICE_CIDR", services)):
            if network.overlaps(route):
                return (
                    f"{variable} {network} overlaps {route}, {whose}: "
                    f"choose another with {variable}=..."
                )
    return None


def host_networks() -> list[ipaddress.IPv4Network]:
    """Return the IPv4 networks this machine has routes to, the default route left out."""
    networks = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        # Addresses and masks are little-endian hexadecimal numbers, see proc(5).
        address, mask = (int.from_bytes(bytes.fromhex(fields[i])[::-1], "big") for i in (1, 7))
        if mask:
            networks.append(ipaddress.IPv4Network((address, bin(mask).count("1"))))
    return networks


def check_memory(_: Config) -> str | None:
    """Airflow, its database, MLflow and a training pod take about 5 GiB."""
    available = psutil.virtual_memory().available
    if available < MEMORY_BYTES:
        return f"{gib(available)} of memory are available, {gib(MEMORY_BYTES)} are needed"
    return None


def check_disk(config: Config) -> str | None:
    """Images, the build and the cluster's data."""
    needed = DISK_BYTES_WARM if binary.is_built() else DISK_BYTES
    for path, variable in ((config.state, "ML_PIPELINES_STATE"), (CACHE, "ML_PIPELINES_CACHE")):
        existing = next(p for p in (path, *path.parents) if p.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed:
            return (
                f"{gib(free)} are free at {existing}, {gib(needed)} are needed: "
                f"make room, or name another place with {variable}=..."
            )
    return None


def check_registries(config: Config) -> str | None:
    """Whoever has to be asked for something that is missing must be reachable."""
    problems = []
    if not binary.is_built():
        for url in go_proxies():
            if not reachable(url):
                problems.append(f"the Go module proxy {urlsplit(url).hostname} (go env GOPROXY)")
    if missing_packages(host_packages(config)):
        mirrors = apt_mirrors()
        if not mirrors:
            problems.append("any Debian mirror (none is configured in /etc/apt)")
        problems += [
            f"the Debian mirror {urlsplit(url).hostname} (/etc/apt/sources.list)"
            for url in mirrors
            if not reachable(url)
        ]
    if problems:
        return f"cannot reach {' and '.join(problems)}: connect this machine or name a mirror there"
    return None


def go_proxies() -> list[str]:
    """Return the addresses GOPROXY names, Go's own default where it is not set."""
    try:
        go, _ = binary.find_go()
    except UserError:
        return []
    text = subprocess.run([go, "env", "-json", "GOPROXY"], capture_output=True, text=True).stdout
    names = json.loads(text)["GOPROXY"].replace("|", ",").split(",")
    return [name for name in names if name.startswith("http")]


def apt_mirrors() -> list[str]:
    """Return the addresses apt fetches from."""
    listing = ["apt-get", "indextargets", "--format", "$(SITE)"]
    output = subprocess.run(listing, capture_output=True, text=True).stdout
    return sorted({line for line in output.splitlines() if line.startswith("http")})


def reachable(url: str) -> bool:
    """Say whether the host of ``url`` (or the proxy for it) accepts a connection."""
    parts = urlsplit(url)
    proxy = os.environ.get(f"{parts.scheme}_proxy") or os.environ.get(
        f"{parts.scheme}_proxy".upper()
    )
    target = urlsplit(proxy) if proxy else parts
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        socket.create_connection((target.hostname, port), timeout=5).close()
    except OSError:
        return False
    return True
