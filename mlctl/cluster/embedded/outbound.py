"""Outbound traffic of pods, for those who want it: user-mode networking by Debian's slirp4netns.

slirp4netns makes a link inside the node's network and carries what is sent into it through sockets
of its own, which it opens on the host like any program there: no link, address, route or rule of
the host changes. What it carries is TCP and UDP over IPv4.
"""

import os
from collections.abc import Callable
from pathlib import Path

from mlctl.cluster.embedded.config import Config

PROGRAM = "slirp4netns"
PACKAGES = [PROGRAM]
"""Debian packages, installed only where outbound traffic is wanted."""

LINK = "tap0"
NETWORK = "198.51.100.0/24"
"""Addresses of the link: a network for documentation (RFC 5737), so it hides no real one."""

RESOLVER = "198.51.100.3"
"""slirp4netns answers here by asking the host's name server (/etc/resolv.conf)."""

MTU = 1500
"""That of the pods' links: a larger one would have datagrams come in that must be cut."""

DEVICE = Path("/dev/net/tun")


def check(config: Config) -> str | None:
    """Return what is in the way of outbound traffic, None when nothing is or it is not wanted."""
    if config.outbound and not DEVICE.is_char_device():
        return f"OUTBOUND=1 needs {DEVICE}, which is not there: `modprobe tun`, or use OUTBOUND=0"
    return None


def open_namespace(kind: str) -> int:
    """Return a file descriptor of a namespace of this process: ``net``, ``mnt``."""
    return os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)


def command(host_network: int, host_mounts: int, node_network: int) -> list[str]:
    """Return the command line, from file descriptors of the namespaces.

    It runs in the host's network, whose traffic it makes, and with the host's files: the node sees
    another /run, and that is where /etc/resolv.conf often leads.
    """
    descriptor: Callable[[int], str] = "/proc/self/fd/{}".format
    return [
        "nsenter",
        f"--net={descriptor(host_network)}",
        f"--mount={descriptor(host_mounts)}",
        PROGRAM,
        "--configure",
        f"--cidr={NETWORK}",
        f"--mtu={MTU}",
        # What listens on the host's loopback trusts this machine, and pods are not this machine.
        "--disable-host-loopback",
        "--enable-sandbox",
        "--enable-seccomp",
        "--netns-type=path",
        descriptor(node_network),
        LINK,
    ]


def masquerade(config: Config) -> list[str]:
    """Return the rule of the node that sends pods' traffic out under the link's address."""
    rule = ["POSTROUTING", "--source", config.pod_cidr, "--out-interface", LINK]
    return ["iptables", "--table", "nat", "--append", *rule, "--jump", "MASQUERADE"]
