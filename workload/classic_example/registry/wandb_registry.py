"""Weights & Biases: runs with metrics and plots, and models as artifacts of a project.

The SDK repeats what fails, some calls for hours, and waits for a silent server without a limit. So
its calls run in one child process, each with a deadline. The end of the command kills it (`leave`
in cli.py), and the SDK's helper process ends with it.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import nullcontext
from functools import cached_property, wraps
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from classic_example.errors import WorkloadError, one_line, reason, scrub
from classic_example.files import require_space
from classic_example.lineage import of_this_run, run_page
from classic_example.progress import heartbeat, within
from classic_example.registry import base
from classic_example.registry.base import ModelRef, Package, Registry

# In these modes the SDK reports success while nothing leaves the container.
SILENT_MODES = ("offline", "disabled", "dryrun")
# How long a training waits for a call.
TRACKING_SECONDS = 60.0


def in_child(limit: float | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a method of the registry run in the child; by default as long as the values say."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        name = method.__name__

        @wraps(method)
        def run(self: "WandbRegistry", *arguments: Any) -> Any:
            if self.child is None:
                return method(self, *arguments)
            seconds = limit or self.seconds
            with nullcontext() if limit else heartbeat(f"W&B: {name} {arguments[0]}"):
                try:
                    return self.child.submit(self.answer, name, arguments).result(seconds)
                except TimeoutError:
                    raise WorkloadError(
                        f"{self.where} did not finish the {name} within {seconds:.0f} s; if it is "
                        "only slow, raise WANDB_TIMEOUT_SECONDS"
                    ) from None
                except BrokenExecutor:
                    fault = "the W&B client has died; is the memory limit too low?"
                    raise WorkloadError(fault) from None

        return run

    return decorate


class WandbRegistry(Registry):
    """The artifacts of the project that the WANDB_* variables describe; or WorkloadError."""

    name = "wandb"

    def __init__(self) -> None:
        def given(name: str, default: str = "") -> str:
            # A key from a file may end in a line feed.
            return os.environ.get(f"WANDB_{name}", "").strip() or default

        if (mode := given("MODE").lower()) in SILENT_MODES:
            raise WorkloadError(
                f"WANDB_MODE={mode} would keep the model inside this container; unset it"
            )
        if not given("API_KEY"):
            raise WorkloadError(
                "WANDB_API_KEY is not set; create the W&B Secret (wandb.existingSecret in the "
                "values), or use REGISTRY=mlflow"
            )
        if not (seconds := given("TIMEOUT_SECONDS", "3600")).isdecimal():
            raise WorkloadError(f"WANDB_TIMEOUT_SECONDS={seconds} is no number of seconds")
        self.url = given("BASE_URL", "https://api.wandb.ai").rstrip("/")
        self.where = f"W&B at {scrub(self.url)}"
        self.key, self.seconds = given("API_KEY"), int(seconds)
        self.entity, self.project = given("ENTITY"), given("PROJECT", "ml-pipelines")
        self.registry = given("REGISTRY")

    @cached_property
    def child(self) -> ProcessPoolExecutor | None:
        """The child, once the server has said whose key this is; None there.

        Raises WorkloadError when it cannot be reached, refuses the key, or is no W&B server.
        """
        import requests

        def ask() -> requests.Response:
            query = {"query": "query Viewer { viewer { entity } }"}
            return requests.post(f"{self.url}/graphql", json=query, auth=("api", self.key))

        viewer = None
        try:
            answer = within(base.PREFLIGHT_SECONDS, self.where, ask)
            if answer.status_code not in (401, 403):
                answer.raise_for_status()
                viewer = answer.json()["data"]["viewer"]
        except (requests.JSONDecodeError, KeyError, TypeError):
            raise WorkloadError(f"{self.where} is no W&B server; check WANDB_BASE_URL") from None
        except requests.RequestException as error:
            raise WorkloadError(
                f"{self.where} cannot be used ({reason(error)}); check WANDB_BASE_URL and that "
                "traffic to it is allowed"
            ) from error
        if not viewer:
            raise WorkloadError(
                f"{self.where} refuses the API key (HTTP {answer.status_code}); put a valid key "
                "into the Secret"
            )
        self.entity = self.entity or viewer["entity"]
        os.environ.update(
            WANDB_BASE_URL=self.url,
            WANDB_API_KEY=self.key,
            WANDB_ENTITY=self.entity,
            WANDB_PROJECT=self.project,
            WANDB_MODE="online",
            WANDB_SILENT="true",
            WANDB_ERROR_REPORTING="false",
        )
        # Stderr is for one line of ours: there, it is stdout.
        return ProcessPoolExecutor(1, get_context("spawn"), os.dup2, (1, 2))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "child": None}

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method, in the child; an error of the SDK becomes one clear line."""
        self.sdk = import_module("wandb")
        try:
            return getattr(self, name)(*arguments)
        except Exception as error:
            if self.sdk.run:
                self.sdk.run.finish(exit_code=1)
            if isinstance(error, WorkloadError):
                raise
            place = f"{self.where}, project {self.entity}/{self.project}"
            raise WorkloadError(f"{place}: {name} failed: {one_line(error, 300)}") from error

    def start(
        self, job_type: str, config: dict[str, Any], run_id: str | None = None, notes: str = ""
    ) -> Any:
        """Return an open run, that with the id if there is one, called as the pipeline's."""
        options = {"job_type": job_type, "config": config, "id": run_id, "resume": "allow"}
        options |= {"name": config.get("run_id"), "notes": notes or None}
        settings = {"console": "off", "x_disable_stats": True}
        return self.sdk.init(**options, allow_val_change=True, settings=settings)

    @in_child()
    def upload(self, model_name: str, package: Package) -> dict[str, Any]:
        """Log metrics and plots in the run of the training, and the files as a new version.

        W&B makes no version of files that it has: that of an earlier try is taken over.
        """
        config = {**package.params, **package.tags}
        run = self.start("upload-model", config, package.tracking_run or None, package.description)
        for point in () if package.tracking_run else package.history:
            self.log(run.id, int(point["step"]), point)
        run.log({path.stem: self.sdk.Image(str(path)) for path in package.plots})
        run.summary.update(package.metrics)
        metadata = {"metrics": package.metrics, **package.tags}
        artifact = self.sdk.Artifact(model_name, "model", package.description, metadata)
        for path in package.files:
            # Nobody changes the files meanwhile. Without these two, the SDK makes one copy before
            # it sends them and one after.
            name = str(path.relative_to(package.directory))
            artifact.add_file(str(path), name, policy="immutable", skip_cache=True)
        known = self.known(run.log_artifact(artifact).wait())
        run.finish()
        return known

    @in_child()
    def find(self, ref: ModelRef) -> dict[str, Any]:
        return self.known(self.artifact(ref))

    @in_child()
    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        artifact = self.artifact(ref)
        require_space({directory.parent: artifact.size})
        run = self.start("load-model", {"model": str(ref), **of_this_run()})
        run.use_artifact(artifact)
        # Out of the cache, a damaged file would come again.
        artifact.download(str(directory), skip_cache=True)
        # The SDK checks what it sends, not what it receives.
        artifact.verify(str(directory))
        run.finish()
        return self.known(artifact)

    @in_child()
    def mark(self, ref: ModelRef, tags: dict[str, str], alias: str = "") -> None:
        artifact = self.artifact(ref)
        artifact.metadata.update(tags)
        artifact.save()
        if alias and self.registry:
            artifact.link(f"wandb-registry-{self.registry}/{ref.name}", aliases=[alias])
        if alias:
            artifact.aliases.append(alias)  # The version that has it loses it.
            artifact.save()

    @in_child(TRACKING_SECONDS)
    def track(self, params: dict[str, Any], tags: dict[str, str]) -> str:
        run_id = None
        if "run_id" in tags:
            run_id = hashlib.sha256(f"{tags['dag_id']}/{tags['run_id']}".encode()).hexdigest()[:16]
            earlier = found(lambda: self.sdk.Api().run(f"{self.entity}/{self.project}/{run_id}"))
            if earlier and earlier.state == "finished":
                run_id = None  # The run of the pipeline was cleared after a whole training.
        return self.start("train-model", {**params, **tags}, run_id, run_page(tags)).id

    @in_child(TRACKING_SECONDS)
    def run_url(self, run_id: str) -> str:
        return self.sdk.run.url

    @in_child(TRACKING_SECONDS)
    def log(self, run_id: str, step: int, metrics: dict[str, float]) -> None:
        point = metrics | {"step": step}
        self.sdk.run.log({f"curve/{name}": value for name, value in point.items()})

    @in_child(TRACKING_SECONDS)
    def finish(self, run_id: str, status: str) -> None:
        self.sdk.run.finish(exit_code=int(status != "FINISHED"))

    def known(self, artifact: Any) -> dict[str, Any]:
        """Return what `find` returns."""
        run, name = artifact.logged_by(), artifact.name.partition(":")[0]
        project, _, _ = run.url.partition("/runs/") if run else ("", "", "")
        return {
            "name": name,
            "version": artifact.version,
            "uri": artifact.source_qualified_name,
            "run_url": run.url if run else "",
            # The SDK would ask the server for it.
            "version_url": f"{project}/artifacts/model/{name}/{artifact.version}" if run else "",
            "tags": {key: one for key, one in artifact.metadata.items() if isinstance(one, str)},
        }

    def artifact(self, ref: ModelRef) -> Any:
        """Return the artifact that a reference means; raise WorkloadError with what there is."""
        api, project = self.sdk.Api(), f"{self.entity}/{self.project}"
        path = f"{project}/{ref.name}"
        alias = ref.alias if ref.version is None else f"v{ref.version}"
        if artifact := found(lambda: api.artifact(f"{path}:{alias}", "model")):
            return artifact
        models = found(lambda: [one.name for one in api.artifact_collections(project, "model")])
        if ref.name not in (models or ()):
            raise base.unknown_model(f"W&B project {project}", ref, models or ())
        there = [base.LATEST]
        for one in api.artifacts("model", path):
            there += [one.version, *one.aliases]
        raise base.unknown_alias("W&B", ref, dict.fromkeys(there))


def found(call: Callable[[], Any]) -> Any | None:
    """Return what a call of the SDK finds, None when the server says that it is not there."""
    try:
        return call()
    except Exception as error:
        # It is a ValueError, which the SDK may wrap.
        if not isinstance(getattr(error, "exc", error), ValueError):
            raise
        return None
