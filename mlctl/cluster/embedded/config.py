"""What an embedded cluster is called, where it keeps its things and which addresses it uses."""

import ipaddress
import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from mlctl.base.errors import UserError
from mlctl.base.paths import STATE

NODE_NAME = "node0"
CLUSTER_DOMAIN = "cluster.local"
API_PORT_IN_NODE = 6443
"""The API server's port inside the node's own network."""

GIT_PORT = 9418
"""git's registered port; the DAG repository is served on it to pods."""


@dataclass(frozen=True)
class Config:
    """Settings of one embedded cluster; everything else is derived from them.

    ``state`` is the directory of all its data, ``api_port`` the port on the host's loopback
    at which the API server answers, the CIDRs are IPv4 and only exist inside the node;
    ``outbound`` says whether pods can reach what the host can reach.
    """

    name: str
    state: Path
    api_port: int = 6443
    pod_cidr: str = "10.244.0.0/24"
    service_cidr: str = "10.96.0.0/16"
    outbound: bool = False

    @classmethod
    def from_environment(cls, name: str) -> "Config":
        """Read API_PORT, POD_CIDR, SERVICE_CIDR and OUTBOUND.

        Raises UserError for a value that is no port, no IPv4 network, or neither 0 nor 1.
        """
        if not name.replace("-", "").isalnum() or len(name) > 40:
            raise UserError(f"CLUSTER_NAME={name!r}: use at most 40 letters, digits and hyphens")
        port = os.environ.get("API_PORT", str(cls.api_port))
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"API_PORT={port!r}: use a port number, for example 6443")
        cidrs = {}
        for variable, default in (("POD_CIDR", cls.pod_cidr), ("SERVICE_CIDR", cls.service_cidr)):
            text = os.environ.get(variable, default)
            try:
                network = ipaddress.IPv4Network(text)
            except ValueError as error:
                raise UserError(f"{variable}={text!r}: {error}; for example {default}") from error
            if network.prefixlen > 24:
                raise UserError(f"{variable}={text}: at least a /24 is needed, like {default}")
            cidrs[variable.lower()] = text
        outbound = os.environ.get("OUTBOUND") or "0"
        if outbound not in {"0", "1"}:
            raise UserError(f"OUTBOUND={outbound!r}: use 1 (pods reach the network) or 0")
        return cls(
            name=name, state=STATE / name, api_port=int(port), outbound=outbound == "1", **cidrs
        )

    @classmethod
    def load(cls, state: Path) -> "Config":
        """Read what ``save`` wrote."""
        data = json.loads((state / "config.json").read_text())
        return cls(**{**data, "state": Path(data["state"])})

    def save(self) -> None:
        """Write the settings for the supervisor and for later commands."""
        self.state.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**asdict(self), "state": str(self.state)}, indent=2)
        (self.state / "config.json").write_text(text + "\n")

    @cached_property
    def node_ip(self) -> str:
        """The node's address: the first of the pod network, on the bridge."""
        return str(ipaddress.IPv4Network(self.pod_cidr)[1])

    @cached_property
    def kubernetes_service_ip(self) -> str:
        """The address of the ``kubernetes`` Service: by convention the first of its network."""
        return str(ipaddress.IPv4Network(self.service_cidr)[1])

    # Directories. Those of the first group hold data and stay over `down` and `up`.
    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def etc(self) -> Path:
        return self.state / "etc"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def volumes(self) -> Path:
        """Where the storage provisioner makes its directories."""
        return self.state / "volumes"

    @property
    def training_storage(self) -> Path:
        """The directory behind the chart's static local volume."""
        return self.state / "training-storage"

    @property
    def git(self) -> Path:
        """Holds dags.git, the repository that pods clone."""
        return self.state / "git"

    @property
    def run(self) -> Path:
        """Sockets and containerd's run-time state; emptied at each start."""
        return self.state / "run"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def node_binary(self) -> Path:
        """A link to the multi-call binary; the programs start when it appears."""
        return self.run / "node"

    @property
    def cgroup(self) -> str:
        """The cgroup all pods live below, a directory in every hierarchy."""
        return f"ml-pipelines-{self.name}"

    @property
    def dag_repository(self) -> str:
        """The address at which pods clone the DAGs."""
        return f"git://{self.node_ip}:{GIT_PORT}/dags.git"
