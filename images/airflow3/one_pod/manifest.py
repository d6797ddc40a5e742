"""A pod as JSON: the models of the Kubernetes client cost several ms of CPU for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value

from one_pod.failures import has_succeeded

TERMINAL = ("Succeeded", "Failed")
NAME_LENGTH = 63 - 33  # of a label, in which the kubelet shows it as the host's name; less the id


class View(dict):
    """JSON of the API server, read as the client's models are: `status.image_id`, or None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        first, *others = name.split("_")
        camel = first + "".join("ID" if one == "id" else one.capitalize() for one in others)
        return view(self.get(camel))


def view(value: Any) -> Any:
    """The value with a View for each object in it, down to where somebody reads."""
    if isinstance(value, list):
        return [view(one) for one in value]
    return View(value) if isinstance(value, dict) else value


def read(answer: dict[str, Any]) -> View:
    """A pod of the API server, its phase final as soon as it has succeeded."""
    pod = View(answer)
    if has_succeeded(pod):
        pod["status"] = answer["status"] | {"phase": "Succeeded"}
    return pod


def name_of(pod: dict[str, Any], ti: Any) -> str:
    """The name of a try's pod: Airflow draws a new id for each try, and keeps it in an adoption."""
    return f"{pod['metadata']['name'][:NAME_LENGTH].rstrip('-.')}-{ti.id.hex}"


def labels_of(ti: Any) -> dict[str, str]:
    """By which the pods of all tries of a task in a run are found, as the provider makes them."""
    labels = {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id}
    return {key: make_safe_label_value(value) for key, value in labels.items()}


def of_try(pod: dict[str, Any], ti: Any) -> dict[str, Any]:
    """The pod of one try: with its name, and the labels that only a run knows."""
    labels = {**pod["metadata"]["labels"], **labels_of(ti), "try_number": str(ti.try_number)}
    return pod | {"metadata": pod["metadata"] | {"name": name_of(pod, ti), "labels": labels}}


def own_state(pod: View, container: str) -> View:
    """The state of the task's own container, empty until the kubelet reports one."""
    for status in pod.status.container_statuses or []:
        if status.name == container:
            return status.state or View()
    return View()


def has_ended(pod: View, container: str, declared: set[str]) -> bool:
    """Whether nothing more comes: a sidecar that the cluster has injected is not waited for."""
    injected = any(one.name not in declared for one in pod.spec.containers)
    return pod.status.phase in TERMINAL or (
        injected and own_state(pod, container).terminated is not None
    )


def filled_in(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where a template stood in a manifest, and what came there."""
    if isinstance(before, dict):
        for key, value in before.items():
            yield from filled_in(value, after[key], f"{path}.{key}" if path else key)
    elif isinstance(before, list):
        for number, value in enumerate(before):
            yield from filled_in(value, after[number], f"{path}[{number}]")
    elif before != after:
        yield path, after
