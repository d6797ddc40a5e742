"""Removes by age what runs have left behind, and by number the models that are too many.

What the chart's CronJob runs; only the standard library. Three kinds of things go:

- Leftovers: everything in the directory of a run but its predictions, once nothing in there has
  changed for so many hours; and files that an upload left in MLflow without a finished version.
  A run's directory is `<label of the DAG>/<label of the run>`: what the Pod of the values makes of
  the labels that Airflow writes on it. So every directory two levels below the volume's root is a
  run's if both names could be labels, whoever's DAG and operator it was, and no list of DAGs has to
  be kept. A file `.keep` at either level says that a directory is somebody's own, and keeps it for
  ever; so does a name that is no label (`_shared`, `.snapshot`, `lost+found`).
- Predictions that are older than so many days.
- The files of model versions beyond the newest so many. Their runs stay, with metrics and plots.

What is removed is printed with its bytes. A thing that cannot be removed is printed too and makes
the status 1, after all the others had their turn.
"""

from __future__ import annotations

import argparse
import base64
import errno
import json
import os
import re
import shutil
import ssl
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What Kubernetes takes as the value of a label.
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
# Says that a directory is no run's, or not to be cleaned.
KEEP = ".keep"
# What an inference run is for. pred.csv is renamed into place whole; pred.json may be missing.
PREDICTIONS, DESCRIPTION = "pred.csv", "pred.json"

HOUR, DAY = 3600, 86400
# A server may be restarting: asked again for a minute and a half.
TRIES, PAUSE_SECONDS, ANSWER_SECONDS = 7, 15, 60
# Where versions that were made before 2026-12 have their files: below the artifacts of their run.
MODEL_PATH = "model"
# Tag of an MLflow run whose files go or have gone: what was begun is ended by the next janitor.
TAG, DELETING, DELETED = "ml_pipelines.model_files", "deleting", "deleted by the janitor"


class Failed(Exception):
    """Something could not be done; the text says what and why."""


class Refused(Failed):
    """A server has said no; ``status`` is the one of its answer."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Report:
    """Says what is removed and adds it up. In a dry run nothing is removed, only said."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.things = self.bytes = self.failures = self.empty_stay = 0

    def removed(self, what: str, size: int, why: str) -> None:
        """Tell of one thing that is gone; ``size`` in bytes."""
        self.things += 1
        self.bytes += size
        verb = "would remove" if self.dry_run else "removed"
        print(f"{verb} {what} ({size:,} bytes): {why}", flush=True)

    def failed(self, what: str, error: Exception) -> None:
        """Tell of one thing that stays although it should go."""
        self.failures += 1
        print(f"ERROR: {what}: {error}", flush=True)


# The training storage


@dataclass(frozen=True)
class Content:
    """Size in bytes and time of the newest change of a path with everything below it."""

    bytes: int
    newest: float


def content(path: Path) -> Content:
    """Return what there is. Links count as themselves, and what vanishes meanwhile as nothing."""
    size, newest, waiting = 0, 0.0, [path]
    while waiting:
        current = waiting.pop()
        try:
            status = current.lstat()
            newest = max(newest, status.st_mtime)
            if stat.S_ISDIR(status.st_mode):
                waiting += current.iterdir()
            else:
                size += status.st_size
        except FileNotFoundError:
            continue
    return Content(size, newest)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with its content. Links are not followed."""
    while True:
        try:
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
            return
        except FileNotFoundError:
            # Something below was removed by somebody else: the rest is still ours to remove.
            if not os.path.lexists(path):
                return


def directories(path: Path) -> Iterator[Path]:
    """Yield the directories in a directory, links to directories left out."""
    try:
        with os.scandir(path) as entries:
            found = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return
    yield from (path / name for name in found)


def is_kept(path: Path) -> bool:
    """Say whether a directory is marked as one that stays."""
    return os.path.lexists(path / KEEP)


def clean_storage(
    storage: Path, leftovers_hours: float, predictions_days: float, report: Report
) -> None:
    """Remove leftovers and old predictions (0 days: none) below the volume's root."""
    now = time.time()
    old_predictions = now - predictions_days * DAY if predictions_days else None
    for dag in directories(storage):
        if not LABEL.fullmatch(dag.name):
            continue
        try:
            runs = [] if is_kept(dag) else list(directories(dag))
        except OSError as error:
            report.failed(str(dag), error)
            continue
        for run in runs:
            if not LABEL.fullmatch(run.name):
                continue
            try:
                if not is_kept(run):
                    clean_run(run, now - leftovers_hours * HOUR, old_predictions, report)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    print(f"{run}: somebody writes there again, left alone", flush=True)
                else:
                    report.failed(str(run), error)


def clean_run(
    run: Path, old_leftovers: float, old_predictions: float | None, report: Report
) -> None:
    """Remove what has not changed since the given times from the directory of one run.

    A directory with any newer change is left alone altogether: its run may be at work.

    Raises OSError when something cannot be removed.
    """
    newest = content(run).newest
    if newest >= old_leftovers:
        return
    try:
        names = {path.name for path in run.iterdir()}
    except FileNotFoundError:
        return
    predictions = run / PREDICTIONS
    kept = {PREDICTIONS, DESCRIPTION} & names if is_file(predictions) else set()

    def discard(names: set[str], why: str) -> None:
        for path in (run / name for name in sorted(names)):
            size = content(path).bytes
            if not report.dry_run:
                remove(path)
            report.removed(str(path), size, why)

    age = f"unchanged for {(time.time() - newest) / HOUR:.0f} hours"
    discard(names - kept, f"left behind by a run, {age}")
    if kept:
        made = content(predictions).newest
        if old_predictions is None or made >= old_predictions:
            return
        discard(kept, f"predictions of {(time.time() - made) / DAY:.0f} days ago")
    if not report.dry_run:
        try:
            # Never with content: what a new pod has written by now stays.
            run.rmdir()
        except FileNotFoundError:
            return
        except PermissionError:
            # The kubelet has made it, as root, with the mode of the volume's root: a sticky bit
            # there lets nobody else remove it. It takes no room, so that this is no failure.
            report.empty_stay += 1
            return
    report.removed(str(run), 0, f"empty, {age}" if not names else "empty now")


def is_file(path: Path) -> bool:
    """Say whether there is a regular file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


# The model registry


def ask(
    who: str,
    request: urllib.request.Request,
    *,
    missing: Callable[[int, str], bool],
    context: ssl.SSLContext | None = None,
) -> dict[str, Any] | None:
    """Return a server's answer, None when what is asked for is `missing` by status and text.

    Raises Refused when the server refuses, Failed when it does not answer for TRIES times.
    """
    what = f"{who}, {request.method} {request.full_url}"
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS, context=context) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if missing(error.code, text):
                return None
            problem = f"HTTP {error.code}: {' '.join(text.split())[:300]}"
            if error.code < 500 and error.code != 429:
                raise Refused(f"{what}: {problem}", error.code) from error
        except (OSError, ValueError) as error:
            problem = str(getattr(error, "reason", error))
        if left:
            time.sleep(PAUSE_SECONDS)
    raise Failed(f"{what}: {problem}")


def authorization() -> str:
    """Return the header for a server behind a login, from the variables of MLflow's own client.

    https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth/
    """
    user, password, token = (
        os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD", "TOKEN")
    )
    if user:
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    return f"Bearer {token}" if token else ""


class Mlflow:
    """The REST API of an MLflow server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, /, **query: Any
    ) -> dict[str, Any] | None:
        """Return the answer, None when what is asked for does not exist.

        Raises Failed when the server refuses, or does not answer for TRIES times.
        """
        address = f"{self.url}/api/2.0/{path}"
        if query:
            address += "?" + urllib.parse.urlencode(query)
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, method=method)
        request.add_header("Content-Type", "application/json")
        if login := authorization():
            request.add_header("Authorization", login)
        return ask(
            "MLflow",
            request,
            missing=lambda status, text: status == 404 and "RESOURCE_DOES_NOT_EXIST" in text,
        )

    def pages(self, method: str, path: str, key: str, /, **fields: Any) -> list[dict[str, Any]]:
        """Return the entries of all pages of a search."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            asked = {**fields, **({"page_token": token} if token else {})}
            if method == "GET":
                answer = self.call(method, path, **asked) or {}
            else:
                answer = self.call(method, path, asked) or {}
            found += answer.get(key, [])
            token = answer.get("next_page_token", "")
            if not token:
                return found

    def tag(self, run_id: str, value: str) -> None:
        """Write on a run what became of its files."""
        self.call("POST", "mlflow/runs/set-tag", {"run_id": run_id, "key": TAG, "value": value})

    def logged_models(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what MLflow knows about the logged models of a run."""
        info = run["info"]
        found = self.pages(
            "POST",
            "mlflow/logged-models/search",
            "models",
            experiment_ids=[info["experiment_id"]],
            filter=f"source_run_id = '{info['run_id']}'",
        )
        return [model["info"] for model in found]

    def size(self, path: str) -> int:
        """Return the bytes of a directory of the artifacts, 0 when there is none."""
        answer = self.call("GET", "mlflow-artifacts/artifacts", path=path) or {}
        return sum(
            self.size(f"{path}/{one['path']}") if one.get("is_dir") else int(one["file_size"])
            for one in answer.get("files", [])
        )

    def delete_files(self, path: str) -> None:
        """Delete a directory from where the server keeps artifacts; it need not be there.

        The call that `mlflow gc` makes: deleting a version or a run through the API only marks it,
        and frees nothing.
        """
        self.call("DELETE", f"mlflow-artifacts/artifacts/{urllib.parse.quote(path)}")


def files_paths(run: dict[str, Any], models: list[dict[str, Any]]) -> list[str]:
    """Return the paths of a run's and its models' files among the artifacts that the server serves.

    Plots and whatever else is beside them stay with the metrics. Raises Failed when the files are
    elsewhere.
    """
    paths = []
    for root in [
        f"{run['info']['artifact_uri']}/{MODEL_PATH}",
        *(m["artifact_uri"] for m in models),
    ]:
        uri = urllib.parse.urlsplit(root)
        if uri.scheme != "mlflow-artifacts":
            raise Failed(
                f"the files of MLflow run {run['info']['run_id']} are at {uri.scheme}://..., which "
                "the server does not serve and cannot delete: set janitor.models.keepVersions to 0 "
                "and remove models where they are kept"
            )
        paths.append(uri.path.strip("/"))
    return paths


def tags(run: dict[str, Any]) -> dict[str, str]:
    """Return the tags of an MLflow run."""
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def clean_registry(
    mlflow: Mlflow,
    model: str,
    experiment: str,
    keep_versions: int,
    leftovers_hours: float,
    report: Report,
) -> None:
    """Remove versions beyond the newest ``keep_versions`` (0: none) and files of broken uploads.

    Raises Failed.
    """
    versions = mlflow.pages(
        "GET", "mlflow/model-versions/search", "model_versions", filter=f"name='{model}'"
    )
    surplus = surplus_versions(mlflow, model, versions, keep_versions) if keep_versions else []
    for version in surplus:
        versions.remove(version)
        remove_version(mlflow, version, {one.get("run_id") for one in versions}, report)

    found = mlflow.call("GET", "mlflow/experiments/get-by-name", experiment_name=experiment)
    if found is None:
        return
    used = {version.get("run_id") for version in versions}
    before = (time.time() - leftovers_hours * HOUR) * 1000
    for condition in ("attributes.status != 'FINISHED'", f"tags.`{TAG}` = '{DELETING}'"):
        runs = mlflow.pages(
            "POST",
            "mlflow/runs/search",
            "runs",
            experiment_ids=[found["experiment"]["experiment_id"]],
            filter=f"tags.model_name = '{model}' and {condition}",
            max_results=1000,
        )
        for run in runs:
            info, tag = run["info"], tags(run).get(TAG)
            changed = max(int(info.get("start_time", 0)), int(info.get("end_time", 0)))
            begun = tag == DELETING or (tag is None and changed < before)
            if begun and info["run_id"] not in used:
                remove_files(mlflow, run, "left behind by an upload that broke off", report)


def surplus_versions(
    mlflow: Mlflow, model: str, versions: list[dict[str, Any]], keep: int
) -> list[dict[str, Any]]:
    """Return the versions beyond the newest ``keep``, oldest first.

    Never one that has an alias or a stage, nor the one that it was promoted over, which `make
    rollback` goes back to, and never one that no run of a pipeline has made.
    """
    registered = mlflow.call("GET", "mlflow/registered-models/get", name=model) or {}
    aliases = registered.get("registered_model", {}).get("aliases", [])
    named = {str(alias["version"]) for alias in aliases}
    named |= {
        tags({"data": one}).get("promoted_over", "").removeprefix("v")
        for one in versions
        if str(one["version"]) in named
    }
    newest_first = sorted(versions, key=lambda one: int(one["version"]), reverse=True)
    return [
        one
        for one in reversed(newest_first[keep:])
        if str(one["version"]) not in named
        and one.get("current_stage", "None") in ("", "None")
        and one.get("run_id")
    ]


def remove_version(
    mlflow: Mlflow, version: dict[str, Any], used: set[str | None], report: Report
) -> None:
    """Delete a version, and its run's files unless a run in ``used`` is the same.

    The version goes before the files: one that exists is complete. The run is marked before
    either, so that files without a version are found by the next janitor.
    """
    name = f"{version['name']} version {version['version']}"
    answer = mlflow.call("GET", "mlflow/runs/get", run_id=version["run_id"])
    run = answer["run"] if answer and version["run_id"] not in used else None
    # The files of a run that somebody has deleted are for `mlflow gc`; it takes no tag either.
    if run is not None and run["info"].get("lifecycle_stage") == "deleted":
        run = None
    if run is not None:
        files_paths(run, mlflow.logged_models(run))
    if not report.dry_run:
        if run is not None:
            mlflow.tag(version["run_id"], DELETING)
        body = {"name": version["name"], "version": str(version["version"])}
        mlflow.call("DELETE", "mlflow/model-versions/delete", body)
    report.removed(name, 0, "beyond the number of versions to keep")
    if run is not None:
        remove_files(mlflow, run, f"files of {name}", report)


def remove_files(mlflow: Mlflow, run: dict[str, Any], why: str, report: Report) -> None:
    """Delete the models of a run and write that on it; metrics and plots stay."""
    run_id, models = run["info"]["run_id"], mlflow.logged_models(run)
    paths = files_paths(run, models)
    size = sum(map(mlflow.size, paths))
    if not report.dry_run:
        mlflow.tag(run_id, DELETING)
        for path in paths:
            mlflow.delete_files(path)
        for model in models:
            mlflow.call("DELETE", f"mlflow/logged-models/{model['model_id']}")
        if run["info"].get("status") == "RUNNING":
            # Its pod has been gone for hours, nobody else will say so.
            now = int(time.time() * 1000)
            body = {"run_id": run_id, "status": "KILLED", "end_time": now}
            mlflow.call("POST", "mlflow/runs/update", body)
        mlflow.tag(run_id, DELETED)
    report.removed(f"models of MLflow run {run_id}", size, why)


# The command line


def free(path: Path) -> str:
    """Return how much of a volume is free."""
    space = shutil.disk_usage(path)
    return f"{space.free:,} of {space.total:,} bytes are free"


def main(argv: list[str] | None = None) -> int:
    """Clean up as the arguments say and return the exit status."""
    parser = argparse.ArgumentParser(description="Remove what runs have left behind.")
    parser.add_argument("--storage", type=Path, required=True, help="root of the training storage")
    parser.add_argument("--leftovers-max-age-hours", type=float, required=True)
    parser.add_argument("--predictions-max-age-days", type=float, default=0, help="0: keep all")
    parser.add_argument("--mlflow-url", help="without it no registry is looked at")
    parser.add_argument("--model", help="name of the model in the registry")
    parser.add_argument("--experiment", help="MLflow experiment of the training runs")
    parser.add_argument("--keep-versions", type=int, default=0, help="0: keep all")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")
    wanted = parser.parse_args(argv)
    if wanted.leftovers_max_age_hours <= 0:
        parser.error("--leftovers-max-age-hours must be above 0: runs at work would lose files")
    if wanted.mlflow_url and not (wanted.model and wanted.experiment):
        parser.error("--mlflow-url needs --model and --experiment")

    report = Report(wanted.dry_run)
    hours = wanted.leftovers_max_age_hours
    try:
        clean_storage(wanted.storage, hours, wanted.predictions_max_age_days, report)
    except OSError as error:
        report.failed(str(wanted.storage), error)
    if wanted.mlflow_url:
        mlflow = Mlflow(wanted.mlflow_url)
        keep = wanted.keep_versions
        try:
            clean_registry(mlflow, wanted.model, wanted.experiment, keep, hours, report)
        except Failed as error:
            report.failed("model registry", error)
    if report.empty_stay:
        print(
            f"{report.empty_stay} empty directories stay, which only their owner may remove: take "
            "the sticky bit off the volume's root and the directories of the DAGs (chmod -t)",
            flush=True,
        )
    verb = "to remove" if report.dry_run else "removed"
    print(f"{report.things} {verb}, {report.bytes:,} bytes; {free(wanted.storage)}", flush=True)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
