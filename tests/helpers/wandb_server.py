"""A stand-in for a Weights & Biases server: the calls that wandb 0.17.4 makes, and no others.

It is written for these tests and is not W&B. It keeps runs (config, summary, history, files) and
artifacts (versions, aliases, manifests, file contents) of one team, checks the API key of every
call, and does what the tests need to see happen: answer with an error, stall, hang up, damage a
file. A call that it does not know is refused and listed in `unknown`.

In a test: `with serve() as server: ... server.address`. On its own, for a pod:

    python wandb_server.py --address http://NAME:8080 --key-file FILE

where `GET /stand-in/summary` tells what has arrived, `GET /stand-in/health` answers, and
`POST /stand-in/key` changes the key. It needs the standard library only.
"""

import argparse
import base64
import hashlib
import hmac
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SDK_VERSION = "0.17.4"
TEAM = "test-team"
FORBIDDEN_TEAM = "forbidden-team"
LONGEST_STALL = 120.0
"""Seconds after which a stalled answer ends, so that no thread outlives a test run for long."""

Variables = dict[str, Any]
Answer = dict[str, Any]


class Refusal(Exception):
    """An error that the server answers with: HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What goes wrong with matching calls: a status to answer with, or `stall`, or `hang up`."""

    calls: str
    """Regular expression for the whole name of a call: a GraphQL operation, or upload, download,
    file_stream."""
    what: int | str
    times: int | None = None
    """How many calls it meets; None: all."""
    spreads: bool = False
    """The first call that it meets is the end of the server: every later call ends alike."""
    met: float | None = None
    """When it first met a call, by the monotonic clock."""


@dataclass
class Run:
    """A run. `name` is the id in its address."""

    entity: str
    project: str
    name: str
    job_type: str | None = None
    state: str = "running"
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    """`name:vN` of each artifact that it used."""


@dataclass
class Artifact:
    """A version of a model, from the moment it is announced; visible once it is committed."""

    id: str
    entity: str
    project: str
    type: str
    collection: str
    digest: str
    metadata: dict[str, Any]
    run: str | None
    aliases: set[str]
    state: str = "PENDING"
    index: int | None = None
    manifest: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)
    created: str = field(default_factory=lambda: now())

    @property
    def version(self) -> str:
        return f"v{self.index}"


def now() -> str:
    """Return the time as W&B writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config without W&B's wrapping and its own entries."""
    values = {key: one.get("value") for key, one in config.items() if isinstance(one, dict)}
    return {key: value for key, value in values.items() if not key.startswith("_")}


class Server:
    """The state, the answers, and the switches of the stand-in."""

    def __init__(self, key: str, directory: Path) -> None:
        """`key` is the API key that is accepted; file contents go below `directory`."""
        self.key = key
        self.directory = directory
        self.address = ""
        self.runs: dict[tuple[str, str, str], Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.calls: list[str] = []
        self.unknown: list[str] = []
        self.refused = 0
        """Calls with a wrong key or none."""
        self.faults: list[Fault] = []
        self.slots: dict[str, Callable[[Path], None]] = {}
        """Announced uploads: token of the address -> what to do with the file."""
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.numbers = iter(range(1, 1_000_000))

    # What tests look at

    def versions(self, model: str, project: str | None = None) -> list[Artifact]:
        """Return the committed versions of a model, oldest first."""
        with self.lock:
            found = [
                one
                for one in self.artifacts.values()
                if one.collection == model
                and one.state == "COMMITTED"
                and project in (None, one.project)
            ]
        return sorted(found, key=lambda one: one.index or 0)

    def summary(self) -> Answer:
        """Return what has arrived, as JSON."""
        with self.lock:
            return {
                "runs": [
                    {
                        "project": run.project,
                        "name": run.name,
                        "job_type": run.job_type,
                        "state": run.state,
                        "config": plain(run.config),
                        "summary": run.summary,
                        "history": len(run.history),
                        "files": sorted(run.files),
                        "used": run.used,
                    }
                    for run in self.runs.values()
                ],
                "artifacts": [
                    {
                        "name": one.collection,
                        "version": one.version,
                        "project": one.project,
                        "aliases": sorted(one.aliases),
                        "metadata": one.metadata,
                        "run": one.run,
                        "files": {
                            name: sha256_of(path) for name, path in sorted(one.files.items())
                        },
                    }
                    for one in self.artifacts.values()
                    if one.state == "COMMITTED"
                ],
                "unknown": self.unknown,
                "refused": self.refused,
            }

    # Switches

    def fail(self, calls: str, what: int | str, **more: Any) -> Fault:
        """Let calls whose names match go wrong: a status to answer with, `stall`, or `hang up`."""
        fault = Fault(calls, what, **more)
        with self.lock:
            self.faults.append(fault)
        return fault

    def damage(self, artifact: Artifact, name: str) -> None:
        """Change one byte of a stored file; the second time, change it back."""
        path = artifact.files[name]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)

    def fault_of(self, call: str) -> int | str | None:
        """Return what goes wrong with this call, and count it."""
        with self.lock:
            self.calls.append(call)
            for fault in self.faults:
                if re.fullmatch(fault.calls, call) and fault.times != 0:
                    fault.met = fault.met or time.monotonic()
                    if fault.times is not None:
                        fault.times -= 1
                    if fault.spreads:
                        fault.calls = ".*"
                    return fault.what
        return None

    def accepts(self, authorization: str) -> bool:
        """Say whether a call carries the key, as user `api` of basic authentication."""
        expected = "Basic " + base64.b64encode(f"api:{self.key}".encode()).decode()
        good = hmac.compare_digest(authorization.encode(), expected.encode())
        with self.lock:
            self.refused += not good
        return good

    # Files

    def new_slot(self, store: Callable[[Path], None]) -> str:
        """Return an address that one file can be sent to without the key, as with signed URLs."""
        token = f"slot-{next(self.numbers)}"
        self.slots[token] = store
        return f"{self.address}/storage/{token}"

    def new_path(self) -> Path:
        """Return where the next file goes."""
        return self.directory / f"file-{next(self.numbers)}"

    def url_of(self, path: Path) -> str:
        """Return the address of a stored file; it is fetched without the key."""
        return f"{self.address}/storage/{path.name}"

    # GraphQL: one method for each operation, named after it

    def graphql(self, operation: str, variables: Variables) -> Answer:
        """Return the data of an operation.

        Raises Refusal for what the server does not do.
        """
        answer = getattr(self, f"do_{operation}", None)
        if answer is None:
            with self.lock:
                self.unknown.append(operation)
            raise Refusal(400, f"the stand-in does not know the operation {operation}")
        with self.lock:
            return answer(variables)

    def do_Viewer(self, _: Variables) -> Answer:
        viewer = {
            "id": "VXNlcjox",
            "entity": TEAM,
            "username": "tester",
            "email": "tester@example.org",
            "flags": "{}",
            "teams": {"edges": [{"node": {"name": TEAM}}]},
        }
        return {"viewer": viewer, **self.do_ServerInfo({})}

    def do_ServerInfo(self, _: Variables) -> Answer:
        versions = {"max_cli_version": SDK_VERSION, "min_cli_version": "0.10.0"}
        return {"serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None}}

    # What the SDK asks first: which fields this server knows.

    def do_ProbeServerCapabilities(self, _: Variables) -> Answer:
        return {
            "QueryType": fields("artifact", "project", "serverInfo", "viewer"),
            "MutationType": fields("createArtifact", "createRunFiles", "upsertBucket"),
            "ServerInfoType": fields("cliVersionInfo", "latestLocalVersionInfo"),
        }

    def do_ProbeServerSettings(self, _: Variables) -> Answer:
        return {"ServerSettingsType": fields("serverMessages")}

    def do_ProbeServerArtifact(self, _: Variables) -> Answer:
        return {"ArtifactInfoType": fields("ttlDurationSeconds", "ttlIsInherited")}

    def do_ProbeServerCreateArtifactInput(self, _: Variables) -> Answer:
        known = ("clientID", "enableDigestDeduplication", "sequenceClientID", "ttlDurationSeconds")
        return {"CreateArtifactInputInfoType": {"inputFields": names(known)}}

    def do_ProbeServerCreateArtifactFileSpecInput(self, _: Variables) -> Answer:
        known = ("artifactID", "artifactManifestID", "md5", "name")
        return {"CreateArtifactFileSpecInputInfoType": {"inputFields": names(known)}}

    def do_ProbeServerUseArtifactInput(self, _: Variables) -> Answer:
        return {"UseArtifactInputInfoType": {"inputFields": names(("usedAs",))}}

    # Runs

    def run_of(self, entity: str, project: str, name: str) -> Run:
        """Return a run. Raises Refusal when there is none."""
        run = self.runs.get((entity, project, name))
        if run is None:
            raise Refusal(404, f"run {entity}/{project}/{name} not found")
        return run

    def do_UpsertBucket(self, variables: Variables) -> Answer:
        entity, project = variables["entity"] or TEAM, variables["project"]
        if entity == FORBIDDEN_TEAM:
            raise Refusal(403, "permission denied")
        if entity != TEAM:
            raise Refusal(404, f"entity {entity} not found during upsertBucket")
        key = (entity, project, variables["name"])
        inserted = key not in self.runs
        run = self.runs.setdefault(key, Run(*key))
        run.job_type = variables["jobType"] or run.job_type
        if variables["config"]:
            run.config = json.loads(variables["config"])
        if variables["summaryMetrics"]:
            run.summary = json.loads(variables["summaryMetrics"])
        entity_of_project = {"id": encoded("Entity", entity), "name": entity}
        bucket = {
            "id": encoded("Run", run.name),
            "name": run.name,
            "displayName": run.name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {
                "id": encoded("Project", project),
                "name": project,
                "entity": entity_of_project,
            },
            "historyLineCount": len(run.history),
        }
        settings = {"serverMessages": []}
        return {
            "upsertBucket": {"bucket": bucket, "inserted": inserted, "serverSettings": settings}
        }

    def do_RunStoppedStatus(self, _: Variables) -> Answer:
        return {"project": {"run": {"stopped": False}}}

    def do_Run(self, variables: Variables) -> Answer:
        run = self.runs.get((variables["entity"], variables["project"], variables["name"]))
        if run is None:
            return {"project": None}
        shown = {
            **dict.fromkeys(RUN_FIELDS),
            "id": encoded("Run", run.name),
            "name": run.name,
            "displayName": run.name,
            "tags": [],
            "state": run.state,
            "jobType": run.job_type,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyLineCount": len(run.history),
            "readOnly": False,
            "createdAt": now(),
            "heartbeatAt": now(),
            "user": {"name": "Tester", "username": "tester"},
        }
        return {"project": {"run": shown}}

    def do_CreateRunFiles(self, variables: Variables) -> Answer:
        run = self.run_of(variables["entity"], variables["project"], variables["run"])

        def slot(name: str) -> str:
            return self.new_slot(lambda path: run.files.update({name: path}))

        files = [{"name": name, "uploadUrl": slot(name)} for name in variables["files"]]
        return {
            "createRunFiles": {
                "runID": encoded("Run", run.name),
                "uploadHeaders": [],
                "files": files,
            }
        }

    def stream(self, entity: str, project: str, name: str, sent: Answer) -> Answer:
        """Take what a run sends while it goes on: lines of files, and its end."""
        with self.lock:
            run = self.run_of(entity, project, name)
            files = sent.get("files", {})
            for line in files.get("wandb-history.jsonl", {}).get("content", []):
                run.history.append(json.loads(line))
            for line in files.get("wandb-summary.json", {}).get("content", []):
                run.summary = json.loads(line)
            if sent.get("complete"):
                run.state = "finished" if sent["exitcode"] == 0 else "failed"
        return {"exitcode": None, "limits": {}}

    # Artifacts

    def committed(self, entity: str, project: str, name: str) -> Artifact | None:
        """Return the version that NAME:ALIAS means, None when there is none."""
        collection, _, alias = name.partition(":")
        versions = [one for one in self.versions(collection, project) if one.entity == entity]
        return next((one for one in versions if alias in {*one.aliases, one.version}), None)

    def has_project(self, entity: str, project: str) -> bool:
        """Say whether a project is there: its first run makes it."""
        return any(key[:2] == (entity, project) for key in self.runs)

    def do_CreateArtifact(self, variables: Variables) -> Answer:
        entity, project = variables["entityName"], variables["projectName"]
        (collection,) = variables["artifactCollectionNames"]
        aliases = {one["alias"] for one in variables["aliases"]}
        latest = self.committed(entity, project, f"{collection}:latest")
        if latest and latest.digest == variables["digest"]:
            # W&B: the same content as the latest version makes no new one.
            artifact = latest
            self.give_aliases(artifact, aliases)
        else:
            artifact = Artifact(
                id=encoded("Artifact", str(next(self.numbers))),
                entity=entity,
                project=project,
                type=variables["artifactTypeName"],
                collection=collection,
                digest=variables["digest"],
                metadata=json.loads(variables["metadata"] or "{}"),
                run=variables["runName"],
                aliases=aliases,
            )
            self.artifacts[artifact.id] = artifact
        newest = {"id": latest.id, "versionIndex": latest.index} if latest else None
        sequence = {"id": encoded("ArtifactSequence", collection), "latestArtifact": newest}
        shown = {"id": artifact.id, "state": artifact.state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": shown}}

    def give_aliases(self, artifact: Artifact, aliases: set[str]) -> None:
        """Give aliases to a version; whoever had them before loses them."""
        for other in self.versions(artifact.collection, artifact.project):
            other.aliases -= aliases
        artifact.aliases |= aliases

    def do_CreateArtifactManifest(self, variables: Variables) -> Answer:
        artifact = self.artifacts[variables["artifactID"]]

        def store(path: Path) -> None:
            artifact.manifest = path

        headers = [f"Content-MD5:{variables['digest']}"] if variables["digest"] else []
        file = {
            "id": encoded("File", artifact.id),
            "name": variables["name"],
            "displayName": variables["name"],
            "uploadUrl": self.new_slot(store) if variables["includeUpload"] else None,
            "uploadHeaders": headers,
        }
        manifest = {"id": encoded("ArtifactManifest", artifact.id), "file": file}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def do_CreateArtifactFiles(self, variables: Variables) -> Answer:
        edges = []
        for wanted in variables["artifactFiles"]:
            artifact = self.artifacts[wanted["artifactID"]]

            def store(path: Path, files: dict = artifact.files, name: str = wanted["name"]) -> None:
                files[name] = path

            node = {
                "id": encoded("File", wanted["name"]),
                "name": wanted["name"],
                "displayName": wanted["name"],
                "uploadUrl": self.new_slot(store),
                "uploadHeaders": [f"Content-MD5:{wanted['md5']}"],
                "artifact": {"id": artifact.id},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def do_CommitArtifact(self, variables: Variables) -> Answer:
        artifact = self.artifacts[variables["artifactID"]]
        if artifact.manifest is None:
            raise Refusal(400, "the artifact has no manifest")
        wanted = json.loads(artifact.manifest.read_text())["contents"]
        missing = sorted(set(wanted) - set(artifact.files))
        if missing:
            raise Refusal(400, f"the artifact lacks {', '.join(missing)}")
        artifact.index = len(self.versions(artifact.collection, artifact.project))
        self.give_aliases(artifact, artifact.aliases)
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def do_UseArtifact(self, variables: Variables) -> Answer:
        artifact = self.artifacts[variables["artifactID"]]
        place = (variables["entityName"], variables["projectName"], variables["runName"])
        self.run_of(*place).used.append(f"{artifact.collection}:{artifact.version}")
        return {"useArtifact": {"artifact": self.shown(artifact)}}

    def shown(self, artifact: Artifact) -> Answer:
        """Return an artifact with all the fields that the SDK asks for."""
        assert artifact.manifest is not None
        project = {"entityName": artifact.entity, "name": artifact.project}
        collection = {"project": project, "name": artifact.collection}
        return {
            "id": artifact.id,
            "artifactSequence": collection,
            "versionIndex": artifact.index,
            "artifactType": {"name": artifact.type},
            "description": None,
            "metadata": json.dumps(artifact.metadata),
            "ttlDurationSeconds": None,
            "ttlIsInherited": True,
            "aliases": [
                {"artifactCollection": collection, "alias": alias}
                for alias in sorted({*artifact.aliases, artifact.version})
            ],
            "state": artifact.state,
            "digest": artifact.digest,
            "commitHash": artifact.digest[:20],
            "fileCount": len(artifact.files),
            "createdAt": artifact.created,
            "updatedAt": None,
            "currentManifest": {"file": {"directUrl": self.url_of(artifact.manifest)}},
            "createdBy": {"name": artifact.run, "project": project},
        }

    def do_ArtifactByIDShort(self, variables: Variables) -> Answer:
        return {"artifact": self.shown(self.artifacts[variables["id"]])}

    do_ArtifactCreatedBy = do_ArtifactByIDShort

    def do_ArtifactByName(self, variables: Variables) -> Answer:
        entity, project = variables["entityName"], variables["projectName"]
        if not self.has_project(entity, project):
            return {"project": None}
        found = self.committed(entity, project, variables["name"])
        shown = self.shown(found) if found else None
        if shown and "manifest" not in variables:
            # Only the manifest's own query gets the manifest.
            del shown["currentManifest"]
        return {"project": {"artifact": shown}}

    # Asked before an upload for the type that the name has so far.
    do_ArtifactType = do_ArtifactByName

    def do_ArtifactManifest(self, variables: Variables) -> Answer:
        return self.do_ArtifactByName({**variables, "manifest": True})

    def do_ArtifactFileURLs(self, variables: Variables) -> Answer:
        artifact = self.artifacts[variables["id"]]
        nodes = [
            {"name": name, "directUrl": self.url_of(path)} for name, path in artifact.files.items()
        ]
        return {"artifact": {"files": page(nodes)}}

    def models(self, variables: Variables) -> list[str]:
        """Return the names of the models in a project."""
        entity, project = variables["entityName"], variables["projectName"]
        found = {
            one.collection
            for one in self.artifacts.values()
            if (one.entity, one.project, one.state) == (entity, project, "COMMITTED")
        }
        return sorted(found)

    def do_ProjectArtifactType(self, variables: Variables) -> Answer:
        if not self.has_project(variables["entityName"], variables["projectName"]):
            return {"project": None}
        kind = {"id": "model", "name": "model", "description": None, "createdAt": now()}
        return {"project": {"artifactType": kind if self.models(variables) else None}}

    def do_ProjectArtifactCollections(self, variables: Variables) -> Answer:
        nodes = [
            {"id": encoded("Collection", name), "name": name, "description": None}
            for name in self.models(variables)
        ]
        return {"project": {"artifactType": {"artifactCollections": page(nodes)}}}

    def do_ArtifactCollection(self, variables: Variables) -> Answer:
        name = variables["artifactCollectionName"]
        aliases = {
            alias
            for one in self.versions(name, variables["projectName"])
            for alias in (*one.aliases, one.version)
        }
        collection = {
            "id": encoded("Collection", name),
            "name": name,
            "description": None,
            "tags": page([]),
            "aliases": page([{"alias": alias} for alias in sorted(aliases)]),
        }
        sequence = {"__typename": "ArtifactSequence"}
        kind = {"artifactCollection": collection, "artifactSequence": sequence}
        return {"project": {"artifactType": kind}}

    def do_Artifacts(self, variables: Variables) -> Answer:
        versions = self.versions(variables["collection"], variables["project"])
        listed = page([self.shown(one) for one in reversed(versions)])
        for edge, one in zip(listed["edges"], reversed(versions), strict=True):
            edge["version"] = one.version
            del edge["node"]["currentManifest"]
        collection = {"name": variables["collection"], "artifacts": listed}
        return {"project": {"artifactType": {"artifactCollection": collection}}}


RUN_FIELDS = ("commit", "description", "group", "historyKeys", "notes", "sweepName")


def names(known: tuple[str, ...]) -> list[dict[str, str]]:
    """Return fields as GraphQL's introspection lists them."""
    return [{"name": name} for name in known]


def fields(*known: str) -> Answer:
    """Return a type that has these fields."""
    return {"fields": names(known)}


def page(nodes: list[Answer]) -> Answer:
    """Return a list as GraphQL's only page."""
    return {
        "pageInfo": {"hasNextPage": False, "endCursor": None},
        "totalCount": len(nodes),
        "edges": [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)],
    }


def encoded(kind: str, name: str) -> str:
    """Return an id as W&B makes them."""
    return base64.b64encode(f"{kind}:{name}".encode()).decode()


class Handler(BaseHTTPRequestHandler):
    """HTTP: GraphQL, file streams, and the storage that files are sent to and fetched from."""

    state: Server
    body = b""

    def do_POST(self) -> None:
        """Answer GraphQL, a run's stream, or a switch."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path)
        if self.path == "/stand-in/key":
            self.state.key = self.body.decode().strip()
            return self.send_json(200, {})
        if self.path == "/graphql":
            return self.answer(self.operation(), self.graphql)
        if stream:
            return self.answer("file_stream", lambda: self.stream(*stream.groups()))
        return self.unknown()

    def do_GET(self) -> None:
        """Send a stored file, or what has arrived."""
        stored = re.fullmatch(r"/storage/(file-\d+)", self.path)
        if self.path == "/stand-in/health":
            return self.send_json(200, {})
        if self.path == "/stand-in/summary":
            return self.send_json(200, self.state.summary())
        if stored:
            return self.answer("download", lambda: self.send_file(stored[1]), key=False)
        return self.unknown()

    def do_PUT(self) -> None:
        """Take a file at an address that was announced for it."""
        token = self.path.removeprefix("/storage/")
        if token not in self.state.slots:
            return self.unknown()
        return self.answer("upload", lambda: self.take_file(token), key=False)

    def answer(self, call: str, work: Callable[[], None], *, key: bool = True) -> None:
        """Do a call's work unless a fault is switched on for it or the key is wrong."""
        fault = self.state.fault_of(call)
        if fault == "stall":
            self.state.closing.wait(LONGEST_STALL)
            self.close_connection = True
        elif fault == "hang up":
            self.close_connection = True
        elif fault is not None:
            self.read_rest()
            self.send_errors(int(fault), "the stand-in was told to fail")
        elif key and not self.state.accepts(self.headers.get("Authorization", "")):
            self.send_errors(401, "user is not logged in")
        else:
            try:
                work()
            except Refusal as refusal:
                self.send_errors(refusal.status, str(refusal))

    def operation(self) -> str:
        """Return the name of the GraphQL operation in the body."""
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", json.loads(self.body)["query"])
        return found[1] if found else "without a name"

    def graphql(self) -> None:
        """Answer an operation."""
        variables = json.loads(self.body).get("variables") or {}
        if isinstance(variables, str):
            variables = json.loads(variables)
        self.send_json(200, {"data": self.state.graphql(self.operation(), variables)})

    def stream(self, entity: str, project: str, run: str) -> None:
        """Take a part of a run's stream."""
        self.send_json(200, self.state.stream(entity, project, run, json.loads(self.body)))

    def take_file(self, token: str) -> None:
        """Store what is sent, once its checksum is right."""
        path = self.state.new_path()
        checksum = hashlib.md5()
        left = int(self.headers["Content-Length"])
        with path.open("wb") as file:
            while left and (chunk := self.rfile.read(min(left, 1 << 20))):
                file.write(chunk)
                checksum.update(chunk)
                left -= len(chunk)
        wanted = self.headers.get("Content-MD5")
        if left or (wanted and base64.b64encode(checksum.digest()).decode() != wanted):
            raise Refusal(400, "the file is not what was announced")
        with self.state.lock:
            self.state.slots[token](path)
        self.send_json(200, {})

    def send_file(self, name: str) -> None:
        """Send a stored file."""
        path = self.state.directory / name
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                self.wfile.write(chunk)

    def read_rest(self) -> None:
        """Read a body that nobody wants: who still sends it would not read the answer."""
        left = int(self.headers.get("Content-Length", 0)) - len(self.body)
        while left > 0 and (chunk := self.rfile.read(min(left, 1 << 20))):
            left -= len(chunk)

    def unknown(self) -> None:
        """Refuse a request that the stand-in does not know, and remember it."""
        with self.state.lock:
            self.state.unknown.append(f"{self.command} {self.path}")
        self.send_errors(404, f"the stand-in does not know {self.path}")

    def send_errors(self, status: int, message: str) -> None:
        """Answer with an error in GraphQL's form."""
        self.send_json(status, {"data": None, "errors": [{"message": message}]})

    def send_json(self, status: int, content: Answer) -> None:
        """Answer with JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        """Serve a connection; a client that goes away in the middle is no fault of the test."""
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def start(key: str, directory: Path, host: str, port: int) -> tuple[ThreadingHTTPServer, Server]:
    """Return the listening HTTP server and its state; nothing is served yet."""
    state = Server(key, directory)
    handler = type("BoundHandler", (Handler,), {"state": state})
    http = ThreadingHTTPServer((host, port), handler)
    http.daemon_threads = True
    state.address = f"http://{host}:{http.server_port}"
    return http, state


@contextmanager
def serve(key: str) -> Iterator[Server]:
    """Serve on a free port of the loopback until the block ends."""
    with tempfile.TemporaryDirectory(prefix="wandb-stand-in-") as directory:
        http, state = start(key, Path(directory), "127.0.0.1", 0)
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
    key = arguments.key_file.read_text().strip()
    with tempfile.TemporaryDirectory(prefix="wandb-stand-in-") as directory:
        http, state = start(key, Path(directory), "0.0.0.0", arguments.port)
        state.address = arguments.address
        http.serve_forever()


if __name__ == "__main__":
    main()
