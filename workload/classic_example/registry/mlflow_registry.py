"""MLflow: a run per upload, with the model's files as its artifacts, and a registered version."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from classic_example.errors import WorkloadError, one_line, reason, scrub
from classic_example.progress import heartbeat, within
from classic_example.registry.base import (
    LATEST,
    PREFLIGHT_SECONDS,
    WEIGHTS_TAG,
    ModelRef,
    Package,
    Uploaded,
    unknown_alias,
    unknown_model,
)
from classic_example.space import require_space

logger = logging.getLogger(__name__)

# Below the run's artifact root.
MODEL_PATH = "model"
PLOTS_PATH = "plots"
# A server that stops answering is noticed after 3 x 8 s. While the weights are on their way an
# answer may take longer: as long as a slow volume needs for 90 MB.
API_SECONDS = 8
ARTIFACT_SECONDS = 60
RETRIES = 2
PROBE = "/api/2.0/mlflow/registered-models/search"


class MlflowRegistry:
    """The model registry of an MLflow tracking server, spoken to over HTTP only."""

    name = "mlflow"

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self.tracking_uri = tracking_uri.rstrip("/")
        self.experiment = experiment

    @classmethod
    def from_environment(cls) -> "MlflowRegistry":
        """Return the registry at MLFLOW_TRACKING_URI.

        Raises:
            WorkloadError: it is not set or is no HTTP address.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            raise WorkloadError(
                "MLFLOW_TRACKING_URI is not set; give the address of the MLflow server"
            )
        if not uri.startswith(("http://", "https://")):
            # A file or sqlite store on a shared volume is corrupted by two pods at once.
            raise WorkloadError(
                f"MLFLOW_TRACKING_URI={scrub(uri)} is not an http:// or https:// address"
            )
        return cls(uri, os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or "ml-pipelines")

    def client(self) -> Any:
        """Return a client of the server, once that has answered.

        Raises:
            WorkloadError: the server cannot be reached, or refuses.
        """
        set_limits(API_SECONDS)
        with heartbeat("loading the MLflow client"):
            import mlflow
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

        def ask() -> Any:
            # With the credentials that all other calls use. Not /health, which answers also where
            # the host name or the credentials are refused.
            creds = get_default_host_creds(self.tracking_uri)
            return http_request(creds, PROBE, "GET", timeout=5, max_retries=0)

        address = scrub(self.tracking_uri)
        try:
            answer = within(PREFLIGHT_SECONDS, f"MLflow at {address}", ask)
        except WorkloadError:
            raise
        except Exception as error:
            raise WorkloadError(
                f"MLflow at {address} cannot be reached ({reason(error)}); "
                "check MLFLOW_TRACKING_URI and that the server runs"
            ) from error
        if answer.status_code in (401, 403):
            raise WorkloadError(
                f"MLflow at {address} refuses access with HTTP {answer.status_code}; check the "
                "credentials, and that its --allowed-hosts names this address"
            )
        if answer.status_code != 200:
            raise WorkloadError(f"MLflow at {address} answers with HTTP {answer.status_code}")
        return mlflow.MlflowClient(self.tracking_uri, self.tracking_uri)

    def upload(self, model_name: str, package: Package) -> Uploaded:
        """Log a run with metrics, parameters, plots and files, then register it as a version.

        The version comes last: one that exists is complete. One that an earlier try of this step
        has registered is taken over: its answer was lost, a second version would be the same.
        """
        client = self.client()
        with failures("upload"):
            earlier = registered_before(client, model_name, package.tags)
            if earlier is not None:
                logger.info("version %s is this run's, from an earlier try", earlier.version)
                run_url = self.run_url(
                    client.get_run(earlier.run_id).info.experiment_id, earlier.run_id
                )
                return self.uploaded(model_name, earlier, run_url)
            experiment_id = self.experiment_id(client)
            run = client.create_run(
                experiment_id,
                tags={**package.tags, "model_name": model_name},
                run_name=package.tags.get("run_id", model_name),
            )
            run_id = run.info.run_id
            try:
                log_numbers(client, run_id, package)
                with heartbeat(f"sending {len(package.files)} files to MLflow"), slow_answers():
                    for path in package.files:
                        client.log_artifact(run_id, str(path), MODEL_PATH)
                    for path in package.plots:
                        client.log_artifact(run_id, str(path), PLOTS_PATH)
                client.set_terminated(run_id, "FINISHED")
                create_model(client, model_name)
                version = client.create_model_version(
                    model_name,
                    source=f"{run.info.artifact_uri}/{MODEL_PATH}",
                    run_id=run_id,
                    tags=package.tags,
                    description=description(package),
                )
            except BaseException:
                self.mark_failed(client, run_id)
                raise
        logger.info("registered %s version %s", model_name, version.version)
        return self.uploaded(model_name, version, self.run_url(experiment_id, run_id))

    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        """Fetch the files of a version; `latest` is the one with the highest number."""
        client = self.client()
        with failures("load"):
            version = find_version(client, ref)
            logger.info("%s is version %s", ref, version.version)
            require_space({directory.parent: size_of(self.tracking_uri, version.source)})
            with heartbeat(f"receiving {ref.name} version {version.version}"), slow_answers():
                fetch_files(self.tracking_uri, version.source, directory)
            run_url = ""
            if version.run_id:
                run = client.get_run(version.run_id)
                run_url = self.run_url(run.info.experiment_id, version.run_id)
        return {
            "name": ref.name,
            "version": f"v{version.version}",
            "uri": f"models:/{ref.name}/{version.version}",
            "run_url": run_url,
            "tags": dict(version.tags),
        }

    def experiment_id(self, client: Any) -> str:
        """Return the id of the experiment, which is made when it is not there."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return client.create_experiment(self.experiment)
            except MlflowException as error:
                # Another run was faster.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(self.experiment)
        return found.experiment_id

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """Return the address of a run's page."""
        return f"{scrub(self.tracking_uri)}/#/experiments/{experiment_id}/runs/{run_id}"

    def uploaded(self, model_name: str, version: Any, run_url: str) -> Uploaded:
        """Return the result of an upload."""
        return Uploaded(
            registry=self.name,
            name=model_name,
            version=f"v{version.version}",
            uri=f"models:/{model_name}/{version.version}",
            run_url=run_url,
        )

    def mark_failed(self, client: Any, run_id: str) -> None:
        """Show the run as failed if the server still listens; the error itself is on its way."""
        try:
            within(5, "MLflow", lambda: client.set_terminated(run_id, "FAILED"))
        except Exception as error:
            logger.info("the run could not be marked as failed: %s", one_line(error, 160))


def set_limits(seconds: int) -> None:
    """Set how long the client waits for one answer; it reads the environment at each call."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(seconds)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(RETRIES)
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
    # No bar in the log, no call to the outside.
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@contextmanager
def slow_answers() -> Iterator[None]:
    """Allow longer answers while files are moved."""
    set_limits(ARTIFACT_SECONDS)
    try:
        yield
    finally:
        set_limits(API_SECONDS)


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn the client's errors into one clear line."""
    import requests
    from mlflow.exceptions import MlflowException

    # It says no more when it cannot store a file.
    hint = "; is the volume of the server full?" if what == "upload" else ""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        text = one_line(error, 300)
        raise WorkloadError(f"MLflow failed during the {what}: {text}{hint}") from error


def description(package: Package) -> str:
    """Return what the page of a version says first: how good the model is, and on what data."""
    accuracy, baseline = (package.metrics.get(f"{of}accuracy", 0) for of in ("", "baseline_"))
    data = package.tags.get("data_source", "unknown data")
    return f"held-out accuracy {accuracy:.4f} (baseline {baseline:.4f}), trained on {data}"


def log_numbers(client: Any, run_id: str, package: Package) -> None:
    """Log parameters, the training curve and the final metrics."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    last = int(package.metrics.get("steps", 0))
    metrics = [Metric(name, float(value), now, last) for name, value in package.metrics.items()]
    for point in package.history:
        metrics += [
            Metric(f"curve_{name}", float(value), now, int(point["step"]))
            for name, value in point.items()
            if name not in ("step", "steps")
        ]
    params = [Param(name, str(value)) for name, value in package.params.items()]
    # The server takes at most 1,000 metrics and 100 parameters at once.
    client.log_batch(run_id, params=params[:100])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def create_model(client: Any, name: str) -> None:
    """Make the registered model unless it is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def registered_before(client: Any, name: str, tags: dict[str, str]) -> Any | None:
    """Return the version that the same run of the pipeline made of the same weights, if any."""
    same = {key: tags.get(key) for key in ("dag_id", "run_id", WEIGHTS_TAG)}
    if not same["run_id"]:
        return None  # A command that is run by hand.
    for version in client.search_model_versions(f"name='{name}'"):
        if version.status == "READY" and all(version.tags.get(key) == same[key] for key in same):
            return version
    return None


def find_version(client: Any, ref: ModelRef) -> Any:
    """Return the version that a reference means.

    Raises:
        WorkloadError: there is none; the message lists what there is.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(ref.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        models = client.search_registered_models(max_results=50)
        raise unknown_model("MLflow", ref, [one.name for one in models]) from None
    versions = {
        int(one.version): one
        for one in client.search_model_versions(f"name='{ref.name}'")
        if one.status == "READY"
    }
    aliases = {name: int(number) for name, number in model.aliases.items()}
    if ref.alias == LATEST:
        number = max(versions, default=None)
    else:
        number = ref.version if ref.version is not None else aliases.get(ref.alias)
    if number not in versions:
        there = [f"v{one}" for one in sorted(versions, reverse=True)]
        raise unknown_alias("MLflow", ref, [*sorted(aliases), *([LATEST] if there else []), *there])
    return versions[number]


def size_of(tracking_uri: str, source: str) -> int:
    """Return the bytes of an artifact directory's files."""
    from mlflow.artifacts import list_artifacts

    files = list_artifacts(artifact_uri=source, tracking_uri=tracking_uri)
    return sum(file.file_size or 0 for file in files)


def fetch_files(tracking_uri: str, source: str, directory: Path) -> None:
    """Download an artifact directory's content into `directory`."""
    from mlflow.artifacts import download_artifacts

    fetched = Path(
        download_artifacts(artifact_uri=source, dst_path=str(directory), tracking_uri=tracking_uri)
    )
    if fetched != directory:
        for path in fetched.iterdir():
            path.rename(directory / path.name)
        fetched.rmdir()
