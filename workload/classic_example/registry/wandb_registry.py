"""Weights & Biases: a run per upload with metrics and plots, and the model as an artifact."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from classic_example.errors import WorkloadError, one_line, reason, scrub
from classic_example.lineage import of_this_run
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
from classic_example.space import require_space

T = TypeVar("T")
logger = logging.getLogger(__name__)

ARTIFACT_TYPE = "model"
PUBLIC_SERVER = "https://api.wandb.ai"
# The SDK repeats what fails, some calls for days, and waits for a silent server without a limit.
# So the server is asked meanwhile whether it is still there; two questions in a row without an
# answer end the command, 18 s after the last sign of life. That leaves these limits to servers
# that answer and still do not get on, and to nodes where everything is slow.
PULSE_SECONDS = 4
MISSES = 2
# To start a run, and to look for an artifact.
CALL_SECONDS = 60
TRANSFER_SECONDS = 900
# A storage that stops in the middle of a file: the SDK sends the file again.
STORAGE_SECONDS = 60
# On a busy node the SDK finds its own process deaf at first.
SETUP_TRIES = 5
# For the news that a run has failed.
CLOSE_SECONDS = 5
# In these modes the SDK reports success while nothing leaves the container.
SILENT_MODES = ("offline", "disabled", "dryrun")


class ServerSilentError(WorkloadError):
    """The server has stopped answering: there is nobody to tell anything."""


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
        try:
            answer = self.ask(PREFLIGHT_SECONDS)
        except requests.Timeout as error:
            raise WorkloadError(
                f"W&B at {address} did not answer within {PREFLIGHT_SECONDS:.0f} s"
            ) from error
        except requests.RequestException as error:
            raise WorkloadError(
                f"W&B at {address} cannot be reached ({reason(error)}); "
                "check WANDB_BASE_URL and that traffic to it is allowed"
            ) from error
        self.check_key(answer)
        if answer.status_code != 200:
            raise WorkloadError(f"W&B at {address} answers with HTTP {answer.status_code}")
        try:
            viewer = answer.json()["data"]["viewer"]
        except (ValueError, KeyError, TypeError):
            raise WorkloadError(f"{address} is no W&B server; check WANDB_BASE_URL") from None
        if not viewer:
            raise WorkloadError(f"W&B at {address} does not know the API key")
        self.entity = self.entity or viewer.get("entity") or ""

    def ask(self, seconds: float) -> Any:
        """Return the server's answer to the question whose key this is, within `seconds`."""
        import requests

        def send() -> requests.Response:
            return requests.post(
                f"{self.base_url}/graphql",
                json={"query": "query Viewer { viewer { id entity } }"},
                auth=("api", self.api_key),
                timeout=seconds,
            )

        return within(seconds, f"W&B at {scrub(self.base_url)}", send)

    def check_key(self, answer: Any) -> None:
        """Raise WorkloadError when an answer says that the key is not accepted."""
        if answer.status_code in (401, 403):
            raise self.refused_key(answer.status_code)

    def refused_key(self, status: int) -> WorkloadError:
        """Return the error for a key that the server does not accept."""
        return WorkloadError(
            f"W&B at {scrub(self.base_url)} refuses the API key (HTTP {status}); "
            "put a valid key into the Secret"
        )

    @contextmanager
    def failures(self, what: str) -> Iterator[None]:
        """Turn the SDK's errors into one clear line."""
        import requests
        import wandb

        try:
            yield
        except WorkloadError:
            raise
        except (wandb.errors.Error, requests.RequestException, ValueError, TimeoutError) as error:
            # What the SDK says of a refusal is long and is about a person at a terminal.
            text = one_line(error, 2000)
            if "API key you provided" in text:
                raise self.refused_key(401) from error
            if "do not have permission" in text or "Permission denied" in text:
                raise WorkloadError(
                    f"W&B refuses the {what}: project {self.path} is not there for this key; "
                    "check wandb.entity and wandb.project, and what the key's owner may do"
                ) from error
            raise WorkloadError(f"W&B failed during the {what}: {one_line(error, 300)}") from error

    @property
    def path(self) -> str:
        """The project with its owner, as W&B writes it."""
        return f"{self.entity}/{self.project}"

    def pulse(self) -> Callable[[], None]:
        """Return a check that raises WorkloadError once the server is silent or takes no key."""
        import requests

        heard, misses = time.monotonic(), 0

        def check() -> None:
            nonlocal heard, misses
            try:
                answer = self.ask(PULSE_SECONDS)
            except (requests.RequestException, WorkloadError):
                misses += 1
                if misses == MISSES:
                    silent = time.monotonic() - heard
                    raise ServerSilentError(
                        f"W&B at {scrub(self.base_url)} has stopped answering ({silent:.0f} s)"
                    ) from None
                return
            self.check_key(answer)
            heard, misses = time.monotonic(), 0
            if answer.status_code != 200:
                logger.info("W&B answers with HTTP %d; trying again", answer.status_code)

        return check

    def while_there(self, seconds: float, what: str, call: Callable[[], T]) -> T:
        """Return `call()`, which may take `seconds` while the server is there."""
        return within(seconds, f"W&B at {scrub(self.base_url)}: {what}", call, self.pulse())

    def transfer(self, call: Callable[[], T]) -> T:
        """Return `call()`, which moves files."""
        return self.while_there(TRANSFER_SECONDS, "moving the files", call)

    def sdk(self) -> Any:
        """Return the wandb module, set up to be quiet and to stay with this server."""
        os.environ.update(
            WANDB_BASE_URL=self.base_url,
            # Without the line feed that a file made by an editor ends in: the SDK refuses it.
            WANDB_API_KEY=self.api_key,
            WANDB_FILE_PUSHER_TIMEOUT=str(STORAGE_SECONDS),
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
            set_up(wandb)
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
                    # Later than ours: the SDK's does not say what was in the way.
                    "init_timeout": 2 * CALL_SECONDS,
                    "_disable_stats": True,
                },
            )

        return self.while_there(CALL_SECONDS, "starting a run", start)

    def upload(self, model_name: str, package: Package) -> Uploaded:
        """Log a run with metrics and plots, and the model's files as a new artifact version."""
        self.check_access()
        wandb = self.sdk()
        with self.failures("upload"):
            run = self.start_run(wandb, "upload-model", {**package.params, **package.tags})
            with closed(run), heartbeat(f"sending {len(package.files)} files to W&B"):
                artifact = self.transfer(lambda: send(wandb, run, model_name, package))
                self.transfer(run.finish)
            version, run_url = artifact.version, run.url
        logger.info("registered %s version %s", model_name, version)
        return Uploaded(
            registry=self.name,
            name=model_name,
            version=version,
            uri=f"{self.path}/{model_name}:{version}",
            run_url=run_url or "",
        )

    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        """Fetch the files of an artifact version, as a run that uses it."""
        self.check_access()
        wandb = self.sdk()
        with self.failures("load"):
            artifact = self.while_there(
                CALL_SECONDS, "looking for the model", lambda: self.find(wandb, ref)
            )
            logger.info("%s is version %s", ref, artifact.version)
            # Adding it up fetches the list of files.
            size = self.while_there(CALL_SECONDS, "asking for its size", lambda: artifact.size)
            require_space({directory.parent: size})
            run = self.start_run(wandb, "load-model", {"model": str(ref), **of_this_run()})
            with closed(run), heartbeat(f"receiving {ref.name} version {artifact.version}"):
                self.transfer(lambda: receive(run, artifact, ref, directory))
                self.transfer(run.finish)
            logged_by = artifact.logged_by()
        tags = {key: value for key, value in artifact.metadata.items() if isinstance(value, str)}
        return {
            "name": ref.name,
            "version": artifact.version,
            "uri": f"{self.path}/{ref.name}:{artifact.version}",
            "run_url": logged_by.url if logged_by else "",
            "tags": tags,
        }

    def find(self, wandb: Any, ref: ModelRef) -> Any:
        """Return the artifact that a reference means.

        Raises:
            WorkloadError: there is none; the message lists what there is.
        """
        set_up(wandb)
        api = wandb.Api()
        project = self.path
        alias = ref.alias if ref.version is None else f"v{ref.version}"
        try:
            return api.artifact(f"{project}/{ref.name}:{alias}", type=ARTIFACT_TYPE)
        except (wandb.errors.CommError, ValueError) as error:
            if not says_not_found(error):
                raise
        models = collection_names(wandb, api, project)
        if ref.name not in models:
            raise unknown_model(f"W&B project {project}", ref, models)
        known = [LATEST]
        for artifact in api.artifacts(ARTIFACT_TYPE, f"{project}/{ref.name}"):
            known += [artifact.version, *(one for one in artifact.aliases if one != LATEST)]
        raise unknown_alias("W&B", ref, dict.fromkeys(known))


def set_up(wandb: Any) -> None:
    """Start the SDK's own process, once, with stdout for all that it has to say."""
    from wandb.sdk.wandb_manager import ManagerConnectionRefusedError

    with stderr_to_stdout():
        for _ in range(SETUP_TRIES):
            # The process tells its port a moment before it listens there.
            with suppress(ManagerConnectionRefusedError):
                wandb.setup()
                return
            time.sleep(1)
        wandb.setup()


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


def send(wandb: Any, run: Any, model_name: str, package: Package) -> Any:
    """Log everything that belongs to a model and return the artifact, once it is a version."""
    log_numbers(wandb, run, package)
    artifact = wandb.Artifact(
        model_name,
        type=ARTIFACT_TYPE,
        metadata={"metrics": package.metrics, **package.tags},
    )
    for path in package.files:
        # Nobody changes the files meanwhile. Without these two, the SDK makes one copy before it
        # sends them and one after.
        artifact.add_file(
            str(path),
            name=str(path.relative_to(package.directory)),
            policy="immutable",
            skip_cache=True,
        )
    run.log_artifact(artifact)
    return artifact.wait()


def receive(run: Any, artifact: Any, ref: ModelRef, directory: Path) -> None:
    """Fetch an artifact's files as a run that uses it, and check them against the manifest.

    Raises:
        WorkloadError: a file is not what was uploaded.
    """
    from wandb.env import get_cache_dir

    run.use_artifact(artifact)
    artifact.download(root=str(directory))
    try:
        # The SDK checks what it sends, not what it receives.
        artifact.verify(root=str(directory))
    except ValueError as error:
        # By now it is in the SDK's cache, from where the next attempt would take it.
        shutil.rmtree(get_cache_dir() / "artifacts", ignore_errors=True)
        raise WorkloadError(f"{ref} in wandb is damaged: {one_line(error)}") from None


@contextmanager
def stderr_to_stdout() -> Iterator[None]:
    """Let processes that the block starts have stdout for both: stderr is for one line of ours."""
    kept = os.dup(2)
    os.dup2(1, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def closed(run: Any) -> Iterator[None]:
    """Show a run as failed when the block fails, if the server still listens."""
    try:
        yield
    except ServerSilentError:
        raise
    except BaseException:
        with suppress(Exception):
            within(CLOSE_SECONDS, "W&B", lambda: run.finish(exit_code=1))
        raise


def log_numbers(wandb: Any, run: Any, package: Package) -> None:
    """Log the training curve, the final metrics and the plots."""
    run.define_metric("curve/*", step_metric="curve/step")
    for point in package.history:
        run.log({f"curve/{name}": value for name, value in point.items() if name != "steps"})
    run.log({path.stem: wandb.Image(str(path)) for path in package.plots})
    run.summary.update(package.metrics)
