import os
import signal
import time
from pathlib import Path

import pytest

from tools.in_image.container import Command, Container, Image, run

VERSIONS = {"airflow": ("2.9.3", "8.3.3"), "airflow3": ("3.3.2", "10.25.0")}
"""Of Airflow, and of the provider of Kubernetes."""


@pytest.fixture(scope="module", params=VERSIONS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def airflow(images: dict[str, Image], name: str) -> Image:
    return images[name]


@pytest.mark.parametrize("words", [["airflow", "version"], ["version"]])
def test_entrypoint_runs_commands_and_subcommands(airflow: Image, name: str, words: list[str]):
    ended = run(airflow, Command(entrypoint=["/entrypoint"], arguments=words))
    assert (ended.returncode, ended.stdout.strip()) == (0, VERSIONS[name][0])


def test_status_of_the_command_is_the_containers(airflow: Image):
    assert run(airflow, Command(arguments=["bash", "-c", "exit 7"])).returncode == 7


def test_packages_that_the_pipelines_need_are_there_in_their_versions(airflow: Image, name: str):
    script = """\
import sys
from importlib.metadata import version
import airflow.providers.cncf.kubernetes.operators.pod, psycopg2, statsd
from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager
print(version("apache-airflow"), version("apache-airflow-providers-cncf-kubernetes"), sys.prefix)
"""
    ended = run(airflow, Command(arguments=["python", "-c", script]))
    last = ended.stdout.strip().splitlines()[-1]
    assert last == f"{' '.join(VERSIONS[name])} /usr/local/airflow", ended.stdout


def test_airflow_3_has_what_runs_tasks_from_the_triggerer(images: dict[str, Image]):
    script = "import one_pod.trigger; print(one_pod.trigger.PodTrigger.__name__)"
    ended = run(images["airflow3"], Command(arguments=["python", "-c", script]))
    assert ended.stdout.strip().splitlines()[-1] == "PodTrigger", ended.stderr


def test_airflow_2_has_workers_that_go_on_with_the_next_task(images: dict[str, Image]):
    """The container of a worker starts them where they are asked for, and only there."""
    said = "print(__import__('sys').orig_argv)"
    script = (
        f'mkdir /tmp/next_task && echo "{said}" > /tmp/next_task/worker.py && '
        "touch /tmp/next_task/__init__.py && ML_PIPELINES_WORKER_OPEN=a1 PYTHONPATH=/tmp "
        "/entrypoint airflow tasks run a b c && /entrypoint python -c 'print(1)' && "
        "python -c 'from next_task.executor import MENDS; print(*MENDS)'"
    )
    ended = run(images["airflow"], Command(arguments=["sh", "-ec", script]))
    first, second, third = ended.stdout.strip().splitlines()[-3:]
    assert first.endswith("'next_task.worker', 'airflow', 'tasks', 'run', 'a', 'b', 'c']"), first
    assert second == "1"
    assert third.endswith("kubernetes_executor_utils")


def test_plugin_of_notes_and_links_is_loaded(airflow: Image, name: str):
    script = """\
from airflow import plugins_manager
from airflow.listeners.listener import get_listener_manager
get_listener_manager()
try:
    links = plugins_manager.get_operator_extra_links()
except AttributeError:  # Airflow 2
    plugins_manager.initialize_extra_operators_links_plugins()
    links = plugins_manager.operator_extra_links
print(sorted(link.name for link in links), get_listener_manager().has_listeners)
"""
    ended = run(airflow, Command(arguments=["python", "-c", script]))
    shown = "['Model version', 'Pod', 'Predictions', 'Run in the registry'] True"
    assert shown in ended.stdout


def test_every_module_is_compiled_and_its_source_is_not_looked_at(airflow: Image):
    packages = "usr/local/airflow/lib/python3.11/site-packages"
    files = [path for layer in airflow.layers for path in (layer / packages).rglob("*.py*")]
    compiled = [path for path in files if path.name.endswith(".cpython-311.pyc")]
    # Templates are no Python.
    sources = {
        path
        for path in files
        if path.suffix == ".py" and "{{" not in path.read_text(errors="replace")
    }
    lacking = sources - {path.parent.parent / f"{path.name.split('.')[0]}.py" for path in compiled}
    assert len(compiled) > 5000
    assert lacking == set()
    # PEP 552: flags 1 = checked against nothing.
    flags = {int.from_bytes(path.read_bytes()[4:8], "little") for path in compiled}
    assert flags == {1}


CLIENTS = """\
import ast, importlib, sys
from pathlib import Path

for package in ("kubernetes", "kubernetes_asyncio"):
    client = importlib.import_module(f"{package}.client")
    models = [name for name in sys.modules if name.startswith(f"{package}.client.models.")]
    print(len(models), "models loaded")
    seen = 0
    for part in ("api", "models"):
        for file in (Path(client.__file__).parent / part).glob("[!_]*.py"):
            home = importlib.import_module(f"{package}.client.{part}.{file.stem}")
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    seen += 1
                    wanted = getattr(home, node.name)
                    assert getattr(client, node.name) is wanted, node.name
                    assert getattr(getattr(client, part), node.name) is wanted, node.name
                    assert node.name in dir(client)
    assert seen > 600, seen
    assert not hasattr(client, "V1Nothing")
    assert not hasattr(client.models, "__wrapped__")
    star = {}
    exec(f"from {package}.client import *", star)
    assert star["V1Pod"] is client.V1Pod and star["ApiException"] is client.ApiException
    assert client.models.v1_pod.V1Pod is client.V1Pod
    assert client.rest.ApiException is client.ApiException
"""


def test_kubernetes_clients_load_on_use_and_have_all_their_names(images: dict[str, Image]):
    ended = run(images["airflow"], Command(arguments=["python", "-c", CLIENTS]))
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.splitlines()[-2:] == ["0 models loaded"] * 2


def test_standard_library_is_compiled(airflow: Image):
    cache = airflow.file("/usr/lib/python3.11/__pycache__")
    assert len(list(cache.glob("*.pyc"))) > 150


def test_image_may_be_read_only_and_run_under_another_uid(airflow: Image, disk: Path):
    disk.chmod(0o777)
    script = "touch /opt/airflow/logs/x && airflow config get-value core executor && id -u"
    ended = run(
        airflow,
        Command(
            arguments=["bash", "-c", script],
            user="12345:0",
            read_only=True,
            mounts={disk: "/opt/airflow/logs"},
            memory={"/tmp": 1 << 20},
            env={"AIRFLOW_HOME": "/opt/airflow/logs", "AIRFLOW__CORE__EXECUTOR": "LocalExecutor"},
        ),
    )
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.split()[-2:] == ["LocalExecutor", "12345"]


def test_airflow_home_is_writable_for_its_user(airflow: Image):
    paths = "/opt/airflow/dags/x /opt/airflow/logs/x /opt/airflow/plugins/x /home/airflow/x"
    ended = run(airflow, Command(arguments=["bash", "-c", f"touch {paths} && id -un"]))
    assert (ended.returncode, ended.stdout.strip()) == (0, "airflow")


def test_old_logs_are_deleted_and_the_groomer_stops_when_told(airflow: Image, disk: Path):
    old = disk / "dag_id=a" / "attempt=1.log"
    new = disk / "dag_id=b" / "attempt=1.log"
    other = disk / "dag_id=b" / "notes.txt"
    for path in (old, new, other):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    days_ago = time.time() - 3 * 86400
    for path in (old, other, old.parent):
        os.utime(path, (days_ago, days_ago))
    for path in (disk, *disk.iterdir()):
        os.chown(path, 50000, 0)
    # What keeps the groomer's loop visible: the directory that was emptied goes an hour later.
    command = Command(
        arguments=["bash", "/clean-logs"],
        mounts={disk: "/opt/airflow/logs"},
        env={"AIRFLOW__LOG_RETENTION_DAYS": "2"},
    )
    with Container(airflow, command) as groomer:
        groomer.until(10, lambda: not old.exists())
        assert new.exists()
        assert other.exists()
        groomer.signal(signal.SIGTERM)
        assert groomer.wait(5)[0] == 0
