"""A cluster with the release on it: how it comes up, and the way to its pages.

`make run` and the end-to-end tests build it in the same way.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

from mlctl.base import processes
from mlctl.base.errors import UserError
from mlctl.base.labels import run_directory
from mlctl.base.names import (
    AIRFLOW_IMAGES,
    AIRFLOW_PORT,
    AIRFLOW_SERVICE,
    NAMESPACE,
    RELEASE,
    SETTINGS_CONFIG_MAP,
)
from mlctl.base.packages import ensure_packages, missing_packages
from mlctl.base.progress import Phase, Phases, console
from mlctl.base.waiting import until
from mlctl.builder import build as images_build
from mlctl.builder.catalog import recipes
from mlctl.clients.airflow import Airflow
from mlctl.clients.database import Database
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube
from mlctl.clients.pods import component
from mlctl.clients.volume import Volume
from mlctl.cluster.provider import Provider, provider
from mlctl.release.chart import dependency
from mlctl.release.images import reference
from mlctl.release.release import (
    Release,
    airflow_image,
    airflow_version,
    image_values,
    merge,
    project_images,
    wants_metrics,
)

LOG_BYTES = 1 << 17
"""Of the end of a log: some 15 lines, however long."""


STOP_SECONDS = 300
"""How long pods may take to end: Airflow gives a webserver's clients time."""


class Stack:
    """One cluster and the release on it."""

    def __init__(self, cluster: Provider | None = None) -> None:
        self.cluster = cluster or provider()

    @cached_property
    def kube(self) -> Kube:
        """The release's namespace."""
        return Kube(self.cluster.kubeconfig, NAMESPACE)

    # Coming up

    def prepare(self, phases: Phases) -> Release:
        """Bring up cluster and images, and return the release that can be deployed on them.

        Two threads: one brings up the cluster, the other builds images and hands each over as
        soon as it is there. They meet in ``Provider.load_images``, which waits for the container
        runtime, the first part of a cluster to come up; Kubernetes is still being compiled then.

        Raises UserError for what is in the way on this machine, for a build that fails, and for an
        official chart that is not the pinned one. Ctrl-C ends both threads within seconds.
        """
        with phases.phase("check this machine"):
            airflow_image()
            self.cluster.doctor()
        packages = {*self.cluster.host_packages()}
        if self.cluster.made_here:
            packages |= {*images_build.HOST_PACKAGES}
        # All of them at once: one question, one run of apt.
        if missing_packages(sorted(packages)):
            with phases.phase("packages of this machine"):
                ensure_packages("the cluster and its images", sorted(packages))

        def load(entries: dict[str, Any]) -> None:
            names = ", ".join(sorted(entries))
            with phases.phase(f"load images: {names}") as phase:
                self.cluster.load_images(entries, phase)

        # Side by side: while one downloads, the other computes.
        with processes.thread_pool(2, self.after_interrupt) as pool:
            tasks = [pool.submit(self.cluster.up, phases)]
            if self.cluster.made_here:
                tasks.append(pool.submit(images_build.build_all, phases, wanted_images(), load))
            _first_error(tasks)
        # Else a registry has the images, and a values file names them.
        images = tasks[1].result() if self.cluster.made_here else {}
        with phases.phase("chart dependency"):
            dependency()
        return self.release(images)

    def after_interrupt(self) -> str:
        """Return what to say when `prepare` or what follows it was interrupted."""
        words = "`make run` goes on where it stopped"
        if self.cluster.made_here and any(
            row["state"] == "running" for row in self.cluster.status()
        ):
            words += "; the cluster goes on running, `make down` stops it"
        return words

    def release(self, images: dict[str, Any] | None = None) -> Release:
        """Return the release with the values of these images and of the cluster."""
        overlay = image_values(images) if images else {}
        return Release(self.kube, merge(overlay, self.cluster.values()), self.cluster.name)

    def drop_old_images(self, release: Release, phase: Phase) -> None:
        """Remove images from the node that nothing uses: no pod, no revision one may go back to.

        Those of build/images.json stay too.
        """
        entries = images_build.built().values()
        current = {f"{image['repository']}:{image['tag']}" for image in entries}
        idle = self.cluster.images() - current
        if idle:
            pods = self.kube.run("get", "pods", "--all-namespaces", "--output", "json").stdout
            idle -= release.images() | project_images(pods)
        if idle:
            self.cluster.remove_images(idle)
            names = sorted(name.rpartition("/")[2] for name in idle)
            phase.say(f"removed from the node, nothing uses them: {', '.join(names)}")

    # Pages and files

    @contextmanager
    def airflow(self) -> Iterator[Airflow]:
        """Give a client of Airflow, which may be away; its forward ends with the block."""
        values = self.release().installed_values()
        user, password = self._login(values)
        with closing(Forward(self.kube, AIRFLOW_SERVICE, AIRFLOW_PORT)) as forward:
            yield Airflow(
                forward,
                user,
                password,
                version=airflow_version(values),
                end_of_file=self.end_of_log_file,
                tell=_tell_waiting,
            )

    def end_of_log_file(self, path: str) -> str:
        """Return the last LOG_BYTES of a file in Airflow's log directory, '' without one.

        Files whose names go on after that follow it: what the scheduler has to say of a task.

        Raises KubectlError when the scheduler can't be asked.
        """
        script = 'tail --quiet --bytes="$1" "$AIRFLOW_HOME/logs/$0"* 2>/dev/null || true'
        return self.in_scheduler("sh", "-c", script, path, str(LOG_BYTES))

    def in_scheduler(self, *command: str, timeout: float = 20) -> str:
        """Return the output of a command in the scheduler's container.

        Raises KubectlError when it fails or takes longer than ``timeout`` seconds.
        """
        return self._in("scheduler", *command, timeout=timeout)

    def in_dag_processor(self, *command: str, timeout: float = 20) -> str:
        """Return the output of a command where DAG files are read, as in_scheduler does.

        With Airflow 2 that is the scheduler.
        """
        return self._in(self._dag_reader, *command, timeout=timeout)

    @cached_property
    def _dag_reader(self) -> str:
        """The component that reads DAG files. It is asked while one waits for a commit to show."""
        processor = "dag-processor"
        there = self.kube.get("deployment", f"{RELEASE}-{processor}")
        return "scheduler" if there is None else processor

    def _in(self, component: str, *command: str, timeout: float) -> str:
        where = [f"deployment/{RELEASE}-{component}", "--container", component]
        return self.kube.run("exec", *where, "--", *command, timeout=timeout).stdout

    def credentials(self) -> tuple[str, str]:
        """Return user and password of the Airflow pages."""
        return self._login(self.release().installed_values())

    def _login(self, values: Mapping[str, Any]) -> tuple[str, str]:
        admin = values["admin"]
        name = admin["existingSecret"] or f"{RELEASE}-admin"
        return admin["username"], self.kube.secret(name, admin["secretKey"])

    def uses_wandb(self) -> bool:
        """Say whether models go to Weights & Biases."""
        return self.release().installed_values()["wandb"]["enabled"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the chart told the DAGs when it was asked for first."""
        return self.installed_settings()

    def installed_settings(self) -> dict[str, Any]:
        """Return what the chart tells the DAGs now (settings.json of its ConfigMap)."""
        found = self.kube.get("configmap", SETTINGS_CONFIG_MAP)
        if found is None:
            raise UserError(f"the release {RELEASE} is not installed: `make up`")
        return json.loads(found["data"]["settings.json"])

    @property
    def claim(self) -> str:
        """The claim that task pods keep their files on."""
        volumes = {volume["name"]: volume for volume in self.settings["pod"]["spec"]["volumes"]}
        return volumes["training-storage"]["persistentVolumeClaim"]["claimName"]

    @property
    def image(self) -> str:
        """The image of the tasks that name no other."""
        return self.settings["pod"]["spec"]["containers"][0]["image"]

    run_path = staticmethod(run_directory)

    def volume(self, *, read_only: bool = True) -> Volume:
        """Return the training storage, to look at in a ``with`` block."""
        return Volume(self.kube, self.claim, self.image, read_only=read_only)

    def database(self) -> Database:
        """Return the metadata database, to look at in a ``with`` block."""
        values = self.release().installed_values()
        return Database(self.kube, values, reference(values, "postgres"))

    @contextmanager
    def stopped(self, components: Collection[str], phases: Phases) -> Iterator[None]:
        """Stop the Deployments of these components for one block; they start again at its end."""
        with phases.phase("stop what writes") as phase:
            replicas = self.stop(components, phase)
        try:
            yield
        finally:
            self.scale(replicas)

    def stop(self, components: Collection[str], phase: Phase) -> dict[str, int]:
        """Stop the Deployments of these components; return how many pods each had.

        Raises UserError after STOP_SECONDS; all have their pods again then.
        """
        wanted = {f"{RELEASE}-{name}" for name in components}
        replicas = {
            one["metadata"]["name"]: one["spec"]["replicas"]
            for one in self.kube.items("deployments")
            if one["metadata"]["name"] in wanted
        }

        def going() -> list[str]:
            found = [component(pod) for pod in self.kube.items("pods")]
            left = [name for name in found if name in components]
            phase.note(f"waiting for the end of {', '.join(left)}" if left else "")
            return left

        try:
            self.scale(dict.fromkeys(replicas, 0))
            until(
                STOP_SECONDS,
                lambda: not going(),
                lambda: f"still there: {', '.join(going())}",
                poll=1,
            )
        except BaseException:
            self.scale(replicas)
            raise
        return replicas

    def scale(self, replicas: Mapping[str, int]) -> None:
        """Let each of these Deployments have so many pods."""
        for name, count in replicas.items():
            self.kube.run("scale", "deployment", name, f"--replicas={count}")


def wanted_images() -> set[str]:
    """Return the names of the images that pods of the release run.

    The other Airflow is for who asks for it, and no pod runs a stage below one.
    """
    made = recipes()
    airflows = {one.name for name in AIRFLOW_IMAGES.values() for one in made[name].chain()}
    exporter = {images_build.EXPORTER} if wants_metrics() else set()
    return made.keys() - airflows | {airflow_image()} | exporter


def _tell_waiting(text: str) -> None:
    console.print(f"    {text}", markup=False)


def _first_error(futures: list[Future[Any]]) -> None:
    """Raise the error of the first that fails; say so before the others have ended."""
    done, rest = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        error = future.exception()
        if error is None:
            continue
        if rest:
            console.print(f"error: {error}", style="red", markup=False)
            console.print("the other part goes on, its result is kept; Ctrl-C ends it")
        raise error
