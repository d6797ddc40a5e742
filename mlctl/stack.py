"""A cluster with the release on it: how it comes up, and the way to its pages.

`make run` and the end-to-end tests build it in the same way.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from ml_pipelines.runs import run_directory
from ml_pipelines.settings import DEFAULT_PATH as SETTINGS_PATH
from mlctl.base import processes
from mlctl.base.errors import UserError
from mlctl.base.packages import ensure_packages
from mlctl.base.paths import IMAGES_LOCK
from mlctl.base.progress import Phase, Phases, console
from mlctl.builder import build as images_build
from mlctl.clients.airflow import Airflow
from mlctl.clients.forward import Forward
from mlctl.clients.kube import Kube, KubectlError
from mlctl.clients.volume import list_files, read_file
from mlctl.cluster import Provider, provider
from mlctl.release.chart import dependency
from mlctl.release.release import NAMESPACE, RELEASE, Release, image_values, merge, project_images

DAG_IDS = ("training_dag", "inference_dag")
AIRFLOW_SERVICE, AIRFLOW_PORT = f"{RELEASE}-webserver", 8080
MLFLOW_SERVICE, MLFLOW_PORT = f"{RELEASE}-mlflow", 5000
SETTINGS_CONFIG_MAP = f"{RELEASE}-settings"
DAG_SECONDS = 180
"""How long Airflow may take to show a published commit, or settings that have changed."""


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

        Raises UserError: see the provider's doctor, the image builder and the chart's dependency.
        Ctrl-C ends both parts within seconds.
        """
        with phases.phase("check this machine"):
            self.cluster.doctor()
        if self.cluster.kind == "embedded":
            # All of them at once: one question, one run of apt.
            with phases.phase("packages of this machine"):
                packages = sorted({*self.cluster.host_packages(), *images_build.HOST_PACKAGES})
                ensure_packages("the embedded cluster and its images", packages)
        # A cluster that is not ours takes its images from a registry: the values name them.
        own_images = self.cluster.kind != "existing"

        def load(entries: dict[str, Any]) -> None:
            names = ", ".join(sorted(entries))
            with phases.phase(f"load images: {names}") as phase:
                self.cluster.load_images(entries, phase)

        # Side by side: while one downloads, the other computes.
        with processes.thread_pool(2, self.after_interrupt) as pool:
            up = pool.submit(self.cluster.up, phases)
            build = pool.submit(images_build.build_all, phases, ready=load) if own_images else None
            _first_error([up, build] if build else [up])
        images = build.result() if build else None
        with phases.phase("chart dependency"):
            dependency(os.environ.get("CHART_REPOSITORY") or "package")
        return self.release(images)

    def after_interrupt(self) -> str:
        """Return what to say when `prepare` or what follows it was interrupted."""
        words = "`make run` goes on where it stopped"
        ours = self.cluster.kind != "existing"
        if ours and any(row["state"] == "running" for row in self.cluster.status()):
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
        lock = json.loads(IMAGES_LOCK.read_text()) if IMAGES_LOCK.exists() else {}
        current = {f"{image['repository']}:{image['tag']}" for image in lock.values()}
        idle = self.cluster.images() - current
        if idle:
            pods = self.kube.run("get", "pods", "--all-namespaces", "--output", "json").stdout
            idle -= release.images() | project_images(pods)
        if idle:
            self.cluster.remove_images(idle)
            names = sorted(name.rpartition("/")[2] for name in idle)
            phase.say(f"removed from the node, nothing uses them: {', '.join(names)}")

    def publish(self, phase: Phase, *, worktree: bool = False) -> str:
        """Publish the DAGs and wait until Airflow shows them, with the settings of the release.

        Returns the commit. Raises UserError on an import error, or after DAG_SECONDS.
        """
        commit = self.cluster.publish(worktree=worktree)
        with self.airflow() as airflow:
            deadline = time.monotonic() + DAG_SECONDS
            while problem := self._dags_behind(airflow, commit):
                phase.note(problem)
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Airflow does not show the DAGs of {commit[:10]} after {DAG_SECONDS} s: "
                        f"{problem}. The containers git-sync and scheduler of the scheduler's pod "
                        "say more (kubectl logs)"
                    )
                time.sleep(0.5)
                if not worktree:
                    # A commit made meanwhile is served in place of the one before it.
                    commit = self.cluster.publish(worktree=False)
        return commit

    def _dags_behind(self, airflow: Airflow, commit: str) -> str:
        served, since = self.served_commit()
        if served != commit:
            return f"the scheduler has {served[:10] or 'no commit'} yet, not {commit[:10]}"
        settings, changed = self.served_settings()
        if settings != self.installed_settings():
            return "the kubelet has not brought the new settings to the scheduler yet"
        since = max(since, changed)
        for error in airflow.import_errors():
            if datetime.fromisoformat(error["timestamp"]) > since:
                trace = error["stack_trace"].strip().splitlines()
                tail = "\n".join(f"    {line}" for line in trace[-6:])
                raise UserError(f"{error['filename']} can't be imported:\n{tail}")
        for dag_id in DAG_IDS:
            dag = airflow.dag(dag_id)
            if dag is None or not dag["is_active"]:
                return f"{dag_id} is not known yet"
            if datetime.fromisoformat(dag["last_parsed_time"]) <= since:
                return f"{dag_id} is not parsed yet"
        return ""

    def served_commit(self) -> tuple[str, datetime]:
        """Return the commit that the scheduler's DAG directory holds, and since when.

        ('' and the present moment while it holds none.)
        """
        # git-sync swaps this link; its target is named after the commit, its own time says when.
        link = "/opt/airflow/dags/repo"
        script = f"readlink {link} && stat --format=%.Y {link}"
        try:
            target, stamp = self._in_scheduler(script).split()
        except (KubectlError, ValueError):
            return "", datetime.now(UTC)
        return target.rsplit("/", 1)[-1], datetime.fromtimestamp(float(stamp), UTC)

    def served_settings(self) -> tuple[dict[str, Any], datetime]:
        """Return the settings that the scheduler reads, and since when.

        ({} and the present moment while it reads none.)
        """
        # The kubelet swaps the link ..data when the content of the ConfigMap has changed.
        directory, name = SETTINGS_PATH.rsplit("/", 1)
        script = f"stat --format=%.Y {directory}/..data && cat {directory}/{name}"
        try:
            stamp, text = self._in_scheduler(script).split("\n", 1)
            settings = json.loads(text)
        except (KubectlError, ValueError):
            return {}, datetime.now(UTC)
        return settings, datetime.fromtimestamp(float(stamp), UTC)

    def _in_scheduler(self, script: str) -> str:
        where = [f"deployment/{RELEASE}-scheduler", "--container", "scheduler"]
        return self.kube.run("exec", *where, "--", "sh", "-c", script, timeout=20).stdout

    # Pages and files

    @contextmanager
    def airflow(self) -> Iterator[Airflow]:
        """Give a client of Airflow; its forward ends with the block."""
        user, password = self.credentials()
        with Forward(self.kube, AIRFLOW_SERVICE, AIRFLOW_PORT) as forward:
            yield Airflow(forward, user, password)

    def credentials(self) -> tuple[str, str]:
        """Return user and password of the Airflow pages."""
        admin = self.release().installed_values()["admin"]
        name = admin["existingSecret"] or f"{RELEASE}-admin"
        return admin["username"], self.kube.secret(name, admin["secretKey"])

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

    def run_path(self, dag_id: str, run_id: str) -> str:
        """Return a run's directory on the training storage."""
        return f"{dag_id}/{run_directory(run_id)}"

    def read_volume(self, path: str) -> str:
        """Return the text of a file on the training storage."""
        claim, image = self.settings["storage"]["claimName"], self.settings["image"]["reference"]
        return read_file(self.kube, claim, path, image)

    def list_volume(self) -> list[str]:
        """Return the paths of all files on the training storage."""
        claim, image = self.settings["storage"]["claimName"], self.settings["image"]["reference"]
        return list_files(self.kube, claim, image)


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
