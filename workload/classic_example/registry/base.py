"""What every model registry does, and what is the same in all of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from classic_example import lineage
from classic_example import model_files as files
from classic_example.errors import WorkloadError, names
from classic_example.files import new_directory, read_json, require_space, write_json

LATEST = "latest"
# The description of a model; what people have written in its place stays.
ABOUT = (
    "Text classifiers. Inference loads the version with the alias champion, which a version gets "
    "when it passes the gate of its training; tags of each say what made it and what the gate said."
)
# Tag of a version: SHA-256 of its weights, checked at each load.
WEIGHTS_TAG = "model_sha256"
# Seconds for the first answer of a server. Every expected failure ends the command within 30 s.
PREFLIGHT_SECONDS = 15.0
WORD = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


@dataclass(frozen=True)
class ModelRef:
    """A model in a registry: NAME or NAME:ALIAS. ALIAS is latest, vN, N or a name given there."""

    name: str
    alias: str = LATEST

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Return the reference in `text`, which may be MLflow's `models:/NAME@ALIAS`."""
        match = re.fullmatch(f"(?:models:/)?({WORD})(?:[:@/]({WORD}))?", text)
        if not match:
            raise WorkloadError(
                f"{text!r} is not a model reference; write NAME or NAME:ALIAS with letters, "
                "digits, '.', '_' and '-'"
            )
        return cls(match[1], match[2] or LATEST)

    @property
    def version(self) -> int | None:
        """Number of the version when the alias is `vN` or `N`, else None."""
        match = re.fullmatch(r"v?(\d+)", self.alias)
        return int(match[1]) if match else None

    def __str__(self) -> str:
        return f"{self.name}:{self.alias}"


class Package:
    """A model that `train` left in a directory, on its way to a registry."""

    def __init__(self, directory: Path) -> None:
        """Raise WorkloadError when the directory is missing or holds no whole model."""
        files.require_model(directory, "train")
        self.directory = directory
        trained = read_json(directory / files.LINEAGE_FILE)
        # Of the run that showed the training (Registry.track), or empty.
        self.tracking_run = trained.pop(lineage.TRACKING_RUN, "")
        tags = {key: str(value) for key, value in lineage.of_model(trained).items()}
        self.tags = {**tags, WEIGHTS_TAG: files.sha256_of_weights(directory)}
        metrics = read_json(directory / files.METRICS_FILE)
        self.metrics = {name: one for name, one in metrics.items() if isinstance(one, int | float)}
        self.params = read_json(directory / files.ARGUMENTS_FILE)
        self.history = read_json(directory / files.HISTORY_FILE).get("log_history", [])
        self.plots = [path for name in files.PLOTS if (path := directory / name).is_file()]
        # All, those of subdirectories too, but not the mark that an earlier load may have left.
        mark = directory / files.REGISTRY_FILE
        self.files = sorted(one for one in directory.rglob("*") if one.is_file() and one != mark)

    @property
    def description(self) -> str:
        """What a page says first: how good the model is, on what data, and which run made it."""
        accuracy, baseline = (self.metrics.get(f"{of}accuracy", 0) for of in ("", "baseline_"))
        data = self.tags.get("data_source", "unknown data")
        text = f"held-out accuracy {accuracy:.4f} (baseline {baseline:.4f}), trained on {data}"
        return "; ".join(filter(None, (text, lineage.run_page(self.tags))))

    def is_version(self, tags: Mapping[str, str]) -> bool:
        """Say whether a version with such tags is of the same weights and run of the pipeline."""
        same = ("dag_id", "run_id", WEIGHTS_TAG)
        return "run_id" in self.tags and all(tags.get(key) == self.tags.get(key) for key in same)


class Registry(Protocol):
    """A place that keeps versions of models.

    Every method raises WorkloadError when the server refuses, cannot be reached or does not answer.
    Those that take a reference raise UnknownVersion when there is no such model, version or alias;
    it lists those that exist, and nothing was changed.
    """

    name: str

    def upload(self, model_name: str, package: Package) -> dict[str, Any]:
        """Store a new version with everything that belongs to it, in the run that tracked it.

        The version that an earlier try of the same run made of the same weights is taken over
        (Package.is_version). No alias is moved but `latest`. Returns what `find` returns of it.
        """

    def find(self, ref: ModelRef) -> dict[str, Any]:
        """Return name, version (vN), uri, run_url, version_url and tags (dict[str, str]).

        version_url is the page of the version, run_url that of its run, empty when none is known.
        """

    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        """Fill an empty directory with the files of a version; return what `find` returns."""

    def mark(self, ref: ModelRef, tags: dict[str, str], alias: str = "") -> None:
        """Write tags on a version, others stay; then move an alias to it, if one is given."""

    def track(self, params: dict[str, Any], tags: dict[str, str]) -> str:
        """Return the id of an open run, in which the registry's pages show a training.

        That of a killed try of the same `dag_id` and `run_id` (in `tags`) is taken over.
        """

    def run_url(self, run_id: str) -> str:
        """Return the address of the page of a run that `track` has opened."""

    def log(self, run_id: str, step: int, metrics: dict[str, float]) -> None:
        """Show figures of an optimizer step (from 1) with the time of this call."""

    def finish(self, run_id: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED once all that was logged has arrived.

        `upload` may go on in it later, and after KILLED `track` of the next try.
        """


def upload_to_registry(registry: Registry, model_name: str, directory: Path) -> dict[str, Any]:
    """Upload a trained model as a new version and return the step's result."""
    if not re.fullmatch(WORD, model_name):
        raise WorkloadError(f"upload takes a plain model name, not {model_name!r}")
    known = registry.upload(model_name, Package(directory.absolute()))
    del known["tags"]
    return {"registry": registry.name, **known}


def load_from_registry(registry: Registry, reference: str, directory: Path) -> dict[str, Any]:
    """Fetch a version into a directory, which appears whole or not at all; return the result."""
    ref = ModelRef.parse(reference)
    # The size is known to the registry, which asks again; a full volume need not wait for it.
    require_space({directory: 0})
    with new_directory(directory.absolute()) as partial:
        known = registry.download(ref, partial)
        if missing := files.missing_files(partial):
            raise WorkloadError(f"{ref} in {registry.name} is incomplete: no {names(missing)}")
        expected = known["tags"].get(WEIGHTS_TAG)
        if expected and files.sha256_of_weights(partial) != expected:
            raise WorkloadError(f"{ref} in {registry.name} is damaged: its weights have changed")
        found = {"registry": registry.name, "reference": str(ref), **known}
        metrics = read_json(partial / files.METRICS_FILE)
        write_json(partial / files.REGISTRY_FILE, {**found, "metrics": metrics})
    result = {key: found[key] for key in ("registry", "name", "version", "version_url")}
    # Figures: how good it is said to be, and since when it has been the one to load.
    if "accuracy" in metrics:
        result["accuracy"] = metrics["accuracy"]
    if promoted := known["tags"].get("promoted_at"):
        result["promoted_seconds"] = datetime.fromisoformat(promoted).timestamp()
    return result | {"path": str(directory)}


class UnknownVersion(WorkloadError):
    """A registry has no such model, version or alias."""


def unknown_model(registry: str, ref: ModelRef, existing: Iterable[str]) -> UnknownVersion:
    """Return the error for a model that is not there."""
    there = names(sorted(existing)) or "none yet; run training_dag first"
    return UnknownVersion(f"{registry} has no model {ref.name!r}; models there: {there}")


def unknown_alias(registry: str, ref: ModelRef, existing: Iterable[str]) -> UnknownVersion:
    """Return the error for a version or alias that is not there."""
    text = f"model {ref.name!r} in {registry} has no version or alias {ref.alias!r}; there are: "
    text += names(existing) or "none"
    # Of aliases, it is the champion's that people have not given themselves.
    if ref.version is None and ref.alias != LATEST:
        text += (
            "; training_dag gives the champion's to a version that passes its gate, and `make "
            "promote V=N` to any"
        )
    return UnknownVersion(text)
