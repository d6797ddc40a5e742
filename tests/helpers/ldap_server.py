"""Debian's OpenLDAP in a container of its own, on the loopback and with TLS."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.helpers.derived import debian_base, derived
from tools.in_image.container import Command, Container, run

SECONDS = 120
STEPS = """RUN apt-get update && apt-get install -y --no-install-recommends ldap-utils slapd
USER 0:0
"""
# The groups of a person: the overlay writes them into `memberOf`.
CONFIG = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
TLSCertificateFile /ldap/ca.crt
TLSCertificateKeyFile /ldap/server.key
database mdb
directory /ldap/data
suffix "{suffix}"
rootdn "{admin}"
rootpw of-the-admin
overlay memberof
access to attrs=userPassword by anonymous auth
access to * by dn.exact="{reader}" read
"""


def write_certificate(directory: Path) -> None:
    """Write ca.crt and server.key: a certificate for the loopback that vouches for itself."""
    # Not "localhost": libldap would look for the machine's own name.
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "LDAP server")])
    serial = x509.random_serial_number()
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "ca.crt").write_bytes(made.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "server.key").write_bytes(private)


@contextmanager
def ldap_server(directory: Path, port: int, reader: str, people: str) -> Iterator[str]:
    """Yield the address of a server that knows the people (LDIF) and has the reader look them up.

    The directory gets its ``ca.crt``.
    """
    image = derived("ldap-server", STEPS, debian_base())
    suffix, url = reader[reader.index("dc=") :], f"ldaps://127.0.0.1:{port}"
    admin = f"cn=admin,{suffix}"
    write_certificate(directory)
    config = CONFIG.format(suffix=suffix, admin=admin, reader=reader)
    (directory / "slapd.conf").write_text(config)
    (directory / "people.ldif").write_text(people)
    (directory / "data").mkdir()

    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    mounts = {directory: "/ldap"}
    slapd = ["slapd", "-h", url, "-f", "/ldap/slapd.conf", "-d", "none"]
    with Container(image, Command(arguments=slapd, mounts=mounts)) as server:
        server.until(SECONDS, listens)
        login = ["-x", "-H", url, "-D", admin, "-w", "of-the-admin"]
        add = ["ldapadd", *login, "-f", "/ldap/people.ldif"]
        trust = {"LDAPTLS_CACERT": "/ldap/ca.crt"}
        added = run(image, Command(arguments=add, env=trust, mounts=mounts), SECONDS)
        assert added.returncode == 0, added.stdout
        yield url
