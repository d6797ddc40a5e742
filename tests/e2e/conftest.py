"""Everything on a cluster of its own: the release, its pages, both pipelines.

One installation for all. What may go on at the same time does: `*_started` fixtures start a run
and return, other tests go on beside it, and `*_run` fixtures wait for its end.

`--cluster-type` (an option of pytest-helm-charts) says where: embedded (default), kind or existing.
A cluster made here is called ml-pipelines-test, and is deleted at the end unless `--keep` says
otherwise. What a failing test leaves behind is described in build/artifacts/<test>/.
"""

import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from ml_pipelines.settings import merge
from mlctl.base.names import MLFLOW_PORT, MLFLOW_SERVICE, SETTINGS_CONFIG_MAP
from mlctl.base.paths import BUILD, CHART, ROOT
from mlctl.base.progress import Phase, Phases
from mlctl.clients.airflow import Airflow, Task, telling_lines
from mlctl.clients.forward import Forward
from mlctl.clients.kube import KubectlError
from mlctl.clients.mlflow import Mlflow
from mlctl.clients.pods import containers, describe_trouble
from mlctl.clients.volume import Volume
from mlctl.cluster.provider import Breakable
from mlctl.commands.telling import tell_change
from mlctl.publishing import publish
from mlctl.release.release import Release, values_files
from mlctl.stack import Stack
from mlctl.trials.drill.faults import Scene, chosen
from tests.helpers import browser
from tests.helpers.ports import free_port
from tests.helpers.releases import helm_of
from tests.helpers.secret_search import PodRecorder

ARTIFACTS = BUILD / "artifacts"
PICTURES = BUILD / "pictures"
PICTURES_OF_THE_README = ROOT / "docs" / "pictures"
ALIKE = 0.35
"""Pictures of one page are up to 0.21 from each other, those of two pages from 0.46."""
TRAINING_SECONDS = 1800
INFERENCE_SECONDS = 900
FAULTS = "api-server postgres scheduler-pod"
"""Of the fault drill, in one training; `make drill` has a run for each of all of them."""

Aloud = Callable[[str], AbstractContextManager[Phase]]

_STACK = pytest.StashKey[Stack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--keep",
        choices=["never", "failure", "always"],
        default="never",
        help="keep the test cluster at the end (default: never)",
    )
    parser.addoption(
        "--pictures",
        action="store_true",
        help="put the pictures of the pages into docs/pictures, whatever is there",
    )


FIRST = [
    *("install", "existing", "ui", "browser", "training", "storage", "inference", "dag_sync"),
    *("isolation", "failures", "browser_later", "browser_form", "pipelines"),
]
"""Upgrades right after the install, then what goes on beside the full training and beside an
inference with its model. The models of short trainings come after what looks at that one."""

LAST = ["wandb", "secrets", "uninstall"]
"""The search for secrets in what all the others have left. Other files have their place before."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.path.stem.removeprefix("test_")))
    if not config.getoption("--pictures"):
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def place(name: str) -> int:
    order = [*FIRST, "", *LAST]
    return order.index(name if name in order else "")


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
        environ.setenv("API_PORT", os.environ.get("API_PORT") or str(free_port()))
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
            if kind != "existing":
                # Of a run that was killed, or kept it: the release is to be a new one.
                stack.cluster.clean(Phases())
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


@pytest.fixture(scope="session")
def stack(prepared: tuple[Stack, Release]) -> Stack:
    return prepared[0]


@pytest.fixture(scope="session")
def release(prepared: tuple[Stack, Release], aloud: Aloud) -> Release:
    """The release, installed by Helm 3 on an empty namespace."""
    release = prepared[1]
    with helm_of(3), aloud("install the release with Helm 3") as phase:
        release.deploy(phase)
    return release


@pytest.fixture(scope="session")
def commit(stack: Stack, release: Release, aloud: Aloud) -> str:
    """The commit whose DAGs Airflow shows, until a test publishes another."""
    with aloud("publish the DAGs") as phase:
        return publish(stack, phase)


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
def client(stack: Stack, commit: str) -> Iterator[Airflow]:
    with stack.airflow() as client:
        yield client


@pytest.fixture
def airflow(client: Airflow) -> Airflow:
    """Airflow's client, with a way to the page that is open: an upgrade replaces the pod."""
    client.get("version")
    return client


class MendedForward(Forward):
    """A forward that is made anew when it has ended, as it does while the API server is away."""

    @property
    def url(self) -> str:
        self.ensure()
        return super().url


@pytest.fixture(scope="session")
def mlflow(stack: Stack, release: Release) -> Iterator[Mlflow]:
    with MendedForward(stack.kube, MLFLOW_SERVICE, MLFLOW_PORT) as forward:
        yield Mlflow(forward)


@pytest.fixture(scope="session")
def volume(stack: Stack, release: Release) -> Iterator[Volume]:
    """The training storage; tests may write there, too."""
    with stack.volume(read_only=False) as volume:
        yield volume


WithSettings = Callable[[dict[str, Any]], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def settle(stack: Stack, aloud: Aloud) -> Callable[[], None]:
    """Wait until the scheduler has read the settings that the release has now.

    Workers read them when they start. The scheduler, which starts runs and counts their tries, gets
    them from the kubelet and with the next parsing.
    """

    def wait() -> None:
        with aloud("wait until Airflow has read the settings") as phase:
            publish(stack, phase)

    return wait


@pytest.fixture(scope="session")
def with_settings(stack: Stack, client: Airflow, settle: Callable[[], None]) -> WithSettings:
    """Change what the DAGs are told for one block; workers read it when they start.

    That the chart writes values there is proven in tests/chart.
    """

    def write(found: dict[str, Any], settings: dict[str, Any]) -> None:
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": SETTINGS_CONFIG_MAP, "labels": found["metadata"]["labels"]},
            "data": found["data"] | {"settings.json": json.dumps(settings)},
        }
        # In Helm's name: a field of anybody else's is a conflict for the next upgrade.
        apply = ["apply", "--server-side", "--field-manager=helm", "--force-conflicts"]
        stack.kube.run(*apply, "--filename", "-", stdin=json.dumps(manifest))
        if client.is_3:  # its workers take the tries of a task from what the scheduler has read
            settle()

    @contextmanager
    def change(changes: dict[str, Any]) -> Iterator[None]:
        found = stack.kube.get("configmap", SETTINGS_CONFIG_MAP)
        assert found is not None
        before = json.loads(found["data"]["settings.json"])
        write(found, merge(before, changes))
        try:
            yield
        finally:
            write(found, before)

    return change


# Runs of the pipelines, one each for all tests that look at a good run.


@dataclass(frozen=True)
class Run:
    """A DAG run that has ended."""

    dag_id: str
    run_id: str
    state: str
    tasks: dict[str, Task]
    """By name, as the logs: each one of a mapped task."""
    results: dict[str, dict[str, Any]]
    """By task id, of tasks that are not mapped."""
    logs: dict[str, str]
    lost_tries: dict[str, str]
    """The logs of the tries before the last one, by name and number."""

    def told(self) -> str:
        """Return how the tasks ended, the ends of lost tries, and the reasons of what failed."""
        lines = [f"{self.dag_id} {self.run_id}: {self.state}"]
        for name, log in self.lost_tries.items():
            lines += [f"{name} was lost:", *(f"    {line}" for line in log.splitlines()[-8:])]
        for name, task in self.tasks.items():
            lines.append(f"{name}: {task.state} in try {task.try_number}")
            if task.state == "failed":
                lines += [f"    {line}" for line in telling_lines(self.logs.get(name, ""))]
        return "\n".join(lines)


FollowRun = Callable[..., Run]


def look_at(airflow: Airflow, dag_id: str, run_id: str, state: str) -> Run:
    tasks = {task.name: task for task in airflow.tasks(dag_id, run_id)}

    def log(task: Task, try_number: int) -> str:
        return airflow.log(dag_id, run_id, task.task_id, try_number, task.map_index)

    return Run(
        dag_id=dag_id,
        run_id=run_id,
        state=state,
        tasks=tasks,
        results=airflow.results(dag_id, run_id),
        logs={
            name: log(task, task.try_number) for name, task in tasks.items() if task.try_number > 0
        },
        lost_tries={
            f"try {number} of {name}": log(task, number)
            for name, task in tasks.items()
            for number in range(1, task.try_number)
        },
    )


@pytest.fixture(scope="session")
def pods_seen(release: Release) -> Iterator[PodRecorder]:
    """All pods from here on: those of tasks are gone when a run has ended."""
    with PodRecorder(release.kube) as recorder:
        yield recorder


@pytest.fixture(scope="session")
def follow_run(client: Airflow, aloud: Aloud) -> FollowRun:
    """Wait until a run has ended, and return all there is to know about it.

    `on_change` is called with each task that took on another state.
    """

    def follow(
        dag_id: str,
        run_id: str,
        timeout: float,
        on_change: Callable[[Task], None] = lambda task: None,
    ) -> Run:
        with aloud(f"{dag_id}, {run_id}") as phase:

            def changed(_: str, task: Task) -> None:
                tell_change(phase.say, task)
                on_change(task)

            ended = client.wait_for_run(
                dag_id, run_id, timeout=timeout, on_change=changed, note=phase.note
            )
        return look_at(client, dag_id, run_id, ended["state"])

    return follow


@pytest.fixture(scope="session")
def start(client: Airflow, pods_seen: PodRecorder) -> Callable[[str], str]:
    """Trigger a DAG and return the id of the run."""

    def trigger(dag_id: str) -> str:
        client.unpause(dag_id)
        return client.trigger(dag_id)

    return trigger


@pytest.fixture(scope="session")
def training_started(start: Callable[[str], str]) -> str:
    """The id of the one training in its full length."""
    return start("training_dag")


@pytest.fixture(scope="session")
def training_run(
    training_started: str, stack: Stack, client: Airflow, follow_run: FollowRun, aloud: Aloud
) -> Run:
    """The full training, in whose middle one part after the other was taken away."""
    if isinstance(stack.cluster, Breakable):
        with aloud(f"faults: {FAULTS}") as phase:
            for fault in chosen(FAULTS, stack.settings["launch"]):
                fault.strike(Scene(stack, client, training_started, phase))
                phase.say(f"done: {fault.what}")
    return follow_run("training_dag", training_started, TRAINING_SECONDS)


@pytest.fixture(scope="session")
def inference_started(training_run: Run, start: Callable[[str], str]) -> str:
    """The id of an inference with the model of the full training."""
    return start("inference_dag")


@pytest.fixture(scope="session")
def inference_run(training_run: Run, inference_started: str, follow_run: FollowRun) -> Run:
    assert training_run.state == "success", training_run.told()
    return follow_run("inference_dag", inference_started, INFERENCE_SECONDS)


# The pages in a browser


Picture = Callable[..., None]


@pytest.fixture(scope="session")
def window(client: Airflow, mlflow: Mlflow) -> Iterator[Page]:
    """A page in a browser, in which MLflow is where the values say that people open it."""
    client.get("version")
    registry = mlflow.connection.url.removeprefix("http://")
    with browser.chromium({"localhost:5000": registry}) as chromium:
        yield browser.new_page(chromium, client.connection.url)


@pytest.fixture(scope="session")
def logged_in(window: Page, client: Airflow) -> browser.Pages:
    """Airflow's pages after the login."""
    pages = (browser.Pages3 if client.is_3 else browser.Pages2)(window, client)
    pages.log_in()
    return pages


@pytest.fixture
def pages(logged_in: browser.Pages, airflow: Airflow, mlflow: Mlflow) -> browser.Pages:
    """Airflow's pages, with a way to them and to MLflow that is open."""
    assert mlflow.connection.url
    return logged_in


@pytest.fixture
def picture(window: Page, client: Airflow, request: pytest.FixtureRequest) -> Picture:
    """Take a picture of a page (build/pictures); the README's of that name has to look like it.

    Those are of the default Airflow.
    """

    def take(name: str, page: Page = window) -> None:
        file = PICTURES / f"{'airflow3-' if client.is_3 else ''}{name}.png"
        page.screenshot(path=file)
        if client.is_3:
            return
        of_the_readme = PICTURES_OF_THE_README / file.name
        if request.config.getoption("--pictures"):
            shutil.copy(file, of_the_readme)
        size = struct.unpack(">II", of_the_readme.read_bytes()[16:24])
        assert size == tuple(browser.SIZE.values())
        far = browser.difference(page, file, of_the_readme)
        assert far < ALIKE, f"{of_the_readme.name} shows something else ({far}): make screenshots"

    return take


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
