"""As much of MLflow's REST API as the chart's janitor calls, with state that a test can see.

A stand-in: what the real server does with these calls is tested in tests/workload.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

PAGE = 2
"""Entries of a page: so few that every search has several."""

Json = dict[str, Any]


@dataclass
class MlflowState:
    """What the server holds: one model and one experiment."""

    model: str = "airflow-pipeline"
    experiment: str = "ml-pipelines"
    runs: dict[str, Json] = field(default_factory=dict)
    versions: dict[int, Json] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    """Logged model -> its run."""
    aliases: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    """Path below the artifacts' root -> bytes."""
    refuse: Callable[[str, str], int] = lambda method, path: 0
    """HTTP status to answer a call with in place of doing it, 0: do it."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def add_run(self, run_id: str, *, status: str = "FINISHED", changed: float = 0) -> None:
        """Add a run with a model of 1,000 bytes and a plot; ``changed`` in seconds since 1970."""
        self.runs[run_id] = {
            "info": {
                "run_id": run_id,
                "experiment_id": "7",
                "status": status,
                "lifecycle_stage": "active",
                "start_time": int(changed * 1000),
                "artifact_uri": f"mlflow-artifacts:/7/{run_id}/artifacts",
            },
            "data": {"tags": [{"key": "model_name", "value": self.model}]},
        }
        # As of an upload before 2026-12 and one after it, so that both are seen to go.
        self.models[f"m-{run_id}"] = run_id
        self.files[f"7/models/m-{run_id}/artifacts/model/model.safetensors"] = 800
        self.files[f"7/models/m-{run_id}/artifacts/MLmodel"] = 90
        self.files[f"7/{run_id}/artifacts/model/inner/config.json"] = 110
        self.files[f"7/{run_id}/artifacts/plots/curve.png"] = 50

    def add_version(self, number: int, run_id: str = "", stage: str = "None") -> None:
        """Add a version of the model, and the finished run ``run<number>`` unless one is given."""
        if not run_id:
            run_id = f"run{number}"
            self.add_run(run_id)
        self.versions[number] = {
            "name": self.model,
            "version": str(number),
            "run_id": run_id,
            "current_stage": stage,
        }

    def add_versions(self, *numbers: int) -> None:
        """Add versions, each of a finished run of its own."""
        for number in numbers:
            self.add_version(number)

    def tag(self, run_id: str, key: str = "ml_pipelines.model_files") -> str | None:
        """Return a tag of a run."""
        found = {tag["key"]: tag["value"] for tag in self.runs[run_id]["data"]["tags"]}
        return found.get(key)

    def with_models(self) -> set[str]:
        """Return the runs whose model files are there."""
        runs = {path.split("/")[1] for path in self.files if "/artifacts/model/inner" in path}
        assert {f"m-{run_id}" for run_id in runs} == {
            path.split("/")[2] for path in self.files if path.startswith("7/models/")
        }
        return runs


def _page(key: str, entries: list[Json], token: str) -> Json:
    start = int(token or 0)
    answer: Json = {key: entries[start : start + PAGE]}
    if start + PAGE < len(entries):
        answer["next_page_token"] = str(start + PAGE)
    return answer


def _chosen(run: Json, wanted: str) -> bool:
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    unfinished = "attributes.status != 'FINISHED'" in wanted
    marked = "tags.`ml_pipelines.model_files` = 'deleting'" in wanted
    assert unfinished != marked, wanted
    assert f"tags.model_name = '{tags['model_name']}'" in wanted
    if run["info"]["lifecycle_stage"] != "active":
        return False
    if unfinished:
        return run["info"]["status"] != "FINISHED"
    return tags.get("ml_pipelines.model_files") == "deleting"


def _answer(state: MlflowState, method: str, path: str, given: Json) -> Json | None:
    """Do what a call asks for; None: there is no such thing."""
    if (method, path) == ("GET", "mlflow/model-versions/search"):
        assert given["filter"] == f"name='{state.model}'"
        entries = list(state.versions.values())
        return _page("model_versions", entries, given.get("page_token", ""))
    if (method, path) == ("GET", "mlflow/registered-models/get"):
        aliases = [{"alias": a, "version": str(v)} for a, v in state.aliases.items()]
        return {"registered_model": {"name": state.model, "aliases": aliases}}
    if (method, path) == ("GET", "mlflow/experiments/get-by-name"):
        there = given["experiment_name"] == state.experiment
        return {"experiment": {"experiment_id": "7"}} if there else None
    if (method, path) == ("POST", "mlflow/runs/search"):
        assert given["experiment_ids"] == ["7"]
        chosen = [run for run in state.runs.values() if _chosen(run, given["filter"])]
        return _page("runs", chosen, given.get("page_token", ""))
    if (method, path) == ("GET", "mlflow/runs/get"):
        run = state.runs.get(given["run_id"])
        return {"run": run} if run else None
    if (method, path) == ("POST", "mlflow/runs/set-tag"):
        tags = state.runs[given["run_id"]]["data"]["tags"]
        tags[:] = [tag for tag in tags if tag["key"] != given["key"]]
        tags.append({"key": given["key"], "value": given["value"]})
        return {}
    if (method, path) == ("POST", "mlflow/runs/update"):
        state.runs[given["run_id"]]["info"]["status"] = given["status"]
        return {}
    if (method, path) == ("DELETE", "mlflow/model-versions/delete"):
        return {} if state.versions.pop(int(given["version"]), None) else None
    if (method, path) == ("POST", "mlflow/logged-models/search"):
        assert given["experiment_ids"] == ["7"]
        return _page("models", _logged(state, given["filter"]), given.get("page_token", ""))
    if method == "DELETE" and path.startswith("mlflow/logged-models/"):
        return {} if state.models.pop(path.rpartition("/")[2], None) else None
    if (method, path) == ("GET", "mlflow-artifacts/artifacts"):
        return _listed(state, given["path"])
    root = "mlflow-artifacts/artifacts/"
    if method == "DELETE" and path.startswith(root):
        gone = unquote(path.removeprefix(root)) + "/"
        state.files = {p: size for p, size in state.files.items() if not p.startswith(gone)}
        return {}
    raise AssertionError(f"nobody should call {method} {path}")


def _logged(state: MlflowState, wanted: str) -> list[Json]:
    return [
        {
            "info": {
                "model_id": model,
                "artifact_uri": f"mlflow-artifacts:/7/models/{model}/artifacts",
            }
        }
        for model, run_id in state.models.items()
        if wanted == f"source_run_id = '{run_id}'"
    ]


def _listed(state: MlflowState, path: str) -> Json:
    found: dict[str, Json] = {}
    for file, size in state.files.items():
        if not file.startswith(f"{path}/"):
            continue
        name, _, deeper = file.removeprefix(f"{path}/").partition("/")
        entry = {"path": name, "is_dir": bool(deeper)}
        found[name] = entry if deeper else {**entry, "file_size": size}
    return {"files": list(found.values())}


def serve(server: HTTPServer) -> MlflowState:
    """Have a server answer by a state of its own."""
    state = MlflowState(url=server.url_for("").rstrip("/"))

    def answer(request: Request) -> Response:
        path = request.environ["REQUEST_URI"].removeprefix("/api/2.0/").partition("?")[0]
        given = request.args.to_dict() | (request.get_json(silent=True) or {})
        state.calls.append((request.method, path))
        status, found = state.refuse(request.method, path), None
        if not status:
            found = _answer(state, request.method, path, given)
            status = 200 if found is not None else 404
        code = "RESOURCE_DOES_NOT_EXIST" if status == 404 else "INTERNAL_ERROR"
        error = {"error_code": code, "message": "said by the stand-in"}
        return Response(json.dumps(error if found is None else found), status)

    server.expect_request(re.compile("/api/2.0/")).respond_with_handler(answer)
    return state
