"""The faults, each at its moment of a training run on the embedded cluster.

A fault function returns when the fault is over; what it changed of the cluster it has changed back,
also when it is interrupted.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlctl.base.errors import UserError, output
from mlctl.base.names import MLFLOW_PORT, RELEASE, TRAINING
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phase, Phases
from mlctl.base.waiting import until
from mlctl.builder.build import built
from mlctl.clients.airflow import FINISHED_RUN, Airflow
from mlctl.clients.kube import Kube
from mlctl.clients.pods import CHECKED, containers
from mlctl.cluster.embedded.config import API_PORT_IN_NODE
from mlctl.cluster.provider import Breakable, breakable
from mlctl.release.release import airflow_image
from mlctl.stack import Stack

OUTAGE_SECONDS = 10
LONG_OUTAGE_SECONDS = 300
SILENCE_SECONDS = 60
"""Twice as long as a request of the operator waits for its answer."""
MOMENT_SECONDS = 600
PATIENCE_SECONDS = 120
QUOTA_SECONDS = 40
GOING = ("Pending", "Running")
"""Phases of the pods that a quota counts."""
# What the drill makes in the cluster is called so, and nothing else is.
MARK = "ml-pipelines-drill"

# Fills the memory of the container that it is started in, by many small processes: the kernel ends
# the largest, and that is the one that works there.
HOG = """
import os
import time

for _ in range(1000):
    if os.fork() == 0:
        kept = b"x" * (32 << 20)
        time.sleep(600)
    time.sleep(0.02)
"""


@dataclass
class Scene:
    """A training run under way, and the ways to reach its parts."""

    stack: Stack
    airflow: Airflow
    run_id: str
    phase: Phase

    @property
    def kube(self) -> Kube:
        """The release's namespace."""
        return self.stack.kube

    @property
    def cluster(self) -> Breakable:
        """The cluster that is broken."""
        return breakable(self.stack.cluster)

    def pod(self, selector: str) -> dict[str, Any] | None:
        """Return the pod with these labels that is not about to go, None if there is none."""
        for pod in self.kube.items("pods", selector):
            if not pod["metadata"].get("deletionTimestamp"):
                return pod
        return None

    def task_pod(self, task_id: str) -> dict[str, Any] | None:
        """Return the pod that does the work of a task."""
        return self.pod(f"kubernetes_pod_operator=True,task_id={task_id},!{CHECKED}")

    def worker_pod(self, task_id: str) -> dict[str, Any] | None:
        """Return the pod in which Airflow follows a task."""
        return self.pod(f"kubernetes_executor=True,task_id={task_id}")

    def pods_of(self, task_id: str) -> list[dict[str, Any]]:
        """Return the pods that a task has: its own, and its worker where it has one."""
        return [pod for pod in (self.task_pod(task_id), self.worker_pod(task_id)) if pod]

    def wait(self, what: str, ready: Callable[[], Any]) -> Any:
        """Return the first true answer of `ready`.

        Raises UserError when the run ends before, or MOMENT_SECONDS have passed.
        """
        looked = time.monotonic()

        def probe() -> Any:
            nonlocal looked
            self.phase.note(f"waiting for {what}")
            if time.monotonic() - looked > 5:
                looked = time.monotonic()
                state = self.airflow.run(TRAINING, self.run_id)["state"]
                if state in FINISHED_RUN:
                    raise UserError(f"the run ended as {state} before {what}")
            return ready()

        return until(MOMENT_SECONDS, probe, f"waited for {what}")

    def wait_for_line(self, task_id: str, pattern: str, what: str) -> dict[str, Any]:
        """Wait until the task's container writes a line like this; return its pod.

        Follows the log: the moment may last for a second only. Raises UserError when the
        container, or the run, ends without such a line.
        """

        def started() -> dict[str, Any] | None:
            pod = self.task_pod(task_id)
            return pod if pod and pod["status"].get("phase") == "Running" else None

        pod = self.wait(what, started)
        name = pod["metadata"]["name"]
        follow = self.kube.command("logs", name, "--container", "base", "--follow")
        with subprocess.Popen(
            follow, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            # The stream ends with the container, at the latest with the pod's own deadline.
            assert process.stdout is not None
            found = any(re.search(pattern, line) for line in process.stdout)
            process.terminate()
        if not found:
            raise UserError(f"the container of {task_id} ended before {what}")
        return pod

    def training(self) -> dict[str, Any]:
        """Wait for the middle of the training; return the task's pod."""
        return self.wait_for_line("train_model", r"step \d+/\d+", "the training")

    def training_ends(self) -> dict[str, Any]:
        """Wait for the last step: Airflow is about to end one task and to start the next."""
        return self.wait_for_line("train_model", r"step (\d+)/\1\b", "the end of the training")

    def kill(self, pod: dict[str, Any], container: str) -> None:
        """End a container by SIGKILL, behind the back of Kubernetes."""
        for status in containers(pod):
            if status["name"] == container:
                socket = str(self.cluster.config.containerd_socket)
                identity = status["containerID"].removeprefix("containerd://")
                kill = ["ctr", "--address", socket, "--namespace", "k8s.io", "tasks", "kill"]
                output([*kill, "--signal", "SIGKILL", identity])


@dataclass(frozen=True)
class Fault:
    """One way to break something."""

    name: str
    what: str
    """In words, for the progress."""
    strike: Callable[[Scene], None]
    """Waits for the moment, breaks it, and mends it."""
    costs_a_try: bool = False
    """A run without a retry has not met this fault."""
    said: str = ""
    """What the log of the lost try must say (a regular expression)."""
    launch: str = ""
    """By what tasks must be run for it: `worker` or `triggerer`; '' for either."""


def kill_pod(component: str) -> Callable[[Scene], None]:
    """Return the fault that deletes a part's pod without grace; its Deployment makes another."""

    def strike(scene: Scene) -> None:
        scene.training()
        kill = ["--force", "--grace-period=0", "--wait=false"]
        scene.kube.run("delete", "pods", "--selector", f"component={component}", *kill)

    return strike


def kill_worker_pod(scene: Scene) -> None:
    """Kill the process that follows the training; the training itself goes on."""
    scene.training()
    worker = scene.worker_pod("train_model")
    if worker is None:
        raise UserError("train_model has no worker pod")
    scene.kill(worker, "base")


def delete_task_pod(scene: Scene) -> None:
    """Delete the pod that trains."""
    scene.kube.run("delete", "pod", scene.training()["metadata"]["name"], "--wait=false")


def evict_task_pod(scene: Scene) -> None:
    """Evict the pod that trains, as the draining of a node does."""
    name = scene.training()["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{scene.kube.namespace}/pods/{name}/eviction"
    scene.kube.run("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))


def fill_memory(scene: Scene) -> None:
    """Let the container that trains run out of memory."""
    name = scene.training()["metadata"]["name"]
    command = ["exec", name, "--container", "base", "--", "python", "-c", HOG]
    scene.kube.run(*command, timeout=120, check=False)


def take_away(component: str) -> Callable[[Scene], None]:
    """Return the fault that stops a program of the node for 10 s; containers run on."""

    def strike(scene: Scene) -> None:
        scene.training()
        with _stopped(scene, component):
            time.sleep(OUTAGE_SECONDS)

    return strike


def restart_postgres(scene: Scene) -> None:
    """Delete the database's pod; its StatefulSet makes another on the same volume."""
    scene.training()
    scene.kube.run("delete", "pod", f"{RELEASE}-postgres-0", "--wait=false")


def take_away_database(scene: Scene) -> None:
    """Have no database for five minutes, as when a managed one fails over or is upgraded."""
    scene.training()
    database = f"statefulset/{RELEASE}-postgres"
    scene.kube.run("scale", database, "--replicas=0")
    try:
        time.sleep(LONG_OUTAGE_SECONDS)
    finally:
        scene.kube.run("scale", database, "--replicas=1")


def restart_node(scene: Scene) -> None:
    """Pull the plug of the node, and start it again."""
    scene.training()
    scene.cluster.cut_power()
    scene.phase.say("the node is off")
    scene.cluster.up(Phases())


def stop_git_server(scene: Scene) -> None:
    """Take the git server away before the next task starts, and for 10 s more."""
    scene.training()
    with _stopped(scene, "git-daemon"):
        scene.wait("the next task", lambda: scene.pods_of("upload_model"))
        time.sleep(OUTAGE_SECONDS)


def cut_off_mlflow(scene: Scene) -> None:
    """Refuse every packet to MLflow while the model is on its way there, for 10 s."""
    scene.wait_for_line("upload_model", "sending", "the upload")
    pod = scene.pod("app.kubernetes.io/component=mlflow")
    if pod is None:
        raise UserError("there is no MLflow pod")
    rule = ["FORWARD", "-d", pod["status"]["podIP"], "-p", "tcp", "--dport", str(MLFLOW_PORT)]
    rule += ["-j", "REJECT", "--reject-with", "tcp-reset"]
    with _packet_rule(scene, rule):
        time.sleep(OUTAGE_SECONDS)
        listing = scene.cluster.in_network("iptables", "-nvxL", "FORWARD", "1")
        packets = int(output(listing).split()[0])
    if not packets:
        raise UserError("nothing was sent to MLflow while it was cut off")
    scene.phase.say(f"{packets} packets to MLflow were refused")


def silence_api_server(scene: Scene) -> None:
    """Let the API server accept requests and answer none."""
    scene.training()
    scene.cluster.signal("kube-apiserver", signal.SIGSTOP)
    try:
        time.sleep(SILENCE_SECONDS)
    finally:
        scene.cluster.signal("kube-apiserver", signal.SIGCONT)


def use_up_the_quota(scene: Scene) -> None:
    """Leave room for no pod of the next task, then for its worker and not for its own."""
    scene.training_ends()
    # Their place is the next task's.
    ending = scene.pods_of("train_model")
    going = [pod for pod in scene.kube.items("pods") if pod["status"]["phase"] in GOING]
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": MARK}}
    try:
        for room in range(len(ending)):
            pods = len(going) - len(ending) + room
            scene.kube.apply(quota | {"spec": {"hard": {"pods": str(pods)}}})
            scene.phase.say(f"the quota has room for {room} more pods")
            time.sleep(QUOTA_SECONDS)
    finally:
        remove_marks(scene.kube)


def lose_the_workers_image(scene: Scene) -> None:
    """Have the image of the workers nowhere for a minute, as behind a registry that is away."""
    name = airflow_image()
    image = built()[name]
    scene.training_ends()
    scene.cluster.remove_images({f"{image['repository']}:{image['tag']}"})
    try:
        time.sleep(SILENCE_SECONDS)
    finally:
        scene.cluster.load_images({name: image}, scene.phase)


def answer_429(scene: Scene) -> None:
    """Answer each request to the API server with 429 for 10 s, in its place and with its key."""
    config = scene.cluster.config
    certificate, key = config.pki / "kube-apiserver.crt", config.pki / "kube-apiserver.key"
    refusing = [sys.executable, "-m", "mlctl.trials.drill.refusing_api", str(certificate), str(key)]
    refusing += [str(API_PORT_IN_NODE), "429"]
    scene.training()
    # An API server that stops takes itself out of its Service; the pods are led to its successor.
    service = ["PREROUTING", "-t", "nat", "-d", config.kubernetes_service_ip, "-p", "tcp"]
    service += ["--dport", "443", "-j", "REDIRECT", "--to-ports", str(API_PORT_IN_NODE)]
    with _stopped(scene, "kube-apiserver"), tempfile.TemporaryFile("w+") as log:
        command = scene.cluster.in_network(*refusing)
        with subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT) as process:
            try:
                with _packet_rule(scene, service):
                    time.sleep(OUTAGE_SECONDS)
            finally:
                process.terminate()
        log.seek(0)
        lines = log.read().splitlines()
        # The name that the Python client of Kubernetes goes by.
        asked = sum("OpenAPI-Generator" in line for line in lines)
    if not asked:
        raise UserError(
            f"Airflow asked for nothing while the API server answered 429; {lines[-3:]}"
        )
    scene.phase.say(f"{asked} requests of Airflow were refused")


def answer_500(scene: Scene) -> None:
    """Let the API server answer each change of a pod with 500, for 10 s.

    By its own means: a webhook that has to agree, and is nowhere.
    """
    webhook = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": MARK},
        "webhooks": [
            {
                "name": f"{MARK}.invalid.example",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 1,
                "clientConfig": {"service": {"namespace": scene.kube.namespace, "name": MARK}},
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": scene.kube.namespace}
                },
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE", "DELETE"],
                        "resources": ["pods"],
                    }
                ],
            }
        ],
    }
    scene.training_ends()
    before = _refusals(scene.kube)
    try:
        scene.kube.apply(webhook)
        until(
            PATIENCE_SECONDS,
            lambda: _refusals(scene.kube) > before,
            "Airflow changed no pod",
        )
        time.sleep(OUTAGE_SECONDS)
        scene.phase.say(f"{_refusals(scene.kube) - before:.0f} requests were refused")
    finally:
        remove_marks(scene.kube)


def _refusals(kube: Kube) -> float:
    """Return how many requests the API server has refused because of the drill's webhook."""
    text = kube.run("get", "--raw", "/metrics").stdout
    metric = "apiserver_admission_webhook_rejection_count"
    lines = [line for line in text.splitlines() if line.startswith(metric) and MARK in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def remove_marks(kube: Kube) -> None:
    """Delete what a drill, maybe one that was killed, has left in the cluster."""
    for kind in ("validatingwebhookconfiguration", "resourcequota"):
        kube.run("delete", kind, MARK, "--ignore-not-found")


@contextmanager
def _stopped(scene: Scene, component: str) -> Iterator[None]:
    """Have a program of the node stopped for one block."""
    scene.cluster.component("stop", component)
    scene.phase.say(f"{component} is stopped")
    try:
        yield
    finally:
        scene.cluster.component("start", component)
        scene.phase.say(f"{component} runs again")


@contextmanager
def _packet_rule(scene: Scene, rule: list[str]) -> Iterator[None]:
    """Have a rule, its chain first, in front of all others of the node for one block."""
    output(scene.cluster.in_network("iptables", "-I", *rule))
    try:
        yield
    finally:
        output(scene.cluster.in_network("iptables", "-D", *rule))


FAULTS = [
    Fault("scheduler-pod", "kill the scheduler's pod", kill_pod("scheduler")),
    Fault(
        "worker-pod", "kill Airflow's worker", kill_worker_pod, costs_a_try=True, launch="worker"
    ),
    Fault("triggerer-pod", "kill the triggerer's pod", kill_pod("triggerer"), launch="triggerer"),
    Fault(
        "task-pod",
        "delete the task's pod",
        delete_task_pod,
        costs_a_try=True,
        said="it was deleted",
    ),
    Fault("eviction", "evict the task's pod", evict_task_pod, costs_a_try=True, said="evicted"),
    Fault("oom", "fill the task's memory", fill_memory, costs_a_try=True, said="OOMKilled"),
    Fault("api-server", "take the API server away for 10 s", take_away("kube-apiserver")),
    Fault("postgres", "restart Postgres", restart_postgres),
    Fault("database", "take the database away for five minutes", take_away_database),
    Fault("containerd", "stop containerd for 10 s", take_away("containerd")),
    Fault("node", "pull the plug of the node and start it again", restart_node, costs_a_try=True),
    Fault("git", "take the git server away", stop_git_server),
    Fault("mlflow", "cut MLflow off during the upload for 10 s", cut_off_mlflow),
    Fault("quota", "use up the quota of pods", use_up_the_quota),
    Fault("worker-image", "lose the image of the workers", lose_the_workers_image, launch="worker"),
    Fault("api-silent", "let the API server answer nothing for a minute", silence_api_server),
    Fault("api-429", "answer 429 from the API server for 10 s", answer_429),
    Fault("api-500", "answer 500 from the API server for 10 s", answer_500),
]


def chosen(names: str, launch: str) -> list[Fault]:
    """Return the faults of these names, separated by commas or spaces; all when there is none.

    Only those for tasks that are run by ``launch``. Raises UserError for a name that none has.
    """
    known = {fault.name: fault for fault in FAULTS if fault.launch in ("", launch)}
    wanted = re.split(r"[,\s]+", names.strip()) if names.strip() else list(known)
    wanted = [name for name in wanted if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(
            f"FAULT={', '.join(unknown)} is no fault of tasks that a {launch} runs; "
            f"there are {', '.join(known)}"
        )
    return [known[name] for name in wanted]
