"""Settings, certificates and files of an embedded cluster: nothing here starts anything."""

import dataclasses
import ipaddress
import json
import re
import ssl
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from mlctl.base.errors import UserError, output
from mlctl.base.names import REPOSITORY
from mlctl.base.wheels import helm, kubectl, program
from mlctl.cluster.embedded import binary, pki
from mlctl.cluster.embedded import config_files as files
from mlctl.cluster.embedded.components import Descriptors, components
from mlctl.cluster.embedded.config import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config("unit", tmp_path / "unit")


def test_settings_survive_a_round_trip(config: Config) -> None:
    config.save()
    assert Config.load(config.state) == config


def test_addresses_follow_the_networks(tmp_path: Path) -> None:
    config = Config("unit", tmp_path, pod_cidr="10.9.8.0/24", service_cidr="10.7.0.0/16")
    assert config.node_ip == "10.9.8.1"
    assert config.kubernetes_service_ip == "10.7.0.1"
    assert config.dag_repository == "git://10.9.8.1:9418/dags.git"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("API_PORT", "http", "API_PORT='http': use a port number"),
        ("API_PORT", "70000", "API_PORT='70000': use a port number"),
        ("POD_CIDR", "10.244.0.1/24", "POD_CIDR='10.244.0.1/24': 10.244.0.1/24 has host bits set"),
        ("POD_CIDR", "10.244.0.0/28", "POD_CIDR=10.244.0.0/28: at least a /24 is needed"),
        ("OUTBOUND", "yes", "OUTBOUND='yes': use 1 (pods reach the network) or 0"),
        ("SERVICE_CIDR", "services", "SERVICE_CIDR='services': Expected 4 octets"),
    ],
)
def test_a_bad_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=re.escape(message)):
        Config.from_environment("unit")


def test_a_bad_cluster_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"CLUSTER_NAME='\.\./etc'"):
        Config.from_environment("../etc")


def test_certificates_are_signed_by_the_authority(config: Config) -> None:
    pki.write_all(config)
    authority = x509.load_pem_x509_certificate((config.pki / "ca.crt").read_bytes())
    for identity in pki.identities(config):
        path = config.pki / f"{identity.file}.crt"
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(authority)
        subject = {a.rfc4514_attribute_name: a.value for a in certificate.subject}
        expected = {"CN": identity.user} | ({"O": identity.group} if identity.group else {})
        assert subject == expected


def test_a_strict_client_trusts_the_servers(config: Config) -> None:
    """As that of Python 3.13, which is strict when nobody says otherwise."""
    pki.write_all(config)
    authority = ssl.create_default_context(cafile=str(config.pki / "ca.crt"))
    authority.verify_flags |= ssl.VERIFY_X509_STRICT
    for identity in pki.identities(config):
        if not identity.names:
            continue
        own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        own.load_cert_chain(*(config.pki / f"{identity.file}.{end}" for end in ("crt", "key")))
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = own.wrap_bio(to_server, to_client, server_side=True)
        name = identity.names[0]
        client = authority.wrap_bio(to_client, to_server, server_hostname=name)
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
        client.do_handshake()
        assert client.getpeercert(), identity.file


def test_the_api_server_certificate_names_every_way_to_it(config: Config) -> None:
    pki.write_all(config)
    certificate = x509.load_pem_x509_certificate((config.pki / "kube-apiserver.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(address) for address in ("127.0.0.1", "10.96.0.1", "10.244.0.1")
    ]


def test_private_keys_are_private(config: Config) -> None:
    pki.write_all(config)
    secret = [*config.pki.glob("*.key"), *config.etc.glob("*.kubeconfig"), config.kubeconfig]
    assert len(secret) > 10
    assert {path.name for path in secret if path.stat().st_mode & 0o077} == set()


def test_a_second_start_keeps_the_certificates(config: Config) -> None:
    pki.write_all(config)
    before = {path.name: path.read_bytes() for path in config.pki.iterdir()}
    pki.write_all(config)
    assert {path.name: path.read_bytes() for path in config.pki.iterdir()} == before


def test_kubeconfig_pairs_key_and_certificate(config: Config) -> None:
    pki.write_all(config)
    content = yaml.safe_load(config.kubeconfig.read_text())
    (user,) = content["users"]
    context = ssl.create_default_context()
    context.load_cert_chain(user["user"]["client-certificate"], user["user"]["client-key"])
    assert content["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"


def test_files_are_written_in_their_formats(config: Config) -> None:
    files.write_all(config, "localhost/pause:1")
    containerd = tomllib.loads((config.etc / "containerd.toml").read_text())
    cri = containerd["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == "localhost/pause:1"
    assert cri["cni"]["conf_dir"] == str(config.etc / "cni")
    network = json.loads((config.etc / "cni" / "10-bridge.conflist").read_text())
    assert [plugin["type"] for plugin in network["plugins"]] == ["bridge", "portmap"]
    kubelet = yaml.safe_load((config.etc / "kubelet.yaml").read_text())
    assert kubelet["authentication"]["anonymous"] == {"enabled": False}
    assert kubelet["authorization"] == {"mode": "Webhook"}
    assert kubelet["readOnlyPort"] == 0
    (hosts,) = Path(cri["registry"]["config_path"]).glob("*/hosts.toml")
    assert hosts.parent.name == REPOSITORY.partition("/")[0]
    server = tomllib.loads(hosts.read_text())["server"]
    assert server == f"http://127.0.0.1:{kubelet['healthzPort']}"


def test_names_outside_are_asked_for_with_outbound_traffic_only(config: Config) -> None:
    assert "forward" not in files.corefile(config)
    wanted = files.corefile(dataclasses.replace(config, outbound=True))
    assert "forward . 198.51.100.3" in wanted


def test_every_program_starts_after_what_it_needs(config: Config) -> None:
    names = [
        component.name for component in components(config, Path("node"), Descriptors(3, 4, 5, 6))
    ]
    assert names.index("etcd") < names.index("kube-apiserver")
    for client in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"):
        assert names.index("kube-apiserver") < names.index(client)
    assert names.index("containerd") < names.index("kubelet")


def test_kubernetes_reports_the_version_of_go_mod() -> None:
    flags = binary.link_flags()
    version = re.search(r"gitVersion=(\S+)", flags)
    assert version is not None
    assert f"k8s.io/kubernetes {version[1]}\n" in (binary.SOURCE / "go.mod").read_text()


def test_every_kubernetes_module_is_of_one_release() -> None:
    text = (binary.SOURCE / "go.mod").read_text()
    (release,) = re.findall(r"^\tk8s.io/kubernetes v1\.(\S+)$", text, re.MULTILINE)
    replaced = dict(re.findall(r"^\tk8s.io/(\S+) => k8s.io/\S+ (\S+)$", text, re.MULTILINE))
    assert len(replaced) > 25
    assert set(replaced.values()) == {f"v0.{release}"}


def test_pinned_wheels_hold_the_versions_that_are_written_down() -> None:
    pins = tomllib.loads(Path("versions.toml").read_text())["wheels"]
    four, three = helm(), program("helm", "helm3")
    assert output([four, "version", "--short"]).startswith(pins["kubectl-and-helm"]["helm"])
    assert output([three, "version", "--short"]).startswith(pins["helm3"]["helm"])
    client = output([kubectl(), "version", "--client"])
    assert f"Client Version: {pins['kubectl-and-helm']['kubectl']}\n" in client
