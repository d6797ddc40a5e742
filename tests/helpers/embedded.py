"""What the tests of the embedded cluster ask of it and of the machine."""

import json
import re
import shutil
import socketserver
import subprocess
from pathlib import Path
from typing import Any

from mlctl.cluster.embedded import cgroups, outbound
from mlctl.cluster.embedded.lifecycle import EmbeddedCluster

NAME = "ml-pipelines-unit"
UNCHANGED = ("mounts", "links", "routes", "iptables")
"""The facts about the machine that a running cluster leaves alone."""


def host_facts() -> dict[str, list[str]]:
    """Return what a cluster could leave behind on this machine."""

    def lines(*command: str) -> list[str]:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # Counters and dates differ from call to call.
        kept = (re.sub(r"\[\d+:\d+\]|^#.*", "", line) for line in output.splitlines())
        return [line for line in kept if line]

    return {
        "mounts": lines("mount"),
        "links": lines("ip", "-brief", "link"),
        "routes": lines("ip", "route", "show", "table", "all"),
        # A machine on which no cluster has been yet does not have the program.
        "iptables": lines("iptables-save") if shutil.which("iptables-save") else [],
        "cgroups": [str(p) for h in cgroups.hierarchies() for p in h.glob(f"*{NAME}*")],
        "directories": [p for p in ("/var/lib/kubelet", "/var/lib/cni") if Path(p).exists()],
        "processes": [
            comm.parent.name
            for comm in Path("/proc").glob("[0-9]*/comm")
            if NAME.encode() in (comm.parent / "cmdline").read_bytes()
        ],
        "ways out": sorted(pids_of(outbound.PROGRAM)),
    }


def pids_of(program: str) -> list[int]:
    """Return the host's numbers of the processes of a program."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text() == f"{program}\n":
                found.append(int(comm.parent.name))
        except OSError:
            continue
    return found


def component(cluster: EmbeddedCluster, name: str) -> dict[str, Any]:
    return next(row for row in cluster.status() if row["name"] == name)


def pid_outside(cluster: EmbeddedCluster, name: str) -> int:
    """Return the host's number of a process of the node."""
    inside = component(cluster, name)["pid"]
    for status in Path("/proc").glob("[0-9]*/status"):
        found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.MULTILINE)
        if found and int(found[2]) == inside:
            command = (status.parent / "cmdline").read_bytes().decode()
            if name in command and NAME in command:
                return int(found[1])
    raise AssertionError(f"no process {name}")


def pod(name: str, image: str, claim: str = "") -> str:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}] if claim else []
    mounts = [{"name": "data", "mountPath": "/data"}] if claim else []
    container = {"name": "main", "image": image, "volumeMounts": mounts}
    spec = {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
    }
    metadata = {"name": name, "namespace": "default"}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


ASK = """
import socket, struct, sys
what, address, port, word = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
try:
    if what == "tcp":
        with socket.create_connection((address, port), timeout=5) as connection:
            print(connection.makefile().readline().strip())
    else:
        labels = b"".join(bytes([len(part)]) + part.encode() for part in word.split("."))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as question:
            question.settimeout(10)
            header = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0)
            question.sendto(header + labels + bytes([0, 0, 1, 0, 1]), (address, port))
            print("rcode", question.recv(4096)[3] & 15)
except OSError as error:
    print(type(error).__name__, error)
"""
"""Say what a TCP server greets with, or how a name server answers a question about a name."""


def addresses_of(pid: int) -> str:
    """Return the addresses of the network that a process is in."""
    show = ["nsenter", "--target", str(pid), "--net", "ip", "-4", "-brief", "address"]
    return subprocess.run(show, capture_output=True, text=True).stdout


class Greeting(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"hello\n")
