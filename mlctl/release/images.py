"""Which images a release runs, by its render, and their names behind another registry."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mlctl.base.errors import UserError, output
from mlctl.base.names import NAMESPACE, RELEASE
from mlctl.base.paths import CHART
from mlctl.release.chart import dependency, program
from mlctl.release.release import image_values, is_local, merge, values_files

_WITHOUT_CLUSTER = {"airflow": {"dags": {"gitSync": {"repo": "git://localhost/dags.git"}}}}
"""What a cluster made here adds to values/local.yaml, and what names no image."""


def in_render(text: str) -> set[str]:
    """Return every image that the objects of `helm template` name.

    Those of workers and tasks are in the texts of ConfigMaps.
    """
    return {image for found in yaml.load_all(text, yaml.CSafeLoader) for image in _images(found)}


def _images(part: Any) -> Iterator[str]:
    if isinstance(part, list):
        for one in part:
            yield from _images(one)
    elif isinstance(part, dict):
        for key, value in part.items():
            if isinstance(value, str) and re.search(r"(^|_)image$", key):
                yield value
            elif isinstance(value, str) and (value.startswith("{") or key.endswith(".yaml")):
                for document in yaml.load_all(value, yaml.CSafeLoader):
                    yield from _images(document)
            else:
                yield from _images(value)


def of_release(built: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the full names of the images that ENV and VALUES ask for, in alphabetical order.

    ``built`` is build/images.json: with ENV=local those are the images.

    Raises UserError when one of them is not built, or when the chart refuses the values.
    """
    dependency()
    files = values_files()
    overlay: dict[str, Any] = {}
    if is_local():
        try:
            overlay = merge(image_values(built), _WITHOUT_CLUSTER)
        except KeyError as missing:
            raise UserError(f"the image {missing} is not built: `make images`") from None
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        # Below VALUES, which may name another image.
        file.write(json.dumps(overlay))
        file.flush()
        words = ["template", RELEASE, CHART, "--namespace", NAMESPACE]
        for one in [files[0], file.name, *files[1:]]:
            words += ["--values", one]
        return sorted(in_render(output([program(), *words], "the chart does not render")))


def reference(values: Mapping[str, Any], name: str) -> str:
    """Return the full name of the image ``images.<name>`` in the values of a release.

    As ``ml-pipelines.image`` of the chart.
    """
    image = values["images"][name]
    end = f"@{image['digest']}" if image["digest"] else f":{image['tag']}"
    registry = values["global"].get("imageRegistry")
    full = f"{image['repository']}{end}"
    return behind(registry, full) if registry else full


def behind(registry: str, name: str) -> str:
    """Return the name that an image has when the value global.imageRegistry is ``registry``.

    As ``ml-pipelines.mirrored`` of the chart: in place of the registry in ``name``, if it has one.
    """
    return f"{registry.rstrip('/')}/{re.sub('^([^/]*[.:][^/]*|localhost)/', '', name)}"
