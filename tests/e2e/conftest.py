"""Everything on a cluster of its own: the release, its pages, both pipelines.

`--cluster-type` (an option of pytest-helm-charts) says where: embedded (default), kind or existing.
A cluster made here is called ml-pipelines-test, and is deleted at the end unless `--keep` says
otherwise. What a failing test leaves behind is described in build/artifacts/<test>/.
"""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlctl.base.names import MLFLOW_PORT, MLFLOW_SERVICE
from mlctl.base.paths import BUILD, CHART
from mlctl.base.progress import Phase, Phases
from mlctl.clients.airflow import Airflow, Task, telling_lines
from mlctl.clients.forward import Forward
from mlctl.clients.kube import KubectlError
from mlctl.clients.mlflow import Mlflow
from mlctl.clients.pods import containers, describe_trouble
from mlctl.commands.telling import tell_change
from mlctl.release.release import Release, values_files
from mlctl.stack import Stack
from tests.helpers.secret_search import PodRecorder

ARTIFACTS = BUILD / "artifacts"
TRAINING_SECONDS = 1800
INFERENCE_SECONDS = 900

Aloud = Callable[[str], AbstractContextManager[Phase]]

_STACK = pytest.StashKey[Stack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--keep",
        choices=["never", "failure", "always"],
        default="never",
        help="keep the test cluster at the end (default: never)",
    )


ORDER = [
    "install",
    "helm3",
    "ui",
    "existing",
    "dag_sync",
    "training",
    "inference",
    "isolation",
    "new_model",
    "failures",
    "wandb",
    "storage",
    "secrets",
    "drill",
]
"""An upgrade right after the install, then what needs the release as it was installed. The models
of short trainings come after what compares models. Towards the end the search for secrets in what
all the others have left, and last the faults."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))


@pytest.fixture(scope="session")
def aloud(request: pytest.FixtureRequest) -> Aloud:
    """Show the progress of long waits on the terminal, past pytest's capture of the output."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    phases = Phases()

    @contextmanager
    def phase(name: str) -> Iterator[Phase]:
        with capture.global_and_fixture_disabled():
            print(flush=True)
            with phases.phase(name) as current:
                yield current

    return phase


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest) -> Iterator[tuple[Stack, Release]]:
    """A cluster with the images on it, and the release that will be installed there."""
    kind = request.config.getoption("--cluster-type") or "embedded"
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("CLUSTER", kind)
        environ.setenv("CLUSTER_NAME", os.environ.get("CLUSTER_NAME") or "ml-pipelines-test")
        # Beside a cluster that is in use, which has the usual port.
        environ.setenv("API_PORT", os.environ.get("API_PORT") or str(any_port()))
        environ.setenv("ENV", "local")
        stack = Stack()
        if kind == "existing" and stack.release().status() is not None:
            pytest.exit(
                "this cluster has a release ml-pipelines; the tests install and remove their own: "
                "choose another cluster",
                returncode=3,
            )
        request.config.stash[_STACK] = stack
        with capture.global_and_fixture_disabled():
            print(flush=True)
            release = stack.prepare(Phases())
        yield stack, release
        keep = request.config.getoption("--keep")
        if keep == "always" or (keep == "failure" and request.session.testsfailed):
            return
        with capture.global_and_fixture_disabled():
            print(flush=True)
            if kind == "existing":
                release.uninstall()
            else:
                stack.cluster.clean(Phases())


def any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def stack(prepared: tuple[Stack, Release]) -> Stack:
    return prepared[0]


@pytest.fixture(scope="session")
def release(stack: Stack, prepared: tuple[Stack, Release], aloud: Aloud) -> Release:
    """The release, installed on an empty namespace, with the DAGs published."""
    release = prepared[1]
    with aloud("install the release") as phase:
        release.deploy(phase)
    with aloud("publish the DAGs") as phase:
        stack.publish(phase)
    return release


# What pytest-helm-charts asks for; with these its `kube_cluster` works without any option.


@pytest.fixture(scope="session")
def kube_config(release: Release) -> str:
    return str(release.kube.kubeconfig)


@pytest.fixture(scope="session")
def chart_path() -> str:
    return str(CHART)


@pytest.fixture(scope="session")
def values_file_path() -> str:
    return str(values_files({"ENV": "local"})[0])


@pytest.fixture(scope="session")
def client(stack: Stack, release: Release) -> Iterator[Airflow]:
    with stack.airflow() as client:
        yield client


@pytest.fixture
def airflow(client: Airflow) -> Airflow:
    """Airflow's client, with a way to the page that is open: an upgrade replaces the pod."""
    client.get("version")
    return client


@pytest.fixture
def mlflow(stack: Stack, release: Release) -> Iterator[Mlflow]:
    with Forward(stack.kube, MLFLOW_SERVICE, MLFLOW_PORT) as forward:
        yield Mlflow(forward)


WithValues = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def with_values(release: Release, aloud: Aloud) -> WithValues:
    """Change values of the release for one block, then set them back."""

    @contextmanager
    def change(*assignments: str) -> Iterator[None]:
        # A variable is text, whatever it looks like.
        words = [
            word
            for one in assignments
            for word in ("--set-string" if ".env." in one else "--set", one)
        ]
        before = release.installed_values()
        with aloud(f"upgrade with {', '.join(assignments)}") as phase:
            release.deploy(phase, extra=tuple(words))
        try:
            yield
        finally:
            with aloud("upgrade with the values of before") as phase:
                release.deploy(phase)
            assert release.installed_values() == before

    return change


@pytest.fixture(scope="session")
def settle(stack: Stack, aloud: Aloud) -> Callable[[], None]:
    """Wait until the scheduler has read the settings that the release has now.

    Workers read them when they start. The scheduler, which starts runs and counts their tries, gets
    them from the kubelet and with the next parsing.
    """

    def wait() -> None:
        with aloud("wait until Airflow has read the settings") as phase:
            stack.publish(phase)

    return wait


# Runs of the pipelines, one each for all tests that look at a good run.


@dataclass(frozen=True)
class Run:
    """A DAG run that has ended."""

    dag_id: str
    run_id: str
    commit: str
    """Of the DAGs, as the scheduler had them when the run was followed first."""
    state: str
    tasks: dict[str, Task]
    results: dict[str, dict[str, Any]]
    logs: dict[str, str]

    def told(self) -> str:
        """Return how the tasks ended, and the last lines of those that failed."""
        lines = [f"{self.dag_id} {self.run_id}: {self.state}"]
        for name, task in self.tasks.items():
            lines.append(f"{name}: {task.state} in try {task.try_number}")
            if task.state == "failed":
                lines += [f"    {line}" for line in telling_lines(self.logs.get(name, ""))]
        return "\n".join(lines)


RunDag = Callable[..., Run]


def look_at(airflow: Airflow, dag_id: str, run_id: str, commit: str, state: str) -> Run:
    tasks = {task.task_id: task for task in airflow.tasks(dag_id, run_id)}
    return Run(
        dag_id=dag_id,
        run_id=run_id,
        commit=commit,
        state=state,
        tasks=tasks,
        results=airflow.results(dag_id, run_id),
        logs={
            name: airflow.log(dag_id, run_id, name, task.try_number)
            for name, task in tasks.items()
            if task.try_number > 0
        },
    )


@pytest.fixture(scope="session")
def pods_seen(release: Release) -> Iterator[PodRecorder]:
    """All pods from here on: those of tasks are gone when a run has ended."""
    with PodRecorder(release.kube) as recorder:
        yield recorder


@pytest.fixture(scope="session")
def follow_run(stack: Stack, client: Airflow, pods_seen: PodRecorder, aloud: Aloud) -> RunDag:
    """Wait until a run that something else has started has ended, as run_dag does."""

    def follow(
        dag_id: str,
        run_id: str,
        timeout: float,
        on_change: Callable[[Task], None] = lambda task: None,
    ) -> Run:
        commit, _ = stack.served_commit()
        with aloud(f"{dag_id}, {run_id}") as phase:

            def changed(_: str, task: Task) -> None:
                tell_change(phase.say, task)
                on_change(task)

            ended = client.wait_for_run(
                dag_id, run_id, timeout=timeout, on_change=changed, note=phase.note
            )
        return look_at(client, dag_id, run_id, commit, ended["state"])

    return follow


@pytest.fixture(scope="session")
def run_dag(client: Airflow, follow_run: RunDag) -> RunDag:
    """Trigger a DAG, wait until the run has ended, and return all there is to know about it.

    `on_change` is called with each task that took on another state.
    """

    def run(
        dag_id: str, timeout: float, on_change: Callable[[Task], None] = lambda task: None
    ) -> Run:
        client.unpause(dag_id)
        return follow_run(dag_id, client.trigger(dag_id), timeout, on_change)

    return run


@pytest.fixture(scope="session")
def training_run(run_dag: RunDag) -> Run:
    return run_dag("training_dag", TRAINING_SECONDS)


@pytest.fixture(scope="session")
def inference_run(training_run: Run, run_dag: RunDag) -> Run:
    assert training_run.state == "success", training_run.told()
    return run_dag("inference_dag", INFERENCE_SECONDS)


# What a failing test leaves behind


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and call.when in {"setup", "call"} and _STACK in item.config.stash:
        directory = ARTIFACTS / re.sub(r"[^A-Za-z0-9_.-]+", "-", item.nodeid.split("/")[-1])
        try:
            trouble = collect(item.config.stash[_STACK], directory)
        except (KubectlError, OSError, subprocess.SubprocessError) as error:
            report.sections.append(("cluster", f"could not be described: {error}"))
        else:
            report.sections.append(("cluster", f"described in {directory}\n{trouble}"))
    return report


def collect(stack: Stack, directory: Path) -> str:
    """Write pods, events and container logs of the namespace to files; return what is wrong."""
    directory.mkdir(parents=True, exist_ok=True)
    kube = stack.kube
    trouble = describe_trouble(kube)
    (directory / "trouble.txt").write_text(trouble)
    (directory / "pods.txt").write_text(kube.run("describe", "pods").stdout)
    events = kube.run("get", "events", "--sort-by=.lastTimestamp", "--output=wide").stdout
    (directory / "events.txt").write_text(events)
    for pod in kube.items("pods"):
        for container in containers(pod):
            name = f"{pod['metadata']['name']}.{container['name']}"
            log = kube.logs(pod["metadata"]["name"], container["name"], 500)
            (directory / f"{name}.log").write_text(log)
            if container["restartCount"]:
                log = kube.logs(pod["metadata"]["name"], container["name"], 500, previous=True)
                (directory / f"{name}.previous.log").write_text(log)
    return trouble
