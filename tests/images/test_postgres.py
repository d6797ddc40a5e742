import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from mlctl.base import processes
from mlctl.base.errors import UserError, output
from mlctl.base.packages import ensure_packages
from mlctl.clients.database import Database
from mlctl.clients.kube import Kube
from mlctl.release.chart import dependency
from tests.helpers.helm import render
from tests.helpers.ports import free_port
from tools.in_image.container import Command, Container, Image, run

PASSWORD = "pass word'\"$\\"


@pytest.fixture(scope="module")
def postgres(images: dict[str, Image]) -> Image:
    return images["postgres"]


@pytest.fixture
def volume(disk: Path) -> Path:
    """An empty volume as a kubelet hands it over: fsGroup 999, not owned."""
    os.chown(disk, 0, 999)
    disk.chmod(0o2775)
    return disk


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    return tmp_path


def server(volume: Path, port: int, secret: Path, **env: str) -> Command:
    settings = {
        "PGDATA": "/data/pg",
        "POSTGRES_USER": "airflow",
        "POSTGRES_DB": "air flow",
        "POSTGRES_PASSWORD_FILE": "/secret/password",
    }
    return Command(
        arguments=["postgres", "-c", f"port={port}"],
        env=settings | env,
        mounts={volume: "/data", secret: "/secret:ro"},
    )


def client(port: int, statement: str, password: str = PASSWORD) -> Command:
    words = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "airflow", "-d", "air flow"]
    words += ["-v", "ON_ERROR_STOP=1", "-tAc", statement]
    return Command(entrypoint=[], arguments=words, env={"PGPASSWORD": password})


def psql(image: Image, port: int, statement: str, password: str = PASSWORD):
    return run(image, client(port, statement, password))


def wait_ready(image: Image, port: int, container: Container) -> None:
    ready = Command(entrypoint=[], arguments=["pg_isready", "-h", "127.0.0.1", "-p", str(port)])
    container.until(40, lambda: run(image, ready).returncode == 0)


def test_database_is_utf8_keeps_its_data_and_stops_while_clients_are_connected(
    postgres: Image, volume: Path, port: int, secret: Path
):
    with Container(postgres, server(volume, port, secret)) as first:
        wait_ready(postgres, port, first)
        facts = psql(
            postgres,
            port,
            "select pg_encoding_to_char(encoding), datcollate, datctype, rolname, rolsuper "
            "from pg_database join pg_roles on rolname = current_user "
            "where datname = current_database()",
        )
        assert facts.stdout.strip() == "UTF8|C.UTF-8|C.UTF-8|airflow|t", facts.stdout
        assert psql(postgres, port, "create table kept as select 'ä' as x").returncode == 0
        wrong = psql(postgres, port, "select 1", password="wrong")
        assert "password authentication failed" in wrong.stdout
        with Container(postgres, client(port, "select pg_sleep(60)")) as connected:
            busy = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'"
            connected.until(10, lambda: psql(postgres, port, busy).stdout.strip() == "1")
            started = time.monotonic()
            first.signal(signal.SIGTERM)
            status, log = first.wait(15)
            assert time.monotonic() - started < 10
            assert "terminating connection" in connected.wait(5)[1]
    assert status == 0, log
    assert "database system is shut down" in log
    assert PASSWORD not in log
    assert not (volume / "pg" / ".new").exists()

    with Container(postgres, server(volume, port, secret)) as second:
        wait_ready(postgres, port, second)
        assert psql(postgres, port, "select x from kept").stdout.strip() == "ä"
        second.signal(signal.SIGTERM)
        status, log = second.wait(15)
    assert status == 0
    assert "was not properly shut down" not in log


def address(port: int) -> str:
    """Return the URL that Airflow has of the server at a port."""
    return f"postgresql+psycopg2://airflow:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/air%20flow"


def dump_job(place: Path, url: str, direct: str = "") -> Command:
    """Return what the container of the setup Job does that dumps the database into a place."""
    dependency()
    dump = {"dump": {"claimName": "dumps", "keep": 2}}
    (container,) = [
        c.spec
        for c in render({"setup": dump}, environment="local").containers()
        if c.spec["name"] == "dump-database"
    ]
    here = {"DUMPS": "/dumps", "DATABASE_URL": url, "DIRECT_URL": direct}
    return Command(
        entrypoint=[],
        arguments=[*container["command"], *container["args"]],
        env={one["name"]: one.get("value", "") for one in container["env"]} | here,
        mounts={place: "/dumps"},
        user="50000:0",
        read_only=True,
        memory={"/tmp": 1 << 20},
    )


def test_the_setup_job_dumps_the_database_before_it_migrates(
    postgres: Image, volume: Path, port: int, secret: Path, tmp_path: Path
):
    place = tmp_path / "dumps"
    place.mkdir()
    os.chown(place, 50000, 0)
    names = ["20250101T000000Z", "20250102T000000Z", "later"]
    for name in names:
        (place / f"ml-pipelines-{name}.dump").touch()
    url = address(port)
    job = dump_job(place, url)
    with Container(postgres, server(volume, port, secret)) as database:
        wait_ready(postgres, port, database)
        assert psql(postgres, port, "create table kept as select 'x' as y").returncode == 0
        told = run(postgres, job)
        assert told.returncode == 0, told.stdout
        assert PASSWORD not in told.stdout
        (newest,) = {path.name for path in place.iterdir()} - {
            f"ml-pipelines-{name}.dump" for name in names
        }
        # Of two that are kept one is new; what has another name is not the release's.
        assert sorted(path.name for path in place.iterdir()) == sorted(
            ["ml-pipelines-20250102T000000Z.dump", "ml-pipelines-later.dump", newest]
        )
        assert psql(postgres, port, "drop table kept").returncode == 0
        words = ["pg_restore", "--clean", "--if-exists", "--no-owner", "--single-transaction"]
        plain = url.replace("+psycopg2", "")
        restore = Command(
            entrypoint=[],
            arguments=[*words, "--dbname", plain, f"/dumps/{newest}"],
            mounts={place: "/dumps:ro"},
            user="50000:0",
        )
        assert run(postgres, restore).returncode == 0
        assert psql(postgres, port, "select y from kept").stdout.strip() == "x"


class Here(Kube):
    """Has the commands of a pod run here, in the image, with the login of the database."""

    def __init__(self, image: Image, url: str, direct: str = "") -> None:
        self.image = image
        self.env = {"DATABASE_URL": url, "DIRECT_URL": direct, "URL_SECRET": "a-secret"}

    def command(self, *words: str) -> list[str]:
        command = Command(
            entrypoint=[],
            arguments=words[words.index("--") + 1 :],
            env=self.env,
            user="50000:0",
            read_only=True,
            memory={"/tmp": 1 << 24},
        )
        return command.line(self.image)


def database_at(postgres: Image, url: str, direct: str = "") -> Database:
    values = {"nodeSelector": {}, "tolerations": [], "affinity": {}}
    values["data"] = {"metadataSecretName": "a-secret"}
    here = Here(postgres, url, direct)
    return Database(here, {"airflow": values, "imagePullSecrets": []}, "image")


def test_a_database_is_restored_to_what_it_was_or_stays_as_it_is(
    postgres: Image, volume: Path, port: int, secret: Path, tmp_path: Path
):
    database = database_at(postgres, address(port))
    dump, half = tmp_path / "all.tar", tmp_path / "half.tar"
    with Container(postgres, server(volume, port, secret)) as running:
        wait_ready(postgres, port, running)
        rows = "insert into kept select generate_series(1, 20000), 'a, b'"
        for sql in ("create table kept (id int primary key, text text)", rows):
            assert psql(postgres, port, sql).returncode == 0
        database.dump(dump)
        # What a migration leaves: a new table that needs an old one, an old one changed.
        for sql in (
            "create table later (id int references kept)",
            "alter table kept drop column text",
        ):
            assert psql(postgres, port, sql).returncode == 0
        half.write_bytes(dump.read_bytes()[: dump.stat().st_size // 2])
        with pytest.raises(UserError, match="Unexpected EOF"):
            database.restore(half)
        assert database.query("select count(*) from later") == [["0"]]
        database.restore(dump)
        assert database.query("select count(*), max(text) from kept") == [["20000", "a, b"]]
        with pytest.raises(UserError, match='relation "later" does not exist'):
            database.query("select * from later")


@contextmanager
def pooler(port: int, at: Path, ignored: str) -> Iterator[int]:
    """Run a PgBouncer in transaction mode before the server at a port; yield its own."""
    ensure_packages("tests of dumps", ["pgbouncer"])
    own = free_port()
    (at / "users.txt").write_text('"airflow" "{}"\n'.format(PASSWORD.replace('"', '""')))
    (at / "pgbouncer.ini").write_text(
        f"""[databases]
* = host=127.0.0.1 port={port}
[pgbouncer]
pool_mode = transaction
default_pool_size = 1
listen_port = {own}
listen_addr = 127.0.0.1
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {at / "users.txt"}
ignore_startup_parameters = {ignored}
"""
    )
    with processes.started(["pgbouncer", "--user=nobody", at / "pgbouncer.ini"]) as process:
        yield own
        process.kill()


@pytest.mark.parametrize("ignored", ["extra_float_digits", "extra_float_digits, options"])
def test_a_dump_through_a_pooler_is_refused_and_past_it_leaves_the_sessions_alone(
    postgres: Image, volume: Path, port: int, secret: Path, tmp_path: Path, ignored: str
):
    place = tmp_path / "dumps"
    place.mkdir()
    place.chmod(0o777)
    with (
        Container(postgres, server(volume, port, secret)) as running,
        pooler(port, tmp_path, ignored) as pooled,
    ):
        wait_ready(postgres, port, running)
        wait_ready(postgres, pooled, running)
        assert psql(postgres, port, "create table kept as select 'x' as y").returncode == 0
        told = run(postgres, dump_job(place, address(pooled)))
        assert told.returncode == 1
        assert "add the key direct, a URL of Postgres itself, to the Secret ml-" in told.stdout
        refused = database_at(postgres, address(pooled))
        for call in (refused.dump, refused.restore):
            with pytest.raises(UserError, match="to the Secret a-secret"):
                call(tmp_path / "password")
        assert list(place.iterdir()) == []

        assert run(postgres, dump_job(place, address(pooled), address(port))).returncode == 0
        database = database_at(postgres, address(pooled), address(port))
        database.dump(tmp_path / "all.tar")
        assert psql(postgres, port, "delete from kept").returncode == 0
        database.restore(tmp_path / "all.tar")
        # Airflow's next statement, in the one session that the pooler has.
        found = psql(postgres, pooled, "select y from kept")
        assert found.stdout.strip() == "x", found.stdout


def test_start_that_was_killed_is_taken_up_again(
    postgres: Image, volume: Path, port: int, secret: Path
):
    fresh = volume / "pg" / ".new"
    with Container(postgres, server(volume, port, secret)) as killed:
        killed.until(20, (fresh / "base").exists)
    assert not (volume / "pg" / "PG_VERSION").exists()
    with Container(postgres, server(volume, port, secret)) as again:
        wait_ready(postgres, port, again)
        assert psql(postgres, port, "select 1").stdout.strip() == "1"
        again.signal(signal.SIGTERM)
        assert again.wait(15)[0] == 0

    # Killed while moving: what is whole goes on to its place, nothing is made anew.
    pg = volume / "pg"
    fresh.mkdir()
    (pg / ".new-is-whole").touch()
    for name in ("PG_VERSION", "base", "postgresql.conf"):
        (pg / name).rename(fresh / name)
    for path in (fresh, pg / ".new-is-whole"):
        os.chown(path, 999, 999)
    with Container(postgres, server(volume, port, secret)) as moved:
        wait_ready(postgres, port, moved)
        moved.signal(signal.SIGTERM)
        status, log = moved.wait(15)
    assert status == 0
    assert "made database" not in log
    assert not (pg / ".new-is-whole").exists()


@pytest.mark.parametrize(
    ("env", "user", "message"),
    [
        ({"POSTGRES_PASSWORD_FILE": ""}, None, "needs POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE"),
        ({"POSTGRES_PASSWORD": "x"}, None, "POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are both"),
        ({"POSTGRES_PASSWORD_FILE": "/nowhere"}, None, "/nowhere cannot be read by uid 999"),
        ({}, "0:0", "does not run as root"),
        ({"PGDATA": "/data"}, None, "use a directory below the volume"),
        ({}, "1234:1234", "cannot make PGDATA=/data/pg"),
    ],
    ids=["no-password", "two-passwords", "no-file", "root", "volume-itself", "not-writable"],
)
def test_wrong_settings_end_with_one_clear_line(
    postgres: Image, volume: Path, port: int, secret: Path, env, user, message: str
):
    ended = run(postgres, replace(server(volume, port, secret, **env), user=user), 20)
    assert ended.returncode == 1
    assert message in ended.stdout.splitlines()[-1]


def test_directory_with_files_but_no_database_is_not_touched(
    postgres: Image, volume: Path, port: int, secret: Path
):
    (volume / "pg").mkdir()
    (volume / "pg" / "precious").write_text("mine")
    os.chown(volume / "pg", 999, 999)
    ended = run(postgres, server(volume, port, secret), 20)
    assert ended.returncode == 1
    assert "holds files but no database" in ended.stdout
    assert (volume / "pg" / "precious").read_text() == "mine"


def test_read_only_image_needs_only_the_data_and_the_socket(
    postgres: Image, volume: Path, port: int, secret: Path, tmp_path_factory
):
    sockets = tmp_path_factory.mktemp("sockets")
    sockets.chmod(0o777)
    command = server(volume, port, secret)
    mounts = {**command.mounts, sockets: "/run/postgresql"}
    with Container(postgres, replace(command, mounts=mounts, read_only=True)) as container:
        wait_ready(postgres, port, container)
        container.signal(signal.SIGINT)
        assert container.wait(15)[0] == 0


def test_other_commands_run_as_they_are(postgres: Image):
    ended = run(postgres, Command(arguments=["pg_isready", "--version"]))
    assert ended.returncode == 0
    assert ended.stdout.startswith("pg_isready (PostgreSQL) 15.")


def test_image_brings_no_key_and_stops_with_sigint(postgres: Image):
    assert postgres.config["StopSignal"] == "SIGINT"
    for layer in postgres.layers:
        private = layer / "etc/ssl/private"
        assert not private.exists() or list(private.iterdir()) == []
    assert output(["find", *postgres.layers, "-name", "*.key"]) == ""
