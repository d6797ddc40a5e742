"""MLflow: a logged model in the run that shows its training, registered as a version."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from classic_example import lineage
from classic_example.errors import WorkloadError, reason, scrub
from classic_example.files import require_space
from classic_example.progress import heartbeat, within
from classic_example.registry import base
from classic_example.registry.base import ModelRef, Package, Registry

logger = logging.getLogger(__name__)

# What the client reads from the environment, where the user has not set it: limits for an answer in
# seconds (a slow volume takes 90 MB meanwhile), and no word in the log but ours.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_VERBOSITY": "error",
}
TASK = "text-classification"
# The page of an experiment opens on its training runs, not on traces of language models.
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
# The same of pages further in, for who has not chosen yet which of MLflow's two menus to see.
VIEW = "?workflowType=machine_learning"


class MlflowRegistry(Registry):
    """The model registry of an MLflow server; of its versions the highest number is the latest."""

    name = "mlflow"

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        """Raise WorkloadError unless the address is that of a server."""
        # A file or sqlite store on a shared volume is corrupted by two pods at once.
        if not tracking_uri.startswith(("http://", "https://", "databricks")):
            raise WorkloadError(
                f"MLFLOW_TRACKING_URI={scrub(tracking_uri)} is not an http:// or https:// address; "
                "give that of the MLflow server"
            )
        self.tracking_uri, self.experiment = tracking_uri.rstrip("/"), experiment
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        with heartbeat("loading the MLflow client"):
            import mlflow
        mlflow.set_tracking_uri(self.tracking_uri)

    @contextmanager
    def server(self, what: str, first: Callable[[], Any] | None = None) -> Iterator[Any]:
        """Yield a client of the server once that has answered; its errors become one line.

        What it has to answer soon is `first`, or a question that costs it nothing.
        """
        import mlflow
        import requests

        client, where = mlflow.MlflowClient(), f"MLflow at {scrub(self.tracking_uri)}"
        # Not /health, which answers also where the host name or the credentials are refused.
        ask = partial(client.search_registered_models, max_results=1)
        hint = (
            "check MLFLOW_TRACKING_URI, that the server runs, the credentials, and that its "
            "--allowed-hosts names this address"
        )
        try:
            within(base.PREFLIGHT_SECONDS, where, first or ask)
            hint = "is the volume of the server full?" if what == "upload" else "try again"
            yield client
        except ImportError as error:
            raise WorkloadError(
                f"{where} leaves files to its clients (--no-serve-artifacts), and this image lacks "
                f"one for their place ({error}); let the server serve them, or add it"
            ) from error
        except (mlflow.exceptions.MlflowException, requests.RequestException) as error:
            raise WorkloadError(f"{where}: {what} failed ({reason(error)}); {hint}") from error

    def upload(self, model_name: str, package: Package) -> dict[str, Any]:
        with heartbeat(f"uploading {model_name} to MLflow"), self.server("upload") as client:
            there = client.search_model_versions(f"name='{model_name}'")
            if earlier := [one for one in there if package.is_version(one.tags)]:
                # Where it was killed between the two, its run is still open.
                client.set_terminated(earlier[0].run_id)
            made = earlier[0] if earlier else self.register(client, model_name, package)
            known = self.known(client, made)
        logger.info("%s is %s of %s", known["run_url"], known["version"], model_name)
        return known

    def register(self, client: Any, model_name: str, package: Package) -> Any:
        """Log a model with its metrics and plots, then register it: a version is complete."""
        import mlflow
        from huggingface_hub import ModelCard
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema
        from transformers import TextClassificationPipeline, pipelines

        # MLflow 3.17 wants the class, of which transformers 5.24 holds the name.
        pipelines.check_task(TASK)[1]["impl"] = TextClassificationPipeline
        # MLflow sends a copy.
        sizes = (path.stat().st_size for path in package.files)
        require_space({Path(tempfile.gettempdir()): sum(sizes)})
        step, card = int(package.metrics.get("steps", 0)), package.directory / "README.md"
        tags = {**package.tags, "model_name": model_name}
        run_id = self.open_run(client, package.params, tags, package.history, package.tracking_run)
        about = {"mlflow.note.content": package.description}
        with mlflow.start_run(run_id, tags={**tags, **about}):
            for path in package.plots:
                mlflow.log_artifact(str(path), "plots")
            model = mlflow.transformers.log_model(
                str(package.directory),
                name="model",
                task=TASK,
                # Columns without names: a list of texts is as good as a table.
                signature=ModelSignature(
                    Schema([ColSpec("string")]),
                    Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
                ),
                input_example=["a warm and funny film"],
                # Without +cpu and the like, which only an index of their own has.
                pip_requirements=[
                    f"{one}=={version(one).partition('+')[0]}" for one in ("torch", "transformers")
                ],
                model_card=ModelCard.load(card) if card.is_file() else None,
                # Long texts are cut, as they are here.
                model_config={"truncation": True},
                tags=tags,
            )
            mlflow.log_metrics(package.metrics, step, model_id=model.model_id)
            try:
                client.create_registered_model(model_name)
            except mlflow.exceptions.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            if not client.get_registered_model(model_name).description:
                client.update_registered_model(model_name, base.ABOUT)
            return client.create_model_version(
                model_name,
                source=f"models:/{model.model_id}",
                run_id=run_id,
                tags=package.tags,
                description=package.description,
                model_id=model.model_id,
            )

    def find(self, ref: ModelRef) -> dict[str, Any]:
        with self.server("search") as client:
            return self.known(client, find_version(client, ref))

    def download(self, ref: ModelRef, directory: Path) -> dict[str, Any]:
        """Fetch model and tokenizer of a version that `log_model` made, here or elsewhere.

        Of a version without a file MLmodel, all files.
        """
        known = self.find(ref)
        with (
            heartbeat(f"loading {ref}, which is {known['version']}"),
            self.server("load"),
            tempfile.TemporaryDirectory(dir=directory) as place,
        ):
            from mlflow.artifacts import download_artifacts

            require_space({directory.parent: size_of(known["uri"])})
            fetched = Path(download_artifacts(known["uri"], dst_path=place))
            whole = not (fetched / "MLmodel").is_file()
            for pattern in ("*",) if whole else ("model/*", "components/tokenizer/*"):
                for path in sorted(fetched.glob(pattern)):
                    if not (directory / path.name).exists():
                        path.rename(directory / path.name)
        return known

    def mark(self, ref: ModelRef, tags: dict[str, str], alias: str = "") -> None:
        with self.server("promotion") as client:
            # Once: another version may become the latest meanwhile.
            number = find_version(client, ref).version
            for key, value in tags.items():
                client.set_model_version_tag(ref.name, number, key, value)
            if alias:
                client.set_registered_model_alias(ref.name, alias, number)

    def track(self, params: dict[str, Any], tags: dict[str, str]) -> str:
        with self.server("tracking") as client:
            return self.open_run(client, params, tags)

    def run_url(self, run_id: str) -> str:
        with self.server("tracking") as client:
            return self.page_of(client, run_id)

    def log(self, run_id: str, step: int, metrics: dict[str, float]) -> None:
        with self.server("tracking", lambda: log_point(run_id, {"step": step, **metrics})):
            pass

    def finish(self, run_id: str, status: str) -> None:
        with self.server("tracking") as client:
            client.set_terminated(run_id, status)

    def open_run(
        self, client: Any, params: dict, tags: dict, history: Any = (), tracking_run: str = ""
    ) -> str:
        """Return the id of the run that tracked a training, or that of a try which was killed.

        Else that of a new run, with the parameters and the history that the others have.
        """
        import mlflow

        experiment = mlflow.set_experiment(self.experiment)
        place = experiment.experiment_id
        if EXPERIMENT_KIND[0] not in experiment.tags:
            client.set_experiment_tag(place, *EXPERIMENT_KIND)
        wanted = f"attributes.run_id = '{tracking_run}'"
        if not tracking_run:
            same = [f"tags.{key} = '{tags.get(key, '')}'" for key in ("dag_id", "run_id")]
            ended = [f"attributes.status != '{one}'" for one in ("FINISHED", "FAILED")]
            wanted = " and ".join(same + ended)
        for run in client.search_runs([place], wanted):
            # A run of the pipeline may train several models at once.
            if tracking_run or run.data.params == {key: str(params[key]) for key in params}:
                client.update_run(run.info.run_id, "RUNNING")
                return run.info.run_id
        shown = {"mlflow.note.content": page} if (page := lineage.run_page(tags)) else {}
        run = client.create_run(place, tags={**tags, **shown}, run_name=tags.get("run_id"))
        run_id = run.info.run_id
        mlflow.log_params(params, run_id=run_id)
        for point in history:
            log_point(run_id, point)
        return run_id

    def page_of(self, client: Any, run_id: str) -> str:
        """Return the address of the page of a run."""
        place = client.get_run(run_id).info.experiment_id
        return f"{scrub(self.tracking_uri)}/#/experiments/{place}/runs/{run_id}{VIEW}"

    def known(self, client: Any, version: Any) -> dict[str, Any]:
        """Return what `find` returns of a version."""
        place = f"models/{version.name}/versions/{version.version}"
        return {
            "name": version.name,
            "version": f"v{version.version}",
            "uri": f"models:/{version.name}/{version.version}",
            "run_url": self.page_of(client, version.run_id) if version.run_id else "",
            "version_url": f"{scrub(self.tracking_uri)}/#/{place}{VIEW}",
            "tags": dict(version.tags),
        }


def log_point(run_id: str, point: dict[str, float]) -> None:
    """Log a point of the training curve, with the time of now."""
    import mlflow

    values = {f"curve_{key}": point[key] for key in point if key not in ("step", "steps")}
    mlflow.log_metrics(values, int(point["step"]), run_id=run_id)


def find_version(client: Any, ref: ModelRef) -> Any:
    """Return the version that a reference means, or raise UnknownVersion."""
    found = client.search_model_versions(f"name='{ref.name}'")
    versions = {int(one.version): one for one in found if one.status == "READY"}
    if not versions:
        models = [one.name for one in client.search_registered_models()]
        raise base.unknown_model("MLflow", ref, models)
    aliases = client.get_registered_model(ref.name).aliases
    numbers = {name: int(number) for name, number in aliases.items()} | {base.LATEST: max(versions)}
    number = ref.version or numbers.get(ref.alias)
    if number not in versions:
        there = [*sorted(numbers), *(f"v{one}" for one in sorted(versions, reverse=True))]
        raise base.unknown_alias("MLflow", ref, there)
    return versions[number]


def size_of(uri: str) -> int:
    """Return the bytes of all files below an artifact directory."""
    from mlflow.artifacts import list_artifacts

    return sum(
        size_of(f"{uri}/{Path(one.path).name}") if one.is_dir else one.file_size or 0
        for one in list_artifacts(artifact_uri=uri)
    )
