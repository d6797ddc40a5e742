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


NO_ROLE = "echo 'Admin is not a valid role. Valid roles are: []' >&2; exit 1"


def test_the_first_user_waits_for_the_roles(tmp_path):
    user = container(rendered("local"), "setup", "admin-user")
    result = run(user.spec["args"], tmp_path, f"cat; ((calls > 2)) || {{ {NO_ROLE}; }}")
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path) == 3
    assert result.stdout.count("has not made the roles yet") == 2


def test_the_wait_for_the_roles_ends(tmp_path):
    manifests = render({"airflow": {"images": {"migrationsWaitTimeout": 0}}})
    user = container(manifests, "setup", "admin-user")
    assert run(user.spec["args"], tmp_path, NO_ROLE).returncode == 1
    assert calls(tmp_path) == 1


def test_another_failure_of_the_first_user_is_not_waited_for(tmp_path):
    user = container(rendered("local"), "setup", "admin-user")
    result = run(user.spec["args"], tmp_path, "echo 'no such table' >&2; exit 1")
    assert result.returncode == 1
    assert calls(tmp_path) == 1
    assert "no such table" in result.stdout


def test_the_password_of_a_user_that_exists_is_set_again(tmp_path):
    user = container(rendered("local"), "setup", "admin-user")
    told = f'echo "$*" >> {tmp_path}/words; ((calls > 1)) || echo admin already exist in the db'
    assert run(user.spec["args"], tmp_path, told).returncode == 0
    first, second = (tmp_path / "words").read_text().splitlines()
    assert first.startswith("users create --role Admin --username admin")
    assert second == "users reset-password --username admin"


@pytest.mark.parametrize("webserver", [True, False])
def test_one_writer_of_roles_and_permissions(webserver):
    manifests = render({"airflow": {"webserver": {"enabled": webserver}}})
    user = container(manifests, "setup", "admin-user")
    values = [one["value"] for one in user.spec["env"] if one["name"].endswith("UPDATE_FAB_PERMS")]
    assert values == (["False"] if webserver else [])
