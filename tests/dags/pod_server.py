"""An API server for pods, over HTTP, as Kubernetes behaves; the test says what its pods do.

Lists and watches with versions and label selectors, names that are taken, deletion with grace, logs
that are followed, quotas, and all of it away for a while. Runs in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from tests.dags.cluster import selects

PODS = "/api/v1/namespaces/{namespace}/pods"
STEP_SECONDS = 0.01


class PodServer:
    """Holds pods as JSON; `log`: their lines, by name."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.version, self.oldest = 100, 0
        self.quota: int | None = None
        self.broken: list[int] = []
        """Statuses with which the next requests are answered."""
        self.away = False
        self.keeps_deleted = False
        """No kubelet says that deleted pods are gone."""
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.most = 0
        """So many pods that had not ended were there at once."""
        self.streams: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        """Serve; returns the address."""
        app = web.Application(middlewares=[self._door])
        app.router.add_get(PODS, self._get_all)
        app.router.add_post(PODS, self._create)
        app.router.add_get(PODS + "/{name}", self._get)
        app.router.add_delete(PODS + "/{name}", self._delete)
        app.router.add_patch(PODS + "/{name}", self._patch)
        app.router.add_get(PODS + "/{name}/log", self._log)
        app.router.add_get("/api/v1/namespaces/{namespace}/events", self._events)
        self.runner = web.AppRunner(app, shutdown_timeout=0)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.break_connections()
        await self.runner.cleanup()

    # What a test does to it

    def break_connections(self) -> None:
        """Cut watches and logs off."""
        for stream in list(self.streams):
            stream.cancel()

    def forget_history(self) -> None:
        """The next watch has to list anew, as after a compaction."""
        self.oldest = self.version + 1

    def put(self, name: str, **labels: str) -> None:
        """Have a running pod there."""
        metadata = {"name": name, "labels": {"kubernetes_pod_operator": "True"} | labels}
        self._add({"metadata": metadata, "spec": {"containers": [{"name": "base"}]}})
        self.run(name)

    def state(self, name: str, phase: str, state: dict[str, Any] | None, **more: Any) -> None:
        """Report the state of the pod's containers."""
        pod = self.pods[name]
        statuses = [
            {"name": one["name"], "state": state, "imageID": f"x@sha256:{'1a' * 32}"}
            for one in pod["spec"]["containers"]
            if state
        ]
        pod["status"] = {"phase": phase, "containerStatuses": statuses} | more
        pod["spec"]["nodeName"] = "node-1"
        self._changed(pod)

    def run(self, name: str) -> None:
        self.state(name, "Running", {"running": {}})

    def wait(self, name: str, reason: str) -> None:
        self.state(name, "Pending", {"waiting": {"reason": reason, "message": f"told {reason}"}})

    def end(self, name: str, exit_code: int = 0, message: str = "", **more: Any) -> None:
        ended = {"exitCode": exit_code, "message": message, "reason": "Error"}
        for phase in ("Running", "Failed" if exit_code else "Succeeded"):
            self.state(name, phase, {"terminated": ended}, **more)

    def remove(self, name: str) -> None:
        """The object goes: its kubelet has ended it, or somebody has forced it."""
        self._event("DELETED", self.pods.pop(name))

    async def until(self, holds: Callable[[], Any]) -> Any:
        """Wait until something holds, and return it."""
        async with asyncio.timeout(300):
            while not (found := holds()):
                await asyncio.sleep(STEP_SECONDS)
        return found

    async def new(self, number: int = 1) -> str:
        """The name of the pod that is created as the n-th."""
        await self.until(lambda: len(self.created) >= number)
        return self.created[number - 1]

    # What it answers

    @web.middleware
    async def _door(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.away:
            request.transport.abort()
            return web.Response()
        if self.broken:
            return self._status(self.broken.pop(0), "broken", "InternalError")
        task = asyncio.current_task()
        self.streams.add(task)
        try:
            return await handler(request)
        finally:
            self.streams.discard(task)

    def _status(self, code: int, message: str, reason: str) -> web.Response:
        return web.json_response({"message": message, "reason": reason, "code": code}, status=code)

    async def _get_all(self, request: web.Request) -> web.StreamResponse:
        selector = request.query.get("labelSelector", "")
        if request.query.get("watch"):
            return await self._watch(request, selector)
        items = [one for one in self.pods.values() if selects(selector, one["metadata"]["labels"])]
        metadata = {"resourceVersion": str(self.version)}
        return web.json_response({"metadata": metadata, "items": items})

    async def _watch(self, request: web.Request, selector: str) -> web.StreamResponse:
        seen = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        if seen < self.oldest:
            await self._write(response, {"type": "ERROR", "object": {"code": 410}})
            return response
        while True:
            for version, event in [one for one in self.history if one[0] > seen]:
                if selects(selector, event["object"]["metadata"]["labels"]):
                    await self._write(response, event)
                seen = version
            await asyncio.sleep(STEP_SECONDS)

    async def _write(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        # In two parts: a line of a watch comes in pieces.
        text = json.dumps(event).encode() + b"\n"
        await response.write(text[:20])
        await response.write(text[20:])

    async def _create(self, request: web.Request) -> web.Response:
        pod = await request.json()
        name = pod["metadata"]["name"]
        if name in self.pods:
            return self._status(409, f'pods "{name}" already exists', "AlreadyExists")
        if self.quota is not None and self._active() >= self.quota:
            said = f'pods "{name}" is forbidden: exceeded quota: team, limited: pods={self.quota}'
            return self._status(403, said, "Forbidden")
        self.created.append(name)
        self._add(pod)
        return web.json_response(self.pods[name], status=201)

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.pods:
            return self._status(404, f'pods "{name}" not found', "NotFound")
        return web.json_response(self.pods[name])

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.pods:
            return self._status(404, f'pods "{name}" not found', "NotFound")
        self.deleted.append(name)
        pod = self.pods[name]
        gone_at = datetime.now(UTC) + timedelta(seconds=pod["spec"].get("grace", 0))
        pod["metadata"]["deletionTimestamp"] = gone_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._changed(pod)
        if not self.keeps_deleted:
            self.remove(name)
        return web.json_response(pod)

    async def _patch(self, request: web.Request) -> web.Response:
        """A merge patch of labels; Kubernetes takes it by no other name."""
        if request.content_type != "application/merge-patch+json":
            return self._status(415, "unknown patch", "UnsupportedMediaType")
        pod = self.pods[request.match_info["name"]]
        pod["metadata"]["labels"] |= (await request.json())["metadata"]["labels"]
        self._changed(pod)
        return web.json_response(pod)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        """The lines after `sinceTime`, of which Kubernetes takes whole seconds; stays open."""
        name, since = request.match_info["name"], request.query.get("sinceTime", "")[:19]
        if request.query.get("timestamps") != "true" or request.query["container"] != "base":
            return self._status(400, "not as Airflow's page needs it", "BadRequest")
        response, sent = web.StreamResponse(), 0
        await response.prepare(request)
        while True:
            lines, going = self.logs.get(name, []), self._runs(name)
            for line in lines[sent:]:
                if line[:19] >= since:
                    await response.write(f"{line}\n".encode())
            sent = len(lines)
            if not going:
                return response
            await asyncio.sleep(STEP_SECONDS)

    async def _events(self, request: web.Request) -> web.Response:
        name = request.query["fieldSelector"].removeprefix("involvedObject.name=")
        return web.json_response({"items": [{"reason": "Failed", "message": f"event of {name}"}]})

    def _runs(self, name: str) -> bool:
        return name in self.pods and self.pods[name]["status"]["phase"] == "Running"

    def _active(self) -> int:
        ended = ("Succeeded", "Failed")
        return sum(one["status"]["phase"] not in ended for one in self.pods.values())

    def _add(self, pod: dict[str, Any]) -> None:
        self.pods[pod["metadata"]["name"]] = pod
        pod["status"] = {"phase": "Pending"}
        self._event("ADDED", pod)
        self.most = max(self.most, self._active())

    def _changed(self, pod: dict[str, Any]) -> None:
        self._event("MODIFIED", pod)

    def _event(self, kind: str, pod: dict[str, Any]) -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, {"type": kind, "object": json.loads(json.dumps(pod))}))
