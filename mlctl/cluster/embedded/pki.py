"""Keys, certificates and kubeconfigs of an embedded cluster."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mlctl.cluster.embedded.config import API_PORT_IN_NODE, CLUSTER_DOMAIN, NODE_NAME, Config

LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True)
class Identity:
    """A certificate: file name, subject (user and group of Kubernetes), names it serves."""

    file: str
    user: str
    group: str = ""
    names: tuple[str, ...] = ()
    kubeconfig: bool = False


def identities(config: Config) -> list[Identity]:
    """Return every certificate the cluster uses.

    Users and groups are those that Kubernetes' RBAC bootstrap policy and the Node authorizer
    know: https://kubernetes.io/docs/setup/best-practices/certificates/
    """
    api_names = (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
        "localhost",
        "127.0.0.1",
        config.kubernetes_service_ip,
        config.node_ip,
    )
    return [
        Identity("etcd", "etcd", names=("localhost", "127.0.0.1")),
        Identity("etcd-client", "kube-apiserver-etcd-client"),
        Identity("kube-apiserver", "kube-apiserver", names=api_names),
        Identity("kubelet-client", "kube-apiserver-kubelet-client"),
        Identity("admin", "admin", "system:masters", kubeconfig=True),
        Identity("kube-controller-manager", "system:kube-controller-manager", kubeconfig=True),
        Identity("kube-scheduler", "system:kube-scheduler", kubeconfig=True),
        Identity("kube-proxy", "system:kube-proxy", kubeconfig=True),
        Identity("coredns", "coredns", kubeconfig=True),
        Identity("network-policies", "network-policies", kubeconfig=True),
        Identity("storage-provisioner", "storage-provisioner", kubeconfig=True),
        Identity(
            "kubelet",
            f"system:node:{NODE_NAME}",
            "system:nodes",
            names=(NODE_NAME, config.node_ip, "127.0.0.1"),
            kubeconfig=True,
        ),
    ]


def write_all(config: Config) -> None:
    """Make the authority once, and every certificate and kubeconfig that is missing."""
    config.pki.mkdir(parents=True, exist_ok=True)
    config.pki.chmod(0o700)
    config.etc.mkdir(parents=True, exist_ok=True)
    authority, authority_key = _authority(config.pki)
    service_account_key = config.pki / "service-accounts.key"
    if not service_account_key.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(service_account_key, key)
        service_account_key.with_suffix(".pub").write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    for identity in identities(config):
        if not (config.pki / f"{identity.file}.crt").exists():
            _issue(config.pki, identity, authority, authority_key)
        if identity.kubeconfig:
            _write_kubeconfig(
                config.etc / f"{identity.file}.kubeconfig",
                config,
                identity.file,
                f"https://127.0.0.1:{API_PORT_IN_NODE}",
            )
    _write_kubeconfig(config.kubeconfig, config, "admin", f"https://127.0.0.1:{config.api_port}")


def _authority(pki: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if (pki / "ca.crt").exists():
        key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ml-pipelines-ca")])
    builder = (
        _builder(name, name, key.public_key(), key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    certificate = builder.sign(key, hashes.SHA256())
    _write_key(pki / "ca.key", key)
    _write_certificate(pki / "ca.crt", certificate)
    return certificate, key


def _issue(
    pki: Path,
    identity: Identity,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, identity.user)]
    if identity.group:
        subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.group))
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity.names:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = _builder(
        x509.Name(subject), authority.subject, key.public_key(), authority_key.public_key()
    )
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if identity.names:
        alternatives = x509.SubjectAlternativeName([_general_name(n) for n in identity.names])
        builder = builder.add_extension(alternatives, critical=False)
    _write_key(pki / f"{identity.file}.key", key)
    _write_certificate(pki / f"{identity.file}.crt", builder.sign(authority_key, hashes.SHA256()))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    # Python 3.13 wants both identifiers, as RFC 5280 says (section 4.2.1).
    own = x509.SubjectKeyIdentifier.from_public_key(public_key)
    issuers = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
        .add_extension(own, critical=False)
        .add_extension(issuers, critical=False)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_kubeconfig(path: Path, config: Config, identity: str, server: str) -> None:
    pki = config.pki
    cluster = {"server": server, "certificate-authority": str(pki / "ca.crt")}
    user = {
        "client-certificate": str(pki / f"{identity}.crt"),
        "client-key": str(pki / f"{identity}.key"),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": config.name, "cluster": cluster}],
        "users": [{"name": identity, "user": user}],
        "contexts": [{"name": config.name, "context": {"cluster": config.name, "user": identity}}],
        "current-context": config.name,
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
