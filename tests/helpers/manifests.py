"""What a render holds, as plain dicts: a wrong key in a test or a template stays visible."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

POD_OWNERS = ("Deployment", "StatefulSet", "Job")


class _Loader(yaml.CSafeLoader):
    """Refuses a key that is given twice; plain YAML takes the last one in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise ValueError(f"{key} is given twice, line {key_node.start_mark.line + 1}")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclass(frozen=True)
class Container:
    """A container or init container; ``where`` is kind/name/container, ``pod`` the pod's spec."""

    where: str
    spec: dict[str, Any]
    pod: dict[str, Any]
    init: bool

    @property
    def env(self) -> list[str]:
        """Names of its environment variables, as often as they are given."""
        return [variable["name"] for variable in self.spec.get("env") or []]


class Manifests:
    """The objects of one render."""

    def __init__(self, text: str) -> None:
        """``text`` is the output of `helm template`."""
        self.text = text

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """The objects; the text is read when they are asked for."""
        return [found for found in yaml.load_all(self.text, _Loader) if found]

    def names(self) -> set[tuple[str, str]]:
        """Return (kind, name) of every object."""
        return {(o["kind"], o["metadata"]["name"]) for o in self.objects}

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object. Raises KeyError with the names that exist."""
        for found in self.objects:
            if (found["kind"], found["metadata"]["name"]) == (kind, name):
                return found
        there = sorted(n for k, n in self.names() if k == kind)
        raise KeyError(f"no {kind} {name}; there are: {', '.join(there) or 'none'}")

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the objects of some kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def settings(self, prefix: str = "ml-pipelines") -> dict[str, Any]:
        """Return what the DAGs read; the name of its ConfigMap begins with ``prefix``."""
        found = self.one("ConfigMap", f"{prefix}-settings")["data"]["settings.json"]
        return json.loads(found)

    def worker(self) -> dict[str, Any]:
        """Return the pod that the scheduler makes workers from (it is text in a ConfigMap)."""
        for found in self.of("ConfigMap"):
            if text := found["data"].get("pod_template_file.yaml"):
                pods = [d for d in yaml.load_all(text, _Loader) if d]
                assert len(pods) == 1
                return pods[0]
        raise KeyError("no ConfigMap has a pod_template_file.yaml")

    def pods(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (kind/name, pod) for everything that becomes a pod; a pod has metadata and spec."""
        for found in self.objects:
            name = found["metadata"]["name"]
            if found["kind"] in POD_OWNERS:
                yield f"{found['kind']}/{name}", found["spec"]["template"]
            elif found["kind"] == "CronJob":
                yield f"CronJob/{name}", found["spec"]["jobTemplate"]["spec"]["template"]
            elif found["kind"] == "Pod":
                yield f"Pod/{name}", found
        yield "Pod/worker", self.worker()

    def containers(self) -> list[Container]:
        """Return all containers of all pods, init containers included."""
        return [
            Container(f"{where}/{spec['name']}", spec, pod["spec"], key == "initContainers")
            for where, pod in self.pods()
            for key in ("initContainers", "containers")
            for spec in pod["spec"].get(key) or []
        ]
