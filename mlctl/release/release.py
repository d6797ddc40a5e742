"""The Helm release: what is installed, from which values, and whether it is well."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlctl.base.cache import digest, lock
from mlctl.base.errors import UserError, output
from mlctl.base.names import AIRFLOW_IMAGES, RELEASE, REPOSITORY
from mlctl.base.paths import BUILD, CHART, ROOT, VALUES
from mlctl.base.progress import Phase
from mlctl.base.waiting import until
from mlctl.clients.kube import Kube
from mlctl.clients.pods import describe_trouble, is_stuck, last_words, not_ready
from mlctl.release.chart import dependency, program

AIRFLOW_3 = VALUES / "airflow3.yaml"
"""What Airflow 3 needs, on top of the file of any environment."""

TIMEOUT_SECONDS = 900
STUCK_SECONDS = 90
"""A pod that cannot start for so long (no image, no Secret) ends the wait early."""

_INPUTS = "inputs "
"""What the description of a revision begins with; the hash of its inputs follows."""


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``above`` over ``below`` the way Helm merges values files."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = merge(old, value) if both else value
    return merged


def airflow_major(environ: Mapping[str, str] = os.environ) -> str:
    """Return which Airflow the variable AIRFLOW asks for: ``2`` (the default) or ``3``.

    Raises UserError when it is another one.
    """
    major = environ.get("AIRFLOW") or "2"
    if major not in AIRFLOW_IMAGES:
        raise UserError(f"AIRFLOW={major} is not one of {', '.join(AIRFLOW_IMAGES)}")
    return major


def airflow_image(environ: Mapping[str, str] = os.environ) -> str:
    """Return the name of the image of that Airflow. Raises UserError as airflow_major."""
    return AIRFLOW_IMAGES[airflow_major(environ)]


def airflow_version(values: Mapping[str, Any]) -> str:
    """Return the version of Airflow that the values of a release say."""
    return str(values["airflow"]["airflowVersion"])


def values_files(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return the values files of the variables ENV (default: local), AIRFLOW and VALUES.

    Raises UserError when one does not exist.
    """
    name = environ.get("ENV") or "local"
    files = [VALUES / f"{name}.yaml"]
    environments = {file.stem for file in VALUES.glob("*.yaml")} - {AIRFLOW_3.stem}
    if name not in environments:
        known = ", ".join(sorted(environments))
        raise UserError(f"ENV={name} is not one of {known} (values/*.yaml)")
    if airflow_major(environ) == "3":
        files.append(AIRFLOW_3)
    extra = environ.get("VALUES")
    if extra:
        files.append(ROOT / extra)
        if not files[-1].is_file():
            raise UserError(f"VALUES={extra}: no such file")
    return files


def wants_metrics(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether the values files ask for the exporter of metrics. Raises as values_files."""
    wanted: dict[str, Any] = {}
    for file in values_files(environ):
        wanted = merge(wanted, yaml.safe_load(file.read_text()) or {})
    return bool(wanted.get("airflow", {}).get("statsd", {}).get("enabled"))


def is_local(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether ENV is the environment of the clusters made here, whose images are built here."""
    return values_files(environ)[0].stem == "local"


def image_values(images: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the values that make the release use the images of build/images.json.

    Raises UserError as airflow_major.
    """
    airflow = images[airflow_image()]

    def one(name: str) -> dict[str, str]:
        return {
            "repository": images[name]["repository"],
            "tag": images[name]["tag"],
            # The tag holds the content's hash, and no registry could be asked for a digest.
            "pullPolicy": "IfNotPresent",
        }

    return {
        "images": {
            "classicExample": one("classic-example"),
            # It has the same packages, and stays the same while the workload's code changes.
            "mlflow": one("classic-example-environment"),
            "postgres": one("postgres"),
        },
        "airflow": {
            # The workers know this image only, so it is the one for every part of Airflow.
            "defaultAirflowRepository": airflow["repository"],
            "defaultAirflowTag": airflow["tag"],
            "images": {
                "gitSync": one("git-sync"),
                **({"statsd": one("statsd-exporter")} if wants_metrics() else {}),
            },
        },
    }


@dataclass(frozen=True)
class Status:
    """The newest revision of the release."""

    state: str
    """As helm says: deployed, failed, pending-upgrade ..."""
    revision: int
    inputs: str
    """Hash of chart and values, '' when somebody else installed it."""


class Release:
    """The release in one cluster."""

    def __init__(self, kube: Kube, values: Mapping[str, Any], cluster: str) -> None:
        """``values`` is the overlay that image lock and cluster give, over values/$(ENV).yaml."""
        self.kube = kube
        self.values = values
        self.overlay = BUILD / f"values-{cluster}.yaml"

    def helm(self, *words: str) -> list[str]:
        """Return a helm command line for this cluster and namespace."""
        config = ["--kubeconfig", str(self.kube.kubeconfig)]
        return [program(), *config, "--namespace", self.kube.namespace, *words]

    def status(self) -> Status | None:
        """Return the newest revision, None when nothing is installed."""
        command = self.helm("status", RELEASE, "--output", "json")
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            if "not found" in result.stderr:
                return None
            raise UserError(f"helm status: {result.stderr.strip()}")
        found = json.loads(result.stdout)
        description = found["info"].get("description", "")
        inputs = description.removeprefix(_INPUTS) if description.startswith(_INPUTS) else ""
        return Status(found["info"]["status"], int(found["version"]), inputs)

    def installed_values(self) -> dict[str, Any]:
        """Return all values of the newest revision, the chart's defaults among them.

        Raises UserError when nothing is installed.
        """
        command = self.helm("get", "values", RELEASE, "--all", "--output", "json")
        return json.loads(output(command, f"the release {RELEASE} is not installed, `make up`"))

    def images(self) -> set[str]:
        """Return what is named like an image of this project in the newest two good revisions.

        (The second is the one that `helm rollback` goes back to.)

        Raises UserError when helm fails.
        """
        history = json.loads(output(self.helm("history", RELEASE, "--output", "json")))
        good = [one["revision"] for one in history if one["status"] in {"deployed", "superseded"}]
        manifests = [
            output(self.helm("get", "manifest", RELEASE, "--revision", str(revision)))
            for revision in sorted(good)[-2:]
        ]
        return project_images("\n".join(manifests))

    def inputs(self, files: list[Path], extra: tuple[str, ...] = ()) -> str:
        """Return the hash over everything that decides what is installed."""
        values = json.dumps(self.values, sort_keys=True)
        return digest(CHART, *files, values, Path(program()).name, *extra)

    def deploy(
        self, phase: Phase, *, extra: tuple[str, ...] = (), other_airflow: bool = False
    ) -> bool:
        """Install or upgrade, and wait until all of it is ready.

        Returns False when the release was up to date: then nothing is changed, only awaited.

        Raises UserError with a description of the pods that are not well, and for a release with
        another major version of Airflow, unless ``other_airflow`` lets its database change.
        """
        dependency()
        files = values_files()
        inputs = self.inputs(files, extra)
        words = self._upgrade(files)
        with lock(f"release-{digest(str(self.kube.kubeconfig), self.kube.namespace)}"):
            status = self.status()
            if status and not other_airflow:
                self._refuse_another_airflow()
            if not extra and status and (status.state, status.inputs) == ("deployed", inputs):
                phase.say(f"revision {status.revision} is up to date")
                self.wait_ready(phase)
                return False
            if status and status.state.startswith("pending-"):
                self._forget_interrupted(phase, status)
            words += ["--install", "--create-namespace", "--wait"]
            words += ["--timeout", f"{TIMEOUT_SECONDS}s", "--description", f"{_INPUTS}{inputs}"]
            self._helm_and_watch([*words, *extra], phase)
            self.wait_ready(phase)
        return True

    def _upgrade(self, files: list[Path]) -> list[str]:
        """Return the words of `helm upgrade` with all values; their overlay is written."""
        self.overlay.parent.mkdir(parents=True, exist_ok=True)
        self.overlay.write_text(yaml.safe_dump(dict(self.values), sort_keys=True))
        words = ["upgrade", RELEASE, str(CHART)]
        for file in [*files, self.overlay]:
            words += ["--values", str(file)]
        return words

    def objects(self) -> list[dict[str, Any]]:
        """Return the objects of the newest revision. Raises UserError when nothing is installed."""
        return _objects(output(self.helm("get", "manifest", RELEASE)))

    def next_objects(self) -> list[dict[str, Any]]:
        """Return the objects that ``deploy`` would make; nothing is changed.

        Raises UserError for values that the chart refuses.
        """
        dependency()
        words = [*self._upgrade(values_files()), "--dry-run=server", "--output", "json"]
        return _objects(json.loads(output(self.helm(*words)))["manifest"])

    def back_to(self, revision: int, phase: Phase) -> None:
        """Roll back to a revision, and wait until all of it is ready. Raises UserError."""
        words = ["rollback", RELEASE, str(revision), "--wait", "--timeout", f"{TIMEOUT_SECONDS}s"]
        self._helm_and_watch(words, phase)
        self.wait_ready(phase)

    def _refuse_another_airflow(self) -> None:
        there, asked = airflow_version(self.installed_values()), airflow_major()
        if there.split(".")[0] != asked:
            raise UserError(
                f"the release {RELEASE} runs Airflow {there}, and its database is that of {there}; "
                f"AIRFLOW={asked} asks for another. AIRFLOW={there.split('.')[0]} goes on with it; "
                + ("`make upgrade-airflow` takes all of it to Airflow 3; " if asked == "3" else "")
                + "`make clean` deletes it, and CLUSTER_NAME=name makes a cluster beside it"
            )

    def _forget_interrupted(self, phase: Phase, status: Status) -> None:
        # A helm that was killed leaves its revision pending, and every later helm refuses. The
        # lock says that no helm of this machine is at work. Without the revision's record helm
        # adopts the objects that are there, so no Secret and no claim is made anew.
        phase.say(f"revision {status.revision} was interrupted ({status.state}): going on from it")
        selector = f"owner=helm,name={RELEASE},status={status.state}"
        self.kube.run("delete", "secret", "--selector", selector)

    def _helm_and_watch(self, words: list[str], phase: Phase) -> None:
        log = BUILD / "log" / "helm.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            out.write(f"$ {' '.join(self.helm(*words))}\n")
            out.flush()
            process = subprocess.Popen(
                self.helm(*words), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
            try:
                stuck = self._watch(process, phase)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait()
        if stuck or process.returncode != 0:
            lines = log.read_text().splitlines()[1:]
            # All of it: values that are refused are named one a line.
            errors = [number for number, line in enumerate(lines) if line.startswith("Error:")]
            tail = "\n".join(lines[errors[0] if errors else -8 :])
            reason = stuck or f"helm ended with status {process.returncode}"
            raise UserError(
                f"the release {RELEASE} did not become ready: {reason}; whole log: {log}\n{tail}\n"
                + describe_trouble(self.kube)
            )

    def _watch(self, process: subprocess.Popen[bytes], phase: Phase) -> str:
        stuck_since: float | None = None
        while process.poll() is None:
            try:
                pods = self.pods()
            except UserError:
                pods = []  # The namespace may not be there yet, or the API be busy.
            waiting = not_ready(pods)
            words = last_words(self.kube, pods)
            phase.note(f"waiting for {waiting}{words}" if waiting else "helm is at work")
            stuck = [pod for pod in pods if is_stuck(pod)]
            if not stuck:
                stuck_since = None
            elif stuck_since is None:
                stuck_since = time.monotonic()
            elif time.monotonic() - stuck_since > STUCK_SECONDS:
                return f"{not_ready(stuck)} for {STUCK_SECONDS} s"
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                continue
        return ""

    def pods(self) -> list[dict[str, Any]]:
        """Return the release's own pods: those of its controllers, not those of tasks."""
        owned = {"ReplicaSet", "StatefulSet", "DaemonSet", "Job"}
        return [
            pod
            for pod in self.kube.items("pods")
            if owned & {owner["kind"] for owner in pod["metadata"].get("ownerReferences", [])}
        ]

    def wait_ready(self, phase: Phase, timeout: float = 300) -> None:
        """Wait until every Deployment and StatefulSet runs as specified and the Jobs are done.

        Helm 3 does not wait for Jobs by itself, and the setup Job makes the first user.

        Raises UserError with a description of what is not well.
        """

        def ready() -> bool:
            if waiting := self._not_rolled_out():
                phase.note(f"waiting for {not_ready(self.pods()) or ', '.join(waiting)}")
            return not waiting

        until(
            timeout,
            ready,
            lambda: (
                f"not ready: {', '.join(self._not_rolled_out())}\n{describe_trouble(self.kube)}"
            ),
            poll=1,
        )

    def _not_rolled_out(self) -> list[str]:
        return [
            *(
                f"{one['kind'].lower()} {one['metadata']['name']}"
                for kind in ("deployments", "statefulsets")
                for one in self.kube.items(kind)
                if not _rolled_out(one)
            ),
            *(
                f"job {one['metadata']['name']}"
                for one in self.kube.items("jobs")
                # Not those of CronJobs, which come and go.
                if not one["metadata"].get("ownerReferences") and not _succeeded(one)
            ),
        ]

    def uninstall(self) -> None:
        """Remove the release. Claims that hold data stay (the chart keeps them)."""
        output(self.helm("uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout=300s"))


def _objects(manifest: str) -> list[dict[str, Any]]:
    return [found for found in yaml.load_all(manifest, yaml.CSafeLoader) if found]


def project_images(text: str) -> set[str]:
    """Return the full names of images of this project that are in a text."""
    return set(re.findall(rf"{re.escape(REPOSITORY)}/[\w.-]+:[\w.-]+", text))


def _rolled_out(controller: Mapping[str, Any]) -> bool:
    wanted = controller["spec"].get("replicas", 1)
    status = controller.get("status", {})
    return (
        status.get("observedGeneration", 0) >= controller["metadata"]["generation"]
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("readyReplicas", 0) >= wanted
        # An old pod that still ends counts as a replica.
        and status.get("replicas", 0) == wanted
    )


def _succeeded(job: Mapping[str, Any]) -> bool:
    wanted = job["spec"].get("completions", 1)
    return job.get("status", {}).get("succeeded", 0) >= wanted


def package_chart(
    key: str | None = None, keyring: Path | None = None, passphrase: Path | None = None
) -> Path:
    """Package the chart with its dependency into build/ and return the archive's path.

    ``key`` (a part of its name) signs it, out of ``keyring``, a file of `gpg --export-secret-keys`,
    whose ``passphrase`` is a file's first line: helm writes the archive's .prov beside it.

    Raises UserError when helm does not sign.
    """
    dependency()
    BUILD.mkdir(exist_ok=True)
    signing: list[str | Path] = []
    if key:
        if keyring is None:
            raise UserError(f"KEY={key}: in which file? KEYRING, from `gpg --export-secret-keys`")
        signing = ["--sign", "--key", key, "--keyring", keyring]
        signing += ["--passphrase-file", passphrase] if passphrase else []
    told = output([program(), "package", CHART, "--destination", BUILD, *signing])
    return Path(re.findall(r"saved it to: (.*)", told)[0])
