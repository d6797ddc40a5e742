"""Weights & Biases: a run per upload with metrics and plots, and the model as an artifact."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from classic_example.errors import WorkloadError, one_line, reason, scrub
from classic_example.progress import heartbeat, within
from classic_example.registry.base import (
    LATEST,
    PREFLIGHT_SECONDS,
    ModelRef,
    Package,
    Uploaded,
    unknown_alias,
    unknown_model,
)

logger = logging.getLogger(__name__)

ARTIFACT_TYPE = "model"
PUBLIC_SERVER = "https://api.wandb.ai"
# After the server has accepted the key; the SDK's own limit is 90 s.
INIT_SECONDS = 12
# Looking for an artifact takes several calls, each of which the SDK repeats for 20 s.
FIND_SECONDS = 14
TRANSFER_SECONDS = 900
# In these modes the SDK reports success while nothing leaves the container.
SILENT_MODES = ("offline", "disabled", "dryrun")


class WandbRegistry:
    """The artifacts of a W&B project."""

    name = "wandb"

    def __init__(self, base_url: str, api_key: str, project: str, entity: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.api_key = api_key
        self.project = project
        self.entity = entity

    @classmethod
    def from_environment(cls) -> "WandbRegistry":
        """Return the registry that the WANDB_* variables describe.

        Raises:
            WorkloadError: there is no key, or WANDB_MODE would lose the model.
        """
        mode = os.environ.get("WANDB_MODE", "").strip().lower()
        if mode in SILENT_MODES:
            raise WorkloadError(
                f"WANDB_MODE={mode} would keep the model inside this container; unset it"
            )
        key = os.environ.get("WANDB_API_KEY", "").strip()
        if not key:
            raise WorkloadError(
                "WANDB_API_KEY is not set; create the W&B Secret (wandb.existingSecret in the "
                "values), or use REGISTRY=mlflow"
            )
        return cls(
            os.environ.get("WANDB_BASE_URL", "").strip() or PUBLIC_SERVER,
            key,
            os.environ.get("WANDB_PROJECT", "").strip() or "ml-pipelines",
            os.environ.get("WANDB_ENTITY", "").strip(),
        )

    def check_access(self) -> None:
        """Ask the server who the key belongs to; the SDK alone would take up to 113 s to give up.

        Raises:
            WorkloadError: the server cannot be reached, refuses the key, or is no W&B server.
        """
        import requests

        address = scrub(self.base_url)

        def ask() -> requests.Response:
            return requests.post(
                f"{self.base_url}/graphql",
                json={"query": "query Viewer { viewer { id entity } }"},
                auth=("api", self.api_key),
                timeout=PREFLIGHT_SECONDS,
            )

        try:
            answer = within(PREFLIGHT_SECONDS, f"W&B at {address}", ask)
        except requests.Timeout as error:
            raise WorkloadError(
                f"W&B at {address} did not answer within {PREFLIGHT_SECONDS:.0f} s"
            ) from error
        except requests.RequestException as error:
            raise WorkloadError(
                f"W&B at {address} cannot be reached ({reason(error)}); "
                "check WANDB_BASE_URL and that traffic to it is allowed"
            ) from error
        if answer.status_code in (401, 403):
            raise WorkloadError(
                f"W&B at {address} refuses the API key (HTTP {answer.status_code}); "
                "put a valid key into the Secret"
            )
        if answer.status_code != 200:
            raise WorkloadError(f"W&B at {address} answers with HTTP {answer.status_code}")
        try:
            viewer = answer.json()["data"]["viewer"]
        except (ValueError, KeyError, TypeError):
            raise WorkloadError(f"{address} is no W&B server; check WANDB_BASE_URL") from None
        if not viewer:
            raise WorkloadError(f"W&B at {address} does not know the API key")
        self.entity = self.entity or viewer.get("entity") or ""

    def sdk(self) -> Any:
        """Return the wandb module, set up to be quiet and to stay with this server."""
        os.environ.update(
            WANDB_BASE_URL=self.base_url,
            WANDB_MODE="online",
            WANDB_SILENT="true",
            WANDB_ERROR_REPORTING="false",
        )
        # The SDK warns at every start when it cannot write to the working directory, whatever
        # WANDB_DIR says; in the image that is /app.
        home = Path(os.environ.get("WANDB_DIR", "") or tempfile.gettempdir())
        home.mkdir(parents=True, exist_ok=True)
        os.chdir(home)
        with heartbeat("loading the W&B client"):
            import wandb
        return wandb

    def start_run(self, wandb: Any, job_type: str, config: dict[str, Any]) -> Any:
        """Return a new run."""

        def start() -> Any:
            return wandb.init(
                project=self.project,
                entity=self.entity or None,
                job_type=job_type,
                config=config,
                # A dict: a Settings object looks for its directory before it knows WANDB_DIR.
                settings={
                    "console": "off",
                    "disable_code": True,
                    "disable_git": True,
                    "init_timeout": INIT_SECONDS,
                    "_disable_stats": True,
                },
            )

        address = scrub(self.base_url)
        return within(INIT_SECONDS + 3, f"W&B at {address}: starting a run", start)

    def upload(self, model_name: str, package: Package) -> Uploaded:
        """Log a run with metrics and plots, and the model's files as a new artifact version."""
        self.check_access()
        wandb = self.sdk()
        with failures("upload"):
            run = self.start_run(wandb, "upload-model", {**package.params, **package.tags})
            log_numbers(wandb, run, package)
            artifact = wandb.Artifact(
                model_name,
                type=ARTIFACT_TYPE,
                metadata={"metrics": package.metrics, **package.tags},
            )
            for path in package.files:
                artifact.add_file(str(path), name=path.name)
            with heartbeat(f"sending {len(package.files)} files to W&B"):
                run.log_artifact(artifact)
                artifact.wait(timeout=TRANSFER_SECONDS)
                version, run_url = artifact.version, run.url
                within(TRANSFER_SECONDS, "W&B", run.finish)
        logger.info("registered %s version %s", model_name, version)
        return Uploaded(
            registry=self.name,
            name=model_name,
            version=version,
            uri=f"{self.entity}/{self.project}/{model_name}:{version}",
            run_url=run_url or "",
        )

    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        """Fetch the files of an artifact version, as a run that uses it."""
        self.check_access()
        wandb = self.sdk()
        with failures("load"):
            api = wandb.Api(timeout=FIND_SECONDS + 6)
            artifact = within(
                FIND_SECONDS, f"W&B at {scrub(self.base_url)}", lambda: self.find(wandb, api, ref)
            )
            logger.info("%s is version %s", ref, artifact.version)
            run = self.start_run(wandb, "load-model", {"model": str(ref)})
            with heartbeat(f"receiving {ref.name} version {artifact.version}"):
                run.use_artifact(artifact)
                artifact.download(root=str(directory))
                within(TRANSFER_SECONDS, "W&B", run.finish)
            logged_by = artifact.logged_by()
        tags = {key: value for key, value in artifact.metadata.items() if isinstance(value, str)}
        return {
            "name": ref.name,
            "version": artifact.version,
            "uri": f"{self.entity}/{self.project}/{ref.name}:{artifact.version}",
            "run_url": logged_by.url if logged_by else "",
            "tags": tags,
        }

    def find(self, wandb: Any, api: Any, ref: ModelRef) -> Any:
        """Return the artifact that a reference means.

        Raises:
            WorkloadError: there is none; the message lists what there is.
        """
        project = f"{self.entity}/{self.project}"
        alias = ref.alias if ref.version is None else f"v{ref.version}"
        try:
            return api.artifact(f"{project}/{ref.name}:{alias}", type=ARTIFACT_TYPE)
        except (wandb.errors.CommError, ValueError) as error:
            if not says_not_found(error):
                raise
        models = collection_names(wandb, api, project)
        if ref.name not in models:
            raise unknown_model("W&B", ref, models)
        known = [LATEST]
        for artifact in api.artifacts(ARTIFACT_TYPE, f"{project}/{ref.name}"):
            known += [artifact.version, *(one for one in artifact.aliases if one != LATEST)]
        raise unknown_alias("W&B", ref, dict.fromkeys(known))


def collection_names(wandb: Any, api: Any, project: str) -> list[str]:
    """Return the names of a project's models; a project that is not there has none."""
    try:
        return [one.name for one in api.artifact_type(ARTIFACT_TYPE, project).collections()]
    except (wandb.errors.CommError, ValueError) as error:
        if not says_not_found(error):
            raise
        return []


def says_not_found(error: Exception) -> bool:
    """Return whether an SDK error means that something is not there, not that asking failed.

    The SDK raises ValueError for an empty answer and wraps it in a CommError with the cause `exc`.
    """
    cause = getattr(error, "exc", None) or error
    response = getattr(cause, "response", None)
    return isinstance(cause, ValueError) or getattr(response, "status_code", None) == 404


def log_numbers(wandb: Any, run: Any, package: Package) -> None:
    """Log the training curve, the final metrics and the plots."""
    run.define_metric("curve/*", step_metric="curve/step")
    for point in package.history:
        run.log({f"curve/{name}": value for name, value in point.items() if name != "steps"})
    run.log({path.stem: wandb.Image(str(path)) for path in package.plots})
    run.summary.update(package.metrics)


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn the SDK's errors into one clear line."""
    import requests
    import wandb

    try:
        yield
    except WorkloadError:
        raise
    except (wandb.errors.Error, requests.RequestException, ValueError, TimeoutError) as error:
        raise WorkloadError(f"W&B failed during the {what}: {one_line(error, 300)}") from error
