"""The images of docs/production.md: logs in S3 or GCS, logins by OIDC or LDAP.

They are built as the page says, on top of images/airflow, and set up as it says.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import pytest
import yaml
from botocore.exceptions import BotoCoreError
from pytest_httpserver import HTTPServer

from mlctl.base.paths import ROOT
from mlctl.builder.build import Entry
from tests.helpers.derived import derived, foundation
from tests.helpers.ldap_server import ldap_server
from tests.helpers.pages import blocks
from tools.in_image.container import Command, Container, Image, run
from tools.in_image.pytest_in_image import install_lock, install_pytest

PAGE = "docs/production.md"
UV = Path(sys.executable).with_name("uv")
EMULATOR = ROOT / "requirements" / "gcs-emulator.txt"
ISSUER = "https://login.example.com/realms/company"
SECONDS = 600
REGION = "eu-central-1"
REDIRECT = "http://localhost/oauth-authorized/keycloak"


def of_the_page(airflow: Entry, lock: str) -> Image:
    """Return what the page's Containerfile makes with a build argument."""
    (block,) = blocks(PAGE, "Dockerfile")
    first, _, steps = block.text.partition("\n")
    argument = "ARG LOCK=airflow-company\n"
    assert first.startswith("FROM ")
    assert argument in steps
    steps = steps.replace(argument, f"ARG LOCK={lock}\n")
    return derived(lock, steps, foundation(airflow), [f"requirements/{lock}.txt"])


@pytest.fixture(scope="module")
def company(entries: dict[str, Entry]) -> Image:
    """With S3."""
    return of_the_page(entries["airflow"], "airflow-company")


@pytest.fixture(scope="module")
def company_gcs(entries: dict[str, Entry]) -> Image:
    """With GCS."""
    return of_the_page(entries["airflow"], "airflow-company-gcs")


def documented(word: str) -> dict[str, Any]:
    """Return what the page says to set below `airflow`, of the block that has the word in it."""
    (block,) = [one for one in blocks(PAGE, "yaml") if word in one.text]
    return yaml.safe_load(block.text)["airflow"]


def script(airflow: Image, text: str, home: Path, env: dict[str, str]) -> str:
    """Return what a Python program prints in the image."""
    home.chmod(0o777)
    ended = run(
        airflow,
        Command(
            arguments=["python", "-c", text],
            env={"AIRFLOW_HOME": "/home/airflow/new", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
            | env,
            mounts={home: "/home/airflow/new"},
        ),
        SECONDS,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


SERVER = """
import sys
sys.path.append("/pytest")
from moto.server import main
main(["--host", "127.0.0.1", "--port", sys.argv[1]])
"""


@pytest.fixture
def bucket(images: dict[str, Image], port: int) -> Iterator[str]:
    """The address of an S3 server, which has the bucket of the page."""
    url = f"http://127.0.0.1:{port}"
    # Where Flask is, which it takes.
    command = Command(
        arguments=["python", "-c", SERVER, str(port)], mounts={install_pytest(): "/pytest:ro"}
    )
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
    client = boto3.client("s3", REGION, endpoint_url=url, **keys)

    def made() -> bool:
        with suppress(BotoCoreError):
            where = {"LocationConstraint": REGION}
            client.create_bucket(Bucket="my-bucket", CreateBucketConfiguration=where)
            return True
        return False

    with Container(images["classic-example"], command) as server:
        server.until(SECONDS, made)
        yield url


LOGS = """
import shutil, subprocess
from datetime import datetime, timezone
from pathlib import Path

Path("/home/airflow/new/dags").mkdir()
file = Path("/home/airflow/new/dags/greet.py")
file.write_text('''
from datetime import datetime, timezone
from airflow.decorators import dag, task

@dag(start_date=datetime(2024, 1, 1, tzinfo=timezone.utc), schedule=None)
def greet():
    @task
    def hello():
        print("hello from the task")
    hello()

greet()
''')
subprocess.run(["airflow", "db", "migrate"], check=True, capture_output=True)
from airflow.models import DagBag
from airflow.utils.log.log_reader import TaskLogReader
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType

dag = DagBag().get_dag("greet")
dag.sync_to_db()
run = dag.create_dagrun(
    run_id="once", run_type=DagRunType.MANUAL, state=DagRunState.RUNNING,
    execution_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    data_interval=(datetime(2024, 1, 1, tzinfo=timezone.utc),) * 2,
)
# As a worker does it.
command = ["airflow", "tasks", "run", "greet", "hello", "once", "--local", "--subdir", str(file)]
subprocess.run(command, check=True)
# As a page reads it that has no claim with logs.
shutil.rmtree("/home/airflow/new/logs")
ti = run.get_task_instance("hello")
ti.refresh_from_db()
print(ti.state, *TaskLogReader().read_log_stream(ti, 1, {}))
"""


LOG = "airflow/dag_id=greet/run_id=once/task_id=hello/attempt=1.log"


def settings(values: dict[str, Any]) -> dict[str, str]:
    """Return the variables that the chart makes of the values about logs."""
    logging = values["config"]["logging"]
    return {f"AIRFLOW__LOGGING__{key.upper()}": value for key, value in logging.items()}


def test_a_log_goes_into_a_bucket_of_s3_and_is_read_from_there(
    company: Image, bucket: str, disk: Path
):
    values = documented("s3://my-bucket")
    env = settings(values)
    (connection,) = values["secret"]
    address = bucket.replace(":", "%3A").replace("/", "%2F")
    env[connection["envName"]] = f"aws://k:s@/?region_name={REGION}&endpoint_url={address}"
    printed = script(company, LOGS, disk, env)
    assert "success" in printed
    assert "hello from the task" in printed
    assert f"s3://my-bucket/{LOG}" in printed


PROJECT, TOKEN = "my-project", "of-the-pod"


@pytest.fixture(scope="module")
def emulator() -> Path:
    """Packages with a server of GCS, for the image's Python."""
    return install_lock(EMULATOR.read_text())


@pytest.fixture
def gcs(company_gcs: Image, emulator: Path, port: int) -> Iterator[str]:
    """The address of a server of GCS, which has the bucket of the page."""
    url = f"http://127.0.0.1:{port}"
    start = ["python", "-m", "gcp_storage_emulator", "start", "--in-memory"]
    command = Command(
        arguments=[*start, "--port", str(port), "--default-bucket", "my-bucket"],
        env={"PYTHONPATH": "/emulator"},
        mounts={emulator: "/emulator:ro"},
    )

    def has_bucket() -> bool:
        with suppress(OSError), urlopen(f"{url}/storage/v1/b/my-bucket") as answer:
            return answer.status == 200
        return False

    with Container(company_gcs, command) as server:
        server.until(SECONDS, has_bucket)
        yield url


def play_metadata_server(server: HTTPServer) -> dict[str, str]:
    """Answer as GKE's does to a pod with Workload Identity; return how a pod finds it."""
    google = {"Metadata-Flavor": "Google"}
    root = "/computeMetadata/v1"
    accounts = f"{root}/instance/service-accounts"
    texts = {
        "/": "computeMetadata/",
        f"{root}/project/project-id": PROJECT,
        f"{root}/universe/universe_domain": "googleapis.com",
    }
    for path, text in texts.items():
        server.expect_request(path).respond_with_data(
            text, headers=google, content_type="application/text"
        )
    email = "airflow@my-project.iam.gserviceaccount.com"
    about = {"email": email, "scopes": [], "aliases": ["default"]}
    server.expect_request(f"{accounts}/default/").respond_with_json(about, headers=google)
    token = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
    server.expect_request(f"{accounts}/{email}/token").respond_with_json(token, headers=google)
    host = f"{server.host}:{server.port}"
    return {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}


def test_a_log_goes_into_a_bucket_of_gcs_and_is_read_from_there(
    company_gcs: Image, gcs: str, httpserver: HTTPServer, disk: Path
):
    env = settings(documented("gs://my-bucket")) | {"STORAGE_EMULATOR_HOST": gcs}
    printed = script(company_gcs, LOGS, disk, env | play_metadata_server(httpserver))
    assert "success" in printed
    assert "hello from the task" in printed
    assert f"gs://my-bucket/{LOG}" in printed
    # The server of GCS asks for no token: a handler without one would pass.
    assert any(request.path.endswith("/token") for request, _ in httpserver.log)


LOGIN = """
import subprocess
from urllib.parse import parse_qs, urlsplit

subprocess.run(["airflow", "db", "migrate"], check=True, capture_output=True)
from airflow.www.app import create_app

app = create_app()
client = app.test_client()
leave = client.get("/login/keycloak")
asked = parse_qs(urlsplit(leave.location).query)
print("to", leave.location.partition("?")[0], asked["redirect_uri"], asked["scope"])
answer = {"code": "c", "state": asked["state"][0]}
back = client.get("/oauth-authorized/keycloak", query_string=answer)
print("back", back.status_code)
print("home", client.get("/home").status_code)
from airflow.utils.session import create_session
from airflow.providers.fab.auth_manager.models import User
with create_session() as session:
    for user in session.query(User):
        print("user", user.username, user.email, sorted(role.name for role in user.roles))
"""


def test_somebody_logs_in_by_oidc_and_gets_the_roles_of_the_groups(
    company: Image, httpserver: HTTPServer, disk: Path
):
    config = documented("webserverConfig")["webserver"]["webserverConfig"]
    issuer, secrets = httpserver.url_for("/realms/company"), "/run/secrets/oidc"
    assert ISSUER in config
    assert secrets in config
    (disk / "client-secret").write_text("s")
    config = config.replace(ISSUER, issuer).replace(secrets, "/home/airflow/new")
    (disk / "webserver_config.py").write_text(config)
    protocol = f"{issuer}/protocol/openid-connect"
    httpserver.expect_request("/realms/company/.well-known/openid-configuration").respond_with_json(
        {
            "issuer": issuer,
            "authorization_endpoint": f"{protocol}/auth",
            "token_endpoint": f"{protocol}/token",
            "userinfo_endpoint": f"{protocol}/userinfo",
        }
    )
    token = {"access_token": "of-vera", "token_type": "Bearer", "expires_in": 60}
    base = "/realms/company/protocol/openid-connect"
    httpserver.expect_request(f"{base}/token", method="POST").respond_with_json(token)
    person = {
        "preferred_username": "vera",
        "email": "vera@example.com",
        "groups": ["ml-engineers", "others"],
    }
    login = {"Authorization": "Bearer of-vera"}
    httpserver.expect_request(f"{base}/userinfo", headers=login).respond_with_json(person)
    env = {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    printed = script(company, LOGIN, disk, env).splitlines()
    assert [line for line in printed if line.startswith(("to", "back", "home", "user"))] == [
        f"to {protocol}/auth ['{REDIRECT}'] ['openid email profile']",
        "back 302",
        "home 200",
        "user vera vera@example.com ['User', 'Viewer']",
    ]


READER = "cn=airflow,ou=services,dc=example,dc=com"
PEOPLE = """\
dn: dc=example,dc=com
objectClass: domain

dn: ou=services,dc=example,dc=com
objectClass: organizationalUnit

dn: cn=airflow,ou=services,dc=example,dc=com
objectClass: organizationalRole
objectClass: simpleSecurityObject
userPassword: of-airflow

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit

dn: uid=vera,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
cn: Vera Example
givenName: Vera
sn: Example
mail: vera@example.com
userPassword: of-vera

dn: uid=noor,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
cn: Noor Example
givenName: Noor
sn: Example
mail: noor@example.com
userPassword: of-noor

dn: ou=groups,dc=example,dc=com
objectClass: organizationalUnit

dn: cn=ml-platform,ou=groups,dc=example,dc=com
objectClass: groupOfNames
member: uid=vera,ou=people,dc=example,dc=com
"""
LOGINS = """
import re, subprocess

subprocess.run(["airflow", "db", "migrate"], check=True, capture_output=True)
from airflow.www.app import create_app

app = create_app()

def login(name, password):
    client = app.test_client()
    token = re.search('name="csrf_token"[^>]*value="([^"]+)"', client.get("/login/").text)[1]
    form = {"username": name, "password": password, "csrf_token": token}
    print("login", name, client.post("/login/", data=form).status_code, end=" ")
    print("home", client.get("/home").status_code)

login("vera", "of-noor")
login("vera", "")
login("vera", "of-vera")
login("noor", "of-noor")
# As if somebody else answered. (Airflow takes five logins within 40 seconds: no more here.)
app.config["AUTH_LDAP_TLS_CACERTFILE"] = "/etc/ssl/certs/ca-certificates.crt"
login("vera", "of-vera")
from airflow.utils.session import create_session
from airflow.providers.fab.auth_manager.models import User
with create_session() as session:
    for user in session.query(User):
        print("user", user.username, user.email, sorted(role.name for role in user.roles))
"""


def test_somebody_logs_in_by_ldap_and_gets_the_roles_of_the_groups(
    company: Image, port: int, disk: Path
):
    (block,) = [one.text for one in blocks(PAGE, "python") if "AUTH_LDAP" in one.text]
    secrets, server, home = "/run/secrets/ldap", "ldaps://ldap.example.com", disk / "home"
    assert secrets in block
    assert server in block
    assert READER in block
    home.mkdir()
    (disk / "ldap").mkdir()
    with ldap_server(disk / "ldap", port, READER, PEOPLE) as url:
        config = block.replace(server, url).replace(secrets, "/home/airflow/new")
        (home / "webserver_config.py").write_text(config)
        (home / "password").write_text("of-airflow")
        shutil.copy(disk / "ldap" / "ca.crt", home)
        env = {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        printed = script(company, LOGINS, home, env).splitlines()
    assert [line for line in printed if line.startswith(("login", "user"))] == [
        "login vera 302 home 302",
        "login vera 200 home 302",
        "login vera 302 home 200",
        "login noor 302 home 200",
        "login vera 302 home 302",
        "user vera vera@example.com ['Admin', 'Viewer']",
        "user noor noor@example.com ['Viewer']",
    ]


@pytest.mark.parametrize(
    ("env", "lacking"),
    [
        (
            {
                "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
                "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": "s3://my-bucket/airflow",
            },
            "airflow.providers.amazon",
        ),
        (
            {
                "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
                "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": "gs://my-bucket/airflow",
            },
            "airflow.providers.google",
        ),
    ],
)
def test_an_image_without_the_packages_does_not_start_and_names_what_it_lacks(
    images: dict[str, Image], env: dict[str, str], lacking: str
):
    ended = run(images["airflow"], Command(arguments=["airflow", "db", "check"], env=env), SECONDS)
    assert ended.returncode != 0
    assert lacking in ended.stdout
