"""The chart's janitor of pods: what it deletes, and what it leaves alone."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ended_pods
import janitor
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

MINUTE, HOUR = 60, 3600
TOKEN = "account-token"


class ApiServer:
    """Lists and deletes pods as Kubernetes does; ``refuse`` may give a status in its place."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, dict[str, Any]]] = {}
        self.calls: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str, dict[str, str]], int] = lambda *_: 0
        self.page = 2
        self.url = ""
        self.server: ThreadingHTTPServer

    def add(self, name: str, *, namespace: str = "ml", labels: dict | None = None, **status: Any):
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-of-{name}",
            "creationTimestamp": ago(100 * HOUR),
            "labels": {"kubernetes_pod_operator": "True", **(labels or {})},
        }
        pod = {"metadata": metadata, "status": status}
        self.pods.setdefault(namespace, {})[name] = pod

    def ended(self, name: str, seconds: float, *, checked: bool = True, **more: Any) -> None:
        """Add a pod whose container ended so many seconds ago."""
        terminated = {"terminated": {"exitCode": 1, "finishedAt": ago(seconds)}}
        labels = {"already_checked": "True"} if checked else {}
        statuses = {"containerStatuses": [{"name": "base", "state": terminated}]}
        self.add(name, labels=labels, **{"phase": "Failed", **statuses, **more})

    def names(self, namespace: str = "ml") -> set[str]:
        return set(self.pods.get(namespace, {}))

    def answer(self, method: str, target: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.calls.append((method, url.path))
        if status := self.refuse(method, url.path, query):
            return status, {"kind": "Status", "message": "refused by the test"}
        *_, namespace, _ = url.path.split("/")[:6]
        there = self.pods.setdefault(namespace, {})
        if method == "GET":
            assert query["labelSelector"] == "kubernetes_pod_operator=True"
            assert int(query["limit"]) > 0
            begin = int(query.get("continue", 0))
            wanted = [
                pod
                for _, pod in sorted(there.items())
                if pod["metadata"]["labels"].get("kubernetes_pod_operator") == "True"
            ]
            # What was deleted meanwhile is still in a list that goes on, as in Kubernetes.
            if begin == 0:
                self.snapshot = wanted
            more = begin + self.page < len(self.snapshot)
            metadata = {"continue": str(begin + self.page)} if more else {}
            return 200, {"metadata": metadata, "items": self.snapshot[begin : begin + self.page]}
        name = url.path.split("/")[-1]
        if name not in there:
            return 404, {"kind": "Status", "message": "not found"}
        if body["preconditions"]["uid"] != there[name]["metadata"]["uid"]:
            return 409, {"kind": "Status", "message": "the UID does not match"}
        return 200, there.pop(name)


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(janitor, "PAUSE_SECONDS", 0)
    state = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = state.answer(self.command, self.path, json.loads(text or b"{}"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.server = server
        state.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path


def write_plain_certificate(account: Path) -> Path:
    """Write ca.crt, as an authority without any extension but the server's address signs it.

    Returns the file of the server's certificate and key.
    """
    now = datetime.now(UTC)
    key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name, server_name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("ca", "server")
    )

    def signed(subject: x509.Name, of: ec.EllipticCurvePrivateKey, more: x509.ExtensionType):
        return (
            x509.CertificateBuilder(name, subject, of.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(more, critical=True)
            .sign(key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    authority = x509.BasicConstraints(ca=True, path_length=None)
    (account / "ca.crt").write_bytes(signed(name, key, authority))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    private = server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = account / "server.pem"
    file.write_bytes(private + signed(server_name, server_key, address))
    return file


Clean = Callable[..., int]


@pytest.fixture
def clean(api: ApiServer, account: Path) -> Clean:
    def go(*words: str, namespaces: tuple[str, ...] = ("ml",)) -> int:
        named = [f"--namespace={name}" for name in namespaces]
        times = ["--keep-seconds=900", "--unwatched-hours=6"]
        place = [f"--account={account}", f"--api-server={api.url}"]
        return ended_pods.main([*named, *times, *place, *words])

    return go


def test_failed_pods_go_after_their_time(api: ApiServer, clean: Clean, capsys) -> None:
    api.ended("old", 16 * MINUTE)
    api.ended("recent", 14 * MINUTE)
    assert clean() == 0
    assert api.names() == {"recent"}
    printed = capsys.readouterr().out
    assert "deleted ml/old: it ended 16 minutes ago\n" in printed
    assert printed.splitlines()[-1] == "1 deleted"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_whose_end_nobody_has_seen_stay_longer(
    api: ApiServer, clean: Clean, capsys, phase: str
) -> None:
    api.ended("old", 6.1 * HOUR, checked=False, phase=phase)
    api.ended("recent", 5.9 * HOUR, checked=False, phase=phase)
    assert clean() == 0
    assert api.names() == {"recent"}
    assert "nobody has seen its end" in capsys.readouterr().out


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown"])
def test_pods_at_work_are_left_alone(api: ApiServer, clean: Clean, phase: str) -> None:
    # One of its containers may have ended long ago.
    api.ended("pod", 100 * HOUR, phase=phase)
    assert clean() == 0
    assert api.names() == {"pod"}


def test_pods_of_others_are_left_alone(api: ApiServer, clean: Clean) -> None:
    api.ended("theirs", 100 * HOUR)
    api.pods["ml"]["theirs"]["metadata"]["labels"] = {"already_checked": "True"}
    assert clean() == 0
    assert api.names() == {"theirs"}


def test_the_last_change_of_a_pod_counts(api: ApiServer, clean: Clean) -> None:
    condition = {"type": "DisruptionTarget"}
    evicted = {"phase": "Failed", "reason": "Evicted", "labels": {"already_checked": "True"}}
    old = [{**condition, "lastTransitionTime": ago(HOUR)}]
    recent = [{**condition, "lastTransitionTime": ago(MINUTE)}]
    api.add("evicted-long-ago", **evicted, conditions=old)
    api.add("evicted-lately", **evicted, conditions=recent)
    # A node that was lost tells no times.
    lost = [{"name": "base", "state": {"terminated": {"exitCode": 137, "finishedAt": None}}}]
    api.add("lost", **evicted, containerStatuses=lost)
    assert clean() == 0
    assert api.names() == {"evicted-lately"}


def test_long_lists_are_read_to_their_end(api: ApiServer, clean: Clean) -> None:
    for number in range(7):
        api.ended(f"pod-{number}", HOUR if number % 2 else MINUTE)
    assert clean() == 0
    assert api.names() == {"pod-0", "pod-2", "pod-4", "pod-6"}
    lists = [call for call in api.calls if call[0] == "GET"]
    assert len(lists) == 4


def test_a_list_that_took_too_long_is_begun_anew(api: ApiServer, clean: Clean, capsys) -> None:
    for number in range(5):
        api.ended(f"pod-{number}", HOUR)
    expired = []

    def refuse(method: str, path: str, query: dict[str, str]) -> int:
        if query.get("continue") == "4" and not expired:
            expired.append(path)
            return 410
        return 0

    api.refuse = refuse
    assert clean() == 0
    assert api.names() == set()
    assert len(expired) == 1
    assert capsys.readouterr().out.count("deleted ml/pod-0") == 1


def test_a_list_that_always_takes_too_long_is_given_up(
    api: ApiServer, clean: Clean, capsys
) -> None:
    for number in range(5):
        api.ended(f"pod-{number}", MINUTE)
    api.refuse = lambda method, path, query: 410 if "continue" in query else 0
    assert clean() == 1
    assert "HTTP 410" in capsys.readouterr().out


def test_a_namespace_that_refuses_stops_no_other(api: ApiServer, clean: Clean, capsys) -> None:
    api.ended("pod", HOUR, namespace="ml")
    api.ended("pod", HOUR, namespace="other")
    api.refuse = lambda method, path, query: 403 if "/ml/" in path else 0
    assert clean(namespaces=("ml", "other")) == 1
    assert (api.names("ml"), api.names("other")) == ({"pod"}, set())
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1
    assert errors[0].startswith("ERROR: namespace ml: Kubernetes, GET ")
    assert "HTTP 403" in errors[0]
    # A no is a no: it is not asked for again.
    assert len([call for call in api.calls if "/ml/" in call[1]]) == 1


def test_a_server_that_is_away_for_a_moment_is_asked_again(api: ApiServer, clean: Clean) -> None:
    api.ended("pod", HOUR)
    # Each call is refused twice, in either way, before it is answered.
    api.refuse = lambda method, path, query: (0, 503, 429)[api.calls.count((method, path)) % 3]
    assert clean() == 0
    assert api.names() == set()


def test_a_server_that_stays_away_is_told(account: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(janitor, "PAUSE_SECONDS", 0)
    words = ["--namespace=ml", "--keep-seconds=1", "--unwatched-hours=1", f"--account={account}"]
    assert ended_pods.main([*words, "--api-server=http://127.0.0.1:9"]) == 1
    assert "Connection refused" in capsys.readouterr().out


def test_a_pod_that_is_another_one_by_now_stays(api: ApiServer, clean: Clean) -> None:
    api.ended("replaced", HOUR)
    api.ended("gone", HOUR)

    def refuse(method: str, path: str, query: dict[str, str]) -> int:
        if method == "DELETE" and path.endswith("gone"):
            api.pods["ml"].pop("gone", None)
        if method == "DELETE" and path.endswith("replaced"):
            metadata = api.pods["ml"]["replaced"]["metadata"]
            api.pods["ml"]["replaced"] = {"metadata": {**metadata, "uid": "new"}, "status": {}}
        return 0

    api.refuse = refuse
    assert clean() == 0
    assert api.names() == {"replaced"}


def test_a_dry_run_deletes_nothing(api: ApiServer, clean: Clean, capsys) -> None:
    api.ended("pod", HOUR)
    assert clean("--dry-run") == 0
    assert api.names() == {"pod"}
    printed = capsys.readouterr().out
    assert "would delete ml/pod" in printed
    assert printed.splitlines()[-1] == "1 to delete"


def test_a_certificate_without_key_identifiers_is_trusted(
    api: ApiServer, clean: Clean, account: Path, monkeypatch
) -> None:
    """Many API servers have one, and Python 3.13 is strict, whichever Python runs this test."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(write_plain_certificate(account))
    api.server.socket = context.wrap_socket(api.server.socket, server_side=True)
    api.url = api.url.replace("http:", "https:")
    default = ssl.create_default_context

    def strict(*arguments: Any, **named: Any) -> ssl.SSLContext:
        made = default(*arguments, **named)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    monkeypatch.setattr(ssl, "create_default_context", strict)
    api.ended("pod", HOUR)
    assert clean() == 0
    assert api.names() == set()


@pytest.mark.parametrize(
    ("host", "url"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_server_is_the_one_of_the_pods_environment(monkeypatch, host: str, url: str) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert ended_pods.in_cluster() == url
