"""What the pods of a first install, which all start at once, wait for."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.helm import ENVIRONMENTS, render, rendered

WAITING = ("scheduler", "webserver")


def container(manifests, owner, name):
    (found,) = [
        c
        for c in manifests.containers()
        if c.spec["name"] == name and owner in c.where.split("/")[1]
    ]
    return found


def run(args, directory: Path, airflow: str) -> subprocess.CompletedProcess[str]:
    """Run a container's arguments with a stand-in for airflow, which finds its number of calls."""
    count = directory / "calls"
    programs = {
        "airflow": f"echo >> {count}; calls=$(wc -l < {count})\n{airflow}",
        "sleep": "",
    }
    for name, text in programs.items():
        (directory / name).write_text(f"#!/bin/bash\n{text}\n")
        (directory / name).chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    names = {"ADMIN_USERNAME": "admin", "ADMIN_EMAIL": "a@b", "ADMIN_PASSWORD": "secret-word"}
    environ = {"PATH": path, "TMPDIR": str(directory), **names}
    return subprocess.run(args, env=environ, capture_output=True, text=True, timeout=30)


def calls(directory: Path) -> int:
    return len((directory / "calls").read_text().splitlines())


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("owner", WAITING)
def test_pods_wait_for_a_database_that_refuses(environment, owner, tmp_path):
    waits = container(rendered(environment), owner, "wait-for-airflow-migrations")
    refused = "echo Connection refused >&2; exit 1"
    result = run(waits.spec["args"], tmp_path, f"((calls > 2)) || {{ {refused}; }}")
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path) == 3
    assert result.stdout.count("trying again") == 2


def test_the_wait_for_the_database_ends(tmp_path):
    manifests = render({"airflow": {"images": {"migrationsWaitTimeout": 0}}})
    waits = container(manifests, "webserver", "wait-for-airflow-migrations")
    result = run(waits.spec["args"], tmp_path, "exit 1")
    assert result.returncode == 1
    assert "The database was not ready in time" in result.stderr
    assert calls(tmp_path) == 1


def test_the_first_user_has_a_role_that_is_there(tmp_path):
    told = record(tmp_path, 'test "$1" = roles || cat')
    assert told.returncode == 0, told.stderr
    roles, user = (tmp_path / "words").read_text().splitlines()
    assert roles == "roles create Admin"
    assert user.startswith("users create --role Admin --username admin")
    assert told.stdout == "secret-word\nsecret-word\n"


def test_the_password_of_a_user_that_exists_is_set_again(tmp_path):
    # As airflow does, it reads the password first: else the pipe breaks, now and then.
    reads = 'test "$1" = roles || cat > /dev/null'
    told = record(tmp_path, f'{reads}\ntest "$2" != create || echo admin already exist in the db')
    assert told.returncode == 0, told.stderr
    *_, last = (tmp_path / "words").read_text().splitlines()
    assert last == "users reset-password --username admin"


def test_a_user_that_cannot_be_made_fails_the_job(tmp_path):
    assert record(tmp_path, 'test "$1" = roles').returncode == 1


def record(directory: Path, airflow: str) -> subprocess.CompletedProcess[str]:
    """Run the container that makes the first user; its calls of airflow go to ``words``."""
    user = container(rendered("local"), "setup", "admin-user")
    return run(user.spec["args"], directory, f'echo "$*" >> {directory}/words\n{airflow}')


def test_one_writer_of_permissions():
    user = container(rendered("local"), "setup", "admin-user")
    values = [one["value"] for one in user.spec["env"] if one["name"].endswith("UPDATE_FAB_PERMS")]
    assert values == ["False"]
