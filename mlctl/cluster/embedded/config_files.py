"""Configuration files of the node's programs."""

import json

import yaml

from mlctl.base.names import REPOSITORY
from mlctl.cluster.embedded import outbound
from mlctl.cluster.embedded.config import CLUSTER_DOMAIN, Config

BRIDGE = "cni0"

KUBELET_HEALTH_PORT = 10248
"""On the node's loopback."""

MUTATION_API = "admissionregistration.k8s.io/v1beta1"
"""Of MutatingAdmissionPolicy, in Kubernetes 1.34: off unless the API server is told otherwise."""

NO_REGISTRY = REPOSITORY.partition("/")[0]
"""The registry in the names of images that were made on this machine: there is none."""

KUBELET_API = ["nodes/proxy", "nodes/stats", "nodes/log", "nodes/spec", "nodes/metrics"]
"""What Kubernetes' own system:kubelet-api-admin names: RBAC has no wildcard for subresources."""


def write_all(config: Config, pause_image: str) -> None:
    """Write every configuration file below ``config.etc``; all are derived, none is kept."""
    config.etc.mkdir(parents=True, exist_ok=True)
    (config.etc / "cni").mkdir(exist_ok=True)
    (config.etc / "registries" / NO_REGISTRY).mkdir(parents=True, exist_ok=True)
    files = {
        "containerd.toml": containerd(config, pause_image),
        f"registries/{NO_REGISTRY}/hosts.toml": hosts(),
        "cni/10-bridge.conflist": json.dumps(cni(config), indent=2),
        "kubelet.yaml": yaml.safe_dump(kubelet(config), sort_keys=False),
        "cluster.yaml": yaml.safe_dump_all(cluster_objects(), sort_keys=False),
        # The node has no name server but its own.
        "resolv.conf": f"nameserver {config.node_ip}\n",
    }
    for name, text in files.items():
        (config.etc / name).write_text(text)
    write_corefile(config)


def write_corefile(config: Config) -> None:
    """Write CoreDNS's configuration, the one that may change while the node runs."""
    (config.etc / "Corefile").write_text(corefile(config))


def containerd(config: Config, pause_image: str) -> str:
    """Return containerd's configuration (version 2, containerd 1.6 and 1.7)."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{config.state}/containerd"
state = "{config.run}/containerd"
[grpc]
  address = "{config.containerd_socket}"
[{cri}]
  sandbox_image = "{pause_image}"
  # A container may not lower its OOM score where the machine withholds CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [{cri}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{config.etc}/cni"
  [{cri}.registry]
    config_path = "{config.etc}/registries"
  [{cri}.containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def hosts() -> str:
    """Return where containerd asks for images of this machine that it does not have.

    The kubelet's health port answers 404, as a registry would: the image is "not found", which says
    more than that nothing listens on port 80.
    """
    # containerd 1.6 refuses a file without hosts.
    return f"""\
server = "http://127.0.0.1:{KUBELET_HEALTH_PORT}"
[host]
"""


def cni(config: Config) -> dict:
    """Return the pod network: one bridge, addresses from the pod CIDR."""
    ranges = [[{"subnet": config.pod_cidr}]]
    routes = [{"dst": "0.0.0.0/0"}]
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(config.run / "cni"),
                    "ranges": ranges,
                    "routes": routes,
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kubelet(config: Config) -> dict:
    """Return the kubelet's configuration (kubelet.config.k8s.io/v1beta1)."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": config.node_ip,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(config.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "readOnlyPort": 0,
        "healthzPort": KUBELET_HEALTH_PORT,
        "tlsCertFile": str(config.pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(config.pki / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{config.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{config.cgroup}",
        "clusterDNS": [config.node_ip],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(config.etc / "resolv.conf"),
        "failSwapOn": False,
        "failCgroupV1": False,
        # Under pressure the kubelet deletes images first, and none could be pulled again: there
        # is no registry. As kind does, a full disk is left to the programs that fill it.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "memory.available": "200Mi",
        },
        # Readers of a log get the newest file only: who is behind when the kubelet begins another
        # one, by default after 10 MB, loses what is between. A task's log of 300 MB fits. Two files
        # are the fewest that the kubelet takes: about 1 GiB for a container at most.
        "containerLogMaxSize": "512Mi",
        "containerLogMaxFiles": 2,
        # How soon an edited ConfigMap reaches the files of a running pod.
        "syncFrequency": "10s",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "volumePluginDir": str(config.state / "volume-plugins"),
    }


def corefile(config: Config) -> str:
    """Return CoreDNS's configuration: cluster names, and others if pods may reach outside."""
    forward = f"forward . {outbound.RESOLVER}" if config.outbound else ""
    fall_through = "fallthrough in-addr.arpa" if config.outbound else ""
    return f"""\
.:53 {{
    bind {config.node_ip}
    errors
    ready 127.0.0.1:8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {config.etc}/coredns.kubeconfig
        pods insecure
        {fall_through}
    }}
    {forward}
    cache 5
}}
"""


def cluster_objects() -> list[dict]:
    """Return what every cluster brings along: storage class, programs' rights, a pull policy.

    The names are what certificates carry as users, see pki.identities.
    """

    def role(user: str, rules: list[dict]) -> list[dict]:
        name = f"ml-pipelines:{user}"
        api = "rbac.authorization.k8s.io"
        return [
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": name},
                "rules": rules,
            },
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": name},
                "subjects": [{"apiGroup": api, "kind": "User", "name": user}],
            },
        ]

    def rule(groups: list[str], resources: list[str], verbs: list[str]) -> dict:
        return {"apiGroups": groups, "resources": resources, "verbs": verbs}

    read = ["get", "list", "watch"]
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "ml-pipelines/directory",
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        *role(
            "coredns",
            [
                rule([""], ["endpoints", "services", "pods", "namespaces"], ["list", "watch"]),
                rule(["discovery.k8s.io"], ["endpointslices"], ["list", "watch"]),
            ],
        ),
        *role(
            "network-policies",
            [
                rule([""], ["pods", "namespaces"], ["list", "watch"]),
                rule([""], ["nodes"], ["get"]),
                rule(["networking.k8s.io"], ["networkpolicies"], ["list", "watch"]),
            ],
        ),
        # The rights of Kubernetes' own system:persistent-volume-provisioner.
        *role(
            "storage-provisioner",
            [
                rule([""], ["persistentvolumes"], [*read, "create", "delete", "patch", "update"]),
                rule([""], ["persistentvolumeclaims"], [*read, "update", "patch"]),
                rule([""], ["nodes"], read),
                rule(["storage.k8s.io"], ["storageclasses"], read),
                rule([""], ["events"], ["create", "update", "patch", "list", "watch"]),
            ],
        ),
        *pull_policy(),
        # The API server asks the kubelet with this certificate's rights for logs and exec.
        *role("kube-apiserver-kubelet-client", [rule([""], KUBELET_API, ["*"])]),
    ]


def pull_policy() -> list[dict]:
    """Return the objects that make `Always` an `IfNotPresent` for images of this machine.

    No registry could be asked for a newer one: what the node has is what `Always` would fetch.
    """
    name = "ml-pipelines.images-of-this-machine"
    kind = "MutatingAdmissionPolicy"

    def mend(containers: str) -> str:
        return f"""\
{containers}: object.spec.?{containers}.orValue([])
    .filter(c, c.image.startsWith("{NO_REGISTRY}/") && c.imagePullPolicy == "Always")
    .map(c, Object.spec.{containers}{{name: c.name, imagePullPolicy: "IfNotPresent"}})"""

    mutation = f"""\
Object{{spec: Object.spec{{
{mend("containers")},
{mend("initContainers")}
}}}}
"""
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "resources": ["pods"],
        # A manifest that is applied again says `Always` again.
        "operations": ["CREATE", "UPDATE"],
    }
    # The policy of a pod that is older than this one cannot change, but its labels may.
    changed = "oldObject == null || oldObject.spec != object.spec"
    return [
        {
            "apiVersion": MUTATION_API,
            "kind": kind,
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [rule]},
                "matchConditions": [{"name": "specification-changes", "expression": changed}],
                "mutations": [
                    {
                        "patchType": "ApplyConfiguration",
                        "applyConfiguration": {"expression": mutation},
                    }
                ],
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
            },
        },
        {
            "apiVersion": MUTATION_API,
            "kind": f"{kind}Binding",
            "metadata": {"name": name},
            "spec": {"policyName": name},
        },
    ]
