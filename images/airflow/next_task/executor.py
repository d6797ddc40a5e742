"""What of KubernetesExecutor is changed so that a worker may run several tasks of a run.

Both are of providers/cncf/kubernetes/executors/kubernetes_executor_utils.py, provider 8.3.3;
tests/dags/test_next_task.py fails when that code moves. The chart's
templates/airflow/_local_settings.tpl applies `MENDS` as the module is imported.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import uuid4

from next_task import COMMAND, FIRST, IDLE, OPEN, SECONDS, only_if

KIND = "ml-pipelines/kind"
"""Annotation of a worker: a hash of what it is made of, but for its task."""
SAME = ("dag_id", "run_id", "airflow-worker")
"""Labels that one task and the next have alike: the run, and the scheduler."""
OF_ONE_TASK = ("map_index", IDLE)
"""Labels and annotations that not every worker has; those of the task before go."""


def values() -> dict[str, Any]:
    """Return what the values say; the local settings put their own reader here."""
    return {}


def mend_executor(module: Any) -> None:
    """Give a task to a worker that has run another one; a worker that waits takes no place."""
    scheduler, watcher = module.AirflowKubernetesScheduler, module.KubernetesJobWatcher
    create, process_status = scheduler.run_pod_async, watcher.process_status

    def run_pod_async(self: Any, pod: Any, **kwargs: Any) -> Any:
        from kubernetes.client.models import V1EnvVar

        # Read each time: who is made with it may go on, and who is made without it may not.
        if not (seconds := values().get("workerIdleSeconds")):
            return create(self, pod, **kwargs)
        value = pod.metadata.labels[OPEN] = uuid4().hex
        wanted = self.kube_client.api_client.sanitize_for_serialization(pod)
        pod.metadata.annotations[KIND] = wanted["metadata"]["annotations"][KIND] = kind(wanted)
        for worker in workers(self.kube_client, wanted):
            key = module.annotations_to_key(worker.metadata.annotations)
            if has_ended(key) and take(self.kube_client, worker, wanted):
                # As when another scheduler adopts it: the task before is not its own any more.
                name, namespace = worker.metadata.name, worker.metadata.namespace
                version = worker.metadata.resource_version
                self.result_queue.put((key, module.ADOPTED, name, namespace, version))
                self.log.info("Worker %s goes on with it", name)
                return worker
        first = pod.spec.containers[0]
        told = V1EnvVar(name=FIRST, value=value), V1EnvVar(name=SECONDS, value=str(seconds))
        first.env = [*(first.env or []), *told]
        return create(self, pod, **kwargs)

    def process_status_of_idle(self: Any, **told: Any) -> None:
        process_status(self, **told)
        labels = told["event"]["object"].metadata.labels
        if told["status"] == "Running" and IDLE in labels and told["event"]["type"] != "DELETED":
            names = ("pod_name", "namespace", "annotations", "resource_version")
            pod_name, namespace, annotations, version = (told[name] for name in names)
            self.watcher_queue.put((pod_name, namespace, module.ADOPTED, annotations, version))

    scheduler.run_pod_async = run_pod_async
    watcher.process_status = process_status_of_idle


def kind(pod: dict[str, Any]) -> str:
    """Return a hash of a pod's specification without the command of its task."""
    first, *others = pod["spec"]["containers"]
    containers = [{name: value for name, value in first.items() if name != "args"}, *others]
    text = json.dumps({**pod["spec"], "containers": containers}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def workers(client: Any, wanted: dict[str, Any]) -> list[Any]:
    """Return those that may take a task, of its run and like the one that it would get."""
    metadata = wanted["metadata"]
    selector = ",".join([OPEN, *(f"{name}={metadata['labels'][name]}" for name in SAME)])
    pods = client.list_namespaced_pod(
        metadata["namespace"], label_selector=selector, _request_timeout=10
    )
    return [
        pod
        for pod in pods.items
        if pod.status.phase == "Running"
        and pod.metadata.deletion_timestamp is None
        and pod.metadata.annotations.get(KIND) == metadata["annotations"][KIND]
    ]


def has_ended(key: Any) -> bool:
    """Whether the try of a task has ended well, so that its worker is about to wait."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        task = session.query(TaskInstance).filter(TaskInstance.filter_for_tis([key])).one_or_none()
        # In the database a try that does not run has the number of the next one.
        return task is not None and (task.state, task.prev_attempted_tries) in (
            ("success", key.try_number),
            ("skipped", key.try_number),
        )


def take(client: Any, worker: Any, wanted: dict[str, Any]) -> bool:
    """Give a task to a worker; say whether it was still open."""
    from kubernetes.client import ApiException

    metadata, value = wanted["metadata"], worker.metadata.labels[OPEN]
    command = json.dumps([value, wanted["spec"]["containers"][0]["args"]])
    changes = [only_if(value)]
    for field, more in (("labels", {}), ("annotations", {COMMAND: command})):
        there = getattr(worker.metadata, field).items()
        kept = {name: text for name, text in there if name not in OF_ONE_TASK}
        changes.append(
            {
                "op": "replace",
                "path": f"/metadata/{field}",
                "value": {**kept, **metadata[field], **more},
            }
        )
    try:
        client.patch_namespaced_pod(
            worker.metadata.name, worker.metadata.namespace, changes, _request_timeout=10
        )
    except ApiException as error:
        if error.status in (404, 422):
            return False
        raise
    return True


MENDS = {
    "airflow.providers.cncf.kubernetes.executors.kubernetes_executor_utils": mend_executor,
}
