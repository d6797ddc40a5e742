"""The programs of the node: their command lines, in the order they start in."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from mlctl.cluster.embedded import outbound
from mlctl.cluster.embedded.config import API_PORT_IN_NODE, GIT_PORT, NODE_NAME, Config
from mlctl.cluster.embedded.config_files import MUTATION_API

READY_SECONDS = 60

NETWORK_POLICIES = "network-policies"
"""The program that enforces NetworkPolicies, in the node's binary; it calls ipset and iptables."""


@dataclass(frozen=True)
class Component:
    """A supervised program.

    ``ready`` is a URL that answers 200 once the program serves, or a path that exists then;
    the programs behind it in the list wait for that.
    """

    name: str
    command: list[str]
    ready: str | Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    file_descriptors: tuple[int, ...] = ()
    optional: bool = False
    """It is started when somebody asks for it, and is not missed otherwise."""


@dataclass(frozen=True)
class Descriptors:
    """File descriptors that the node's programs get from the host, and one of the node.

    ``api_listener`` is the socket that listens on the host's loopback, the others are namespaces.
    """

    api_listener: int
    host_network: int
    host_mounts: int
    node_network: int


def components(config: Config, node: Path, descriptors: Descriptors) -> list[Component]:
    """Return all programs in starting order; they are stopped in the reverse order.

    ``node`` is the multi-call binary.
    """
    api_listener = descriptors.api_listener
    namespaces = (descriptors.host_network, descriptors.host_mounts, descriptors.node_network)
    pki, etc = config.pki, config.etc

    def program(name: str, *flags: str, ready: str | Path | None = None) -> Component:
        return Component(name, [str(node), name, *flags], ready)

    def kubeconfigs(name: str) -> list[str]:
        path = f"{etc}/{name}.kubeconfig"
        return [
            f"--kubeconfig={path}",
            f"--authentication-kubeconfig={path}",
            f"--authorization-kubeconfig={path}",
            "--bind-address=127.0.0.1",
            # One of each runs: an election would only delay the start.
            "--leader-elect=false",
        ]

    return [
        Component(
            "containerd",
            ["containerd", "--config", f"{etc}/containerd.toml"],
            ready=config.containerd_socket,
        ),
        program(
            "etcd",
            f"--name={NODE_NAME}",
            f"--data-dir={config.state}/etcd",
            "--listen-client-urls=https://127.0.0.1:2379",
            "--advertise-client-urls=https://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            f"--cert-file={pki}/etcd.crt",
            f"--key-file={pki}/etcd.key",
            f"--trusted-ca-file={pki}/ca.crt",
            "--client-cert-auth",
            "--listen-metrics-urls=http://127.0.0.1:2381",
            # Only a crash of the host's kernel could lose what is not synced; each sync
            # would cost a local cluster tens of milliseconds per write.
            "--unsafe-no-fsync",
            "--log-level=warn",
            ready="http://127.0.0.1:2381/health",
        ),
        program(
            "kube-apiserver",
            "--etcd-servers=https://127.0.0.1:2379",
            f"--etcd-cafile={pki}/ca.crt",
            f"--etcd-certfile={pki}/etcd-client.crt",
            f"--etcd-keyfile={pki}/etcd-client.key",
            f"--advertise-address={config.node_ip}",
            f"--secure-port={API_PORT_IN_NODE}",
            f"--service-cluster-ip-range={config.service_cidr}",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/kube-apiserver.crt",
            f"--tls-private-key-file={pki}/kube-apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            "--authorization-mode=Node,RBAC",
            "--anonymous-auth=false",
            "--enable-admission-plugins=NodeRestriction",
            f"--runtime-config={MUTATION_API}=true",
            "--feature-gates=MutatingAdmissionPolicy=true",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
            # Without it a stop waits up to 60 s for watches and logs that clients hold open.
            "--shutdown-send-retry-after=true",
            ready=f"https://127.0.0.1:{API_PORT_IN_NODE}/readyz",
        ),
        program(
            "kube-controller-manager",
            *kubeconfigs("kube-controller-manager"),
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            f"--cluster-name={config.name}",
        ),
        program("kube-scheduler", *kubeconfigs("kube-scheduler")),
        program(
            "kubelet",
            f"--config={etc}/kubelet.yaml",
            f"--kubeconfig={etc}/kubelet.kubeconfig",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={config.node_ip}",
        ),
        program(
            "kube-proxy",
            f"--kubeconfig={etc}/kube-proxy.kubeconfig",
            f"--hostname-override={NODE_NAME}",
            f"--cluster-cidr={config.pod_cidr}",
            "--proxy-mode=iptables",
            "--bind-address=127.0.0.1",
            # The limit belongs to the host's kernel, not to the node.
            "--conntrack-max-per-core=0",
        ),
        Component(
            outbound.PROGRAM,
            outbound.command(*namespaces),
            # Exists in the node's network once the link does.
            ready=Path("/proc/sys/net/ipv4/conf") / outbound.LINK,
            file_descriptors=namespaces,
            optional=True,
        ),
        program("coredns", "-conf", f"{etc}/Corefile"),
        program(
            "storage-provisioner",
            f"--kubeconfig={etc}/storage-provisioner.kubeconfig",
            f"--root={config.volumes}",
            f"--node={NODE_NAME}",
        ),
        Component(
            NETWORK_POLICIES,
            [
                str(node),
                NETWORK_POLICIES,
                f"--kubeconfig={etc}/network-policies.kubeconfig",
                f"--node={NODE_NAME}",
                f"--service-cidr={config.service_cidr}",
            ],
            # It looks at every pod when one comes or goes, which nobody needs who has no policies.
            optional=True,
        ),
        Component(
            "git-daemon",
            [
                "git",
                "daemon",
                "--reuseaddr",
                "--export-all",
                f"--base-path={config.git}",
                f"--listen={config.node_ip}",
                f"--port={GIT_PORT}",
                str(config.git),
            ],
            # The repository may belong to another user than root.
            env={
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            },
        ),
        Component(
            "dag-publisher",
            [sys.executable, "-m", "mlctl.cluster.embedded.dag_source", str(config.git)],
        ),
        Component(
            "api-forward",
            [
                sys.executable,
                "-m",
                "mlctl.cluster.embedded.relay",
                str(api_listener),
                f"127.0.0.1:{API_PORT_IN_NODE}",
            ],
            file_descriptors=(api_listener,),
        ),
    ]
