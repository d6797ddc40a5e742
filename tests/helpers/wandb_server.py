"""A stand-in for a Weights & Biases server: the calls that wandb 0.31.0 makes, and no others.

It is written for these tests and is not W&B. It keeps runs and artifacts of one team, checks the
API key of every call, and lets calls fail. One that it does not know is refused and listed in
`unknown`. An answer holds all that any query asks for of a thing.

In a test: `with serve(key) as server: ... server.address`. In a pod, where it needs the standard
library only: `python wandb_server.py --address http://NAME:8080 --key-file FILE`;
`GET /stand-in/summary` tells what has arrived, `GET /stand-in/health` answers, and
`POST /stand-in/key` changes the key.
"""

import argparse
import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

SDK_VERSION = "0.31.0"
TEAM = "test-team"
REGISTRY = "models"  # the only W&B Registry
NOW, SEQUENCE = "2026-01-01T00:00:00Z", {"__typename": "ArtifactSequence"}

Json = dict[str, Any]


class Refusal(Exception):
    """An error that the server answers with: HTTP status and message."""


@dataclass
class Run:
    """A run in a place, which is entity and project; `name` is its id."""

    place: tuple[str, str]
    name: str
    job_type: str = ""
    about: Json = field(default_factory=dict)
    state: str = "running"
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)  # `name:vN` of each artifact


@dataclass
class Artifact:
    """A version of the model `name`, from its announcement; it has an index once committed."""

    id: str
    place: tuple[str, str]
    name: str
    digest: str
    metadata: Json
    run: str
    aliases: set[str]
    index: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, list[str]] = field(default_factory=dict)
    """`registry/collection` that it is linked into -> aliases there."""

    @property
    def version(self) -> str:
        return f"v{self.index}"


def plain(config: Json) -> Json:
    """Return a run's config without W&B's wrapping and its own entries."""
    return {key: one["value"] for key, one in config.items() if not key.startswith("_")}


def page(nodes: list[Json]) -> Json:
    """Return a list as GraphQL's only page."""
    edges = [{"node": node, "cursor": "", "version": node.get("version")} for node in nodes]
    last = {"hasNextPage": False, "endCursor": None}
    return {"pageInfo": last, "totalCount": len(nodes), "edges": edges}


def shown_project(entity: str, project: str) -> Json:
    """Return all that the SDK asks for about a project."""
    return {"id": "1", "internalId": "1", "name": project, "entity": {"id": "1", "name": entity}}


def shown_run(run: Run) -> Json:
    """Return all that the SDK asks for about a run."""
    shown = {"__typename": "Run", "id": f"run-{run.name}", "name": run.name, "state": run.state}
    shown |= {"displayName": run.name, "tags": [], "createdAt": NOW, "projectId": 1}
    shown |= {"project": shown_project(*run.place), "config": json.dumps(run.config)}
    shown |= {"summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}"}
    shown |= {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}
    shown |= {"historyTail": json.dumps([json.dumps(one) for one in run.history[-1:]])}
    return shown | {"eventsTail": "[]", "wandbConfig": '{"t": {}}'}


class Server:
    """The state, the answers, and the switches of the stand-in."""

    def __init__(self, key: str) -> None:
        self.key, self.address = key, ""
        self.runs: dict[tuple[str, str, str], Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.unknown: list[str] = []
        self.refused = 0  # calls with a wrong key or none
        self.faults: list[tuple[str, int | str, Iterator[int]]] = []
        self.slots: dict[str, tuple[dict[str, bytes], str]] = {}
        """Addresses that were announced for a file: where it goes or is, and its name there."""
        self.lock, self.closing, self.numbers = threading.RLock(), threading.Event(), count(1)

    # What tests look at, and switches

    def versions(self, model: str) -> list[Artifact]:
        """Return the committed versions of a model, oldest first."""
        with self.lock:
            found = [one for one in self.artifacts.values() if one.name == model]
        return sorted((one for one in found if one.index is not None), key=lambda one: one.index)

    def summary(self) -> Json:
        """Return what has arrived, as JSON."""
        runs, artifacts = [], []
        with self.lock:
            for run in self.runs.values():
                runs.append(vars(run) | {"config": plain(run.config), "files": sorted(run.files)})
            for one in self.artifacts.values():
                sums = {name: hashlib.sha256(one.files[name]).hexdigest() for name in one.files}
                more = {"files": sums, "manifest": len(one.manifest), "version": one.version}
                artifacts.append(vars(one) | more | {"aliases": sorted(one.aliases)})
            seen = {"unknown": self.unknown, "refused": self.refused}
            return {"runs": runs, "artifacts": artifacts, **seen}

    def fail(self, calls: str, what: int | str, times: int = 1_000_000) -> None:
        """Let calls (a GraphQL operation, upload, download, stream) end in a status or `stall`."""
        with self.lock:
            self.faults.append((calls, what, iter(range(times, 0, -1))))

    # Helpers of the answers

    def slot(self, files: dict[str, bytes], name: str) -> str:
        """Return an address where a file is sent to and fetched from without the key."""
        path = f"/storage/{next(self.numbers)}"
        self.slots[path] = files, name
        return self.address + path

    def find(self, place: tuple[str, str], name: str) -> Artifact | None:
        """Return the version that NAME:ALIAS means in a project."""
        model, _, alias = name.partition(":")
        called = (one for one in self.versions(model) if alias in {*one.aliases, one.version})
        return next((one for one in called if one.place == place), None)

    def give(self, artifact: Artifact, aliases: set[str]) -> None:
        """Give aliases to a version; whoever had them before loses them."""
        for other in self.versions(artifact.name):
            other.aliases -= aliases
        artifact.aliases |= aliases

    def shown(self, one: Artifact) -> Json:
        """Return all that the SDK asks for about an artifact and its place in its collection."""
        nothing = dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt"))
        model = SEQUENCE | {"id": one.name, "name": one.name, **nothing}
        model |= {"project": shown_project(*one.place), "type": {"name": "model"}}
        model |= {"createdAt": NOW, "tags": page([])}
        size = sum(map(len, one.files.values()))
        shown = {"id": one.id, "version": one.version, "versionIndex": one.index, **nothing}
        shown |= {"artifactType": {"name": "model"}, "digest": one.digest, "state": "COMMITTED"}
        shown |= {"artifactSequence": model, "artifactCollection": model, "createdAt": NOW}
        shown |= {"aliases": [{"id": alias, "alias": alias} for alias in sorted(one.aliases)]}
        for alias in shown["aliases"]:
            alias["artifactCollection"] = model
        shown |= {"metadata": json.dumps(one.metadata), "size": size, "fileCount": len(one.files)}
        shown |= {"tags": [], "ttlDurationSeconds": -1, "ttlIsInherited": True}
        shown |= {"createdBy": shown_run(self.runs[*one.place, one.run])}
        shown |= {"currentManifest": {"file": {"directUrl": self.slot(one.manifest, "")}}}
        return {**shown, "artifact": shown}

    def stream(self, sent: Json, *key: str) -> Json:
        """Take what a run sends while it goes on: lines of files, and its end."""
        run = self.runs[key]
        lines = {name: one.get("content", []) for name, one in sent.get("files", {}).items()}
        run.history += [json.loads(line) for line in lines.get("wandb-history.jsonl", [])]
        for line in lines.get("wandb-summary.json", []):
            run.summary = json.loads(line)
        if sent.get("complete"):
            run.state = "finished" if sent["exitcode"] == 0 else "failed"
        return {"exitcode": None, "limits": {}}

    def graphql(self, operation: str, variables: Json) -> Json:
        """Return the data of an operation; raise Refusal for what the server does not do."""
        asked = variables.get("input") or variables
        place = tuple(asked.get(name) or asked.get(f"{name}Name") for name in ("entity", "project"))
        artifact = self.artifacts.get(asked.get("artifactID") or asked.get("id"))
        run = self.runs.get((*place, asked.get("runName") or asked.get("run") or asked.get("name")))
        match operation:
            case "Viewer":
                return {"viewer": {"id": "1", "entity": TEAM, "username": "tester"}}
            case "ServerFeaturesQuery":
                name = "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE"
                return {"serverInfo": {"features": [{"name": name, "isEnabled": True}]}}
            case "UpsertBucket":
                if place[0] != TEAM:
                    raise Refusal(404, f"entity {place[0]} not found during upsertBucket")
                inserted, run = run is None, run or Run(place, asked["name"])
                self.runs[*place, run.name] = run
                run.state, run.job_type = "running", asked["jobType"] or run.job_type
                run.about |= {key: asked[key] for key in ("displayName", "notes") if asked.get(key)}
                run.config = json.loads(asked["config"])
                return {"upsertBucket": {"bucket": shown_run(run), "inserted": inserted}}
            case "RunResumeStatus":
                return {"model": {**shown_project(*place), "bucket": run and shown_run(run)}}
            case "Run":
                return {"project": run and {"run": shown_run(run)}}
            case "CreateRunFiles":
                slots = ((name, self.slot(run.files, name)) for name in asked["files"])
                files = [{"name": name, "uploadUrl": url} for name, url in slots]
                return {"createRunFiles": {"runID": run.name, "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                return {"createArtifact": {"artifact": self.create(place, asked)}}
            case "CreateArtifactManifest":
                file = {"uploadUrl": self.slot(artifact.manifest, ""), "uploadHeaders": []}
                manifest = {"id": "1", "file": {"id": "1", **file}}
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                nodes = []
                for one in asked["artifactFiles"]:
                    files = self.artifacts[one["artifactID"]].files
                    node = {"artifact": {"id": one["artifactID"]}, "storagePath": one["name"]}
                    node |= {"uploadUrl": self.slot(files, one["name"])}
                    nodes.append(node | {"uploadHeaders": [f"Content-MD5:{one['md5']}"]})
                return {"createArtifactFiles": {"files": page(nodes)}}
            case "CommitArtifact":
                wanted = json.loads(artifact.manifest[""])["contents"]
                if missing := set(wanted) - set(artifact.files):
                    raise Refusal(400, f"the artifact lacks {', '.join(missing)}")
                self.give(artifact, artifact.aliases)
                artifact.index = len(self.versions(artifact.name))
                return {"commitArtifact": {"artifact": {"id": artifact.id}}}
            case "ArtifactByID" | "ArtifactCreatedBy" | "FetchArtifactManifest":
                return {"artifact": self.shown(artifact)}
            case "ArtifactMembershipByName" | "ArtifactType":
                there = self.find(place, asked["name"])
                shown = there and self.shown(there)
                return {"project": {"artifactCollectionMembership": shown, "artifact": shown}}
            case "ArtifactTypeArtifactCollections":
                if not any(key[:2] == place for key in self.runs):
                    return {"project": None}
                there = {one.name: one for one in self.artifacts.values() if one.place == place}
                models = [self.shown(there[name])["artifactCollection"] for name in sorted(there)]
                return {"project": {"artifactType": {"artifactCollections": page(models)}}}
            case "ProjectArtifacts":
                versions = [self.shown(one) for one in reversed(self.versions(asked["collection"]))]
                collection = SEQUENCE | {"artifacts": page(versions)}
                return {"project": {"artifactType": {"artifactCollection": collection}}}
            case "GetArtifactMembershipFileUrls":
                files = self.find(place, f"{asked['collection']}:{asked['alias']}").files
                nodes = [{"name": name, "directUrl": self.slot(files, name)} for name in files]
                member = {"artifactMembership": {"files": page(nodes)}}
                return {"project": {"artifactCollection": SEQUENCE | member}}
            case "UseArtifact":
                run.used.append(f"{artifact.name}:{artifact.version}")
                return {"useArtifact": {"artifact": self.shown(artifact)}}
            case "UpdateArtifact":
                artifact.metadata = json.loads(asked["metadata"])
                return {"result": {"artifact": self.shown(artifact)}}
            case "AddAliases":
                self.give(artifact, {one["alias"] for one in asked["aliases"]})
                return {"result": {"success": True}}
            case "FetchOrgInfoFromEntity":
                organization = {"name": "all", "orgEntity": {"name": "all"}}
                return {"entity": {"organization": organization, "user": None}}
            case "LinkArtifact":
                if place[1] != f"wandb-registry-{REGISTRY}":
                    raise Refusal(404, f"project {place[1]} not found")
                there = f"{REGISTRY}/{asked['artifactPortfolioName']}"
                artifact.links[there] = [one["alias"] for one in asked["aliases"]]
                return {"result": {"versionIndex": 0, "artifactMembership": self.shown(artifact)}}
        self.unknown.append(operation)
        raise Refusal(400, f"the stand-in does not know the operation {operation}")

    def create(self, place: tuple[str, str], asked: Json) -> Json:
        """Announce an artifact; W&B makes no new version of what its latest version is."""
        name, key = asked["artifactCollectionName"], f"artifact-{next(self.numbers)}"
        latest = self.find(place, f"{name}:latest")
        sequence = {"latestArtifact": latest and {"id": latest.id}}
        if latest and latest.digest == asked["digest"]:
            return {"id": latest.id, "state": "COMMITTED", "artifactSequence": sequence}
        known = asked["digest"], json.loads(asked["metadata"]), asked["runName"]
        aliases = {one["alias"] for one in asked["aliases"]}
        self.artifacts[key] = Artifact(key, place, name, *known, aliases)
        return {"id": key, "state": "PENDING", "artifactSequence": sequence}


class Handler(BaseHTTPRequestHandler):
    """HTTP: GraphQL, file streams, and the storage that files are sent to and fetched from."""

    state: Server

    def handle_any(self) -> None:
        """Do a call's work unless a fault is switched on for it or the key is wrong."""
        state = self.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/stand-in/key":
            state.key = body.decode().strip()
        if self.path.startswith("/stand-in/"):
            return self.send(200, state.summary() if self.path.endswith("summary") else {})
        if self.path == "/graphql":
            asked = json.loads(body)
            call = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])[1]
            key, work = True, lambda: {"data": state.graphql(call, asked.get("variables") or {})}
        elif stream := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path):
            call, key = "stream", True
            work = partial(state.stream, json.loads(body), *stream.groups())
        elif slot := state.slots.get(self.path):
            call = {"PUT": "upload", "GET": "download"}[self.command]
            key, work = False, partial(self.move, body, *slot)
        else:
            state.unknown.append(f"{self.command} {self.path}")
            return self.refuse(404, f"the stand-in does not know {self.path}")
        expected = "Basic " + base64.b64encode(f"api:{state.key}".encode()).decode()
        with state.lock:
            faults = [what for name, what, n in state.faults if name == call and next(n, None)]
        if "stall" in faults:
            state.closing.wait()
            self.close_connection = True
            return None
        if faults:
            return self.refuse(faults[0], "the stand-in was told to fail")
        if key and self.headers.get("Authorization") != expected:
            state.refused += 1
            return self.refuse(401, "user is not logged in")
        try:
            with state.lock:
                content = work()
        except Refusal as refusal:
            return self.refuse(*refusal.args)
        return self.send(200, content)

    do_GET = do_POST = do_PUT = handle_any

    def move(self, body: bytes, files: dict[str, bytes], name: str) -> Json | bytes:
        """Store what was sent, once its checksum is right, or return what was stored."""
        if self.command == "GET":
            return files[name]
        checksum = base64.b64encode(hashlib.md5(body).digest()).decode()
        if self.headers.get("Content-MD5", checksum) != checksum:
            raise Refusal(400, "the file is not what was announced")
        return files.update({name: body}) or {}

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error in GraphQL's form."""
        self.send(status, {"data": None, "errors": [{"message": message}]})

    def send(self, status: int, content: Json | bytes) -> None:
        """Answer with bytes or JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serve(key: str, host: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    """Serve until the block ends, on a free port unless one is given."""
    state = Server(key)
    http = ThreadingHTTPServer((host, port), type("BoundHandler", (Handler,), {"state": state}))
    state.address = f"http://{host}:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.closing.set()
        http.shutdown()
        http.server_close()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--address", required=True, help="what clients call this server")
    parser.add_argument("--key-file", type=Path, required=True, help="file with the API key")
    arguments = parser.parse_args()
    with serve(arguments.key_file.read_text().strip(), "0.0.0.0", arguments.port) as state:
        state.address = arguments.address
        state.closing.wait()


if __name__ == "__main__":
    main()
