"""The pods of a namespace: requests with patience, one watch for all, and how many may run."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from kubernetes.client.exceptions import ApiException

from one_pod import failures, pod_manager
from one_pod.manifest import TERMINAL, View, read

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Of every pod that Airflow's operators start, also from a worker.
SELECTOR = "kubernetes_pod_operator=True"
# As the provider says it; the janitor goes by it.
SEEN = {"metadata": {"labels": {"already_checked": "True"}}}
WATCH_SECONDS = 60  # then the API server ends it, and it goes on where it was
SILENCE_SECONDS = WATCH_SECONDS + 15  # a connection that nobody has closed
REQUEST_ERRORS = (ApiException, aiohttp.ClientError, OSError)

log = structlog.get_logger(__name__)


class Api:
    """Requests to the API server with the account of this pod."""

    def __init__(self, url: str, account: Path | None = None) -> None:
        self.url, self.account = url, account
        trust = ssl.create_default_context(cafile=account / "ca.crt") if account else True
        # Each followed log holds a connection.
        connector = aiohttp.TCPConnector(limit=0, ssl=trust)
        self.session = aiohttp.ClientSession(connector=connector)

    @classmethod
    def in_cluster(cls) -> Api:
        host, port = (os.environ[f"KUBERNETES_SERVICE_{name}"] for name in ("HOST", "PORT"))
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", ACCOUNT)

    @asynccontextmanager
    async def open(
        self, method: str, path: str, silence: float | None = None, body: Any = None, **query: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer as it comes; `silence`: seconds without a byte after which nobody is there.

        Raises ApiException, aiohttp.ClientError or OSError.
        """
        connect = pod_manager.REQUEST_SECONDS[0]
        limits = aiohttp.ClientTimeout(None, sock_connect=connect, sock_read=silence)
        headers = {}
        if self.account:  # read each time: the kubelet renews it
            headers["Authorization"] = f"Bearer {(self.account / 'token').read_text()}"
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        request = self.session.request(
            method, self.url + path, json=body, params=query, headers=headers, timeout=limits
        )
        async with request as response:
            if response.status >= 300:
                error = ApiException(response.status, response.reason)
                error.body = await response.text()
                raise error
            yield response

    async def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The answer's JSON, also if it comes after a few tries.

        Raises ApiException when it is refused, that, aiohttp.ClientError or OSError after an outage
        of OUTAGE_SECONDS.
        """
        give_up, outage = time.monotonic() + pod_manager.OUTAGE_SECONDS, False
        while True:
            try:
                async with (
                    asyncio.timeout(pod_manager.REQUEST_SECONDS[1]),
                    self.open(method, path, body=body, **query) as response,
                ):
                    return await response.json()
            except REQUEST_ERRORS as error:
                transient = pod_manager.is_transient(error, outage=outage)
                if not transient or time.monotonic() >= give_up:
                    raise
                if not outage:
                    log.warning(f"Kubernetes API: {failures.explain_refusal(error)}; trying again")
                outage = True
            await asyncio.sleep(pod_manager.RETRY_SECONDS)


class Pods:
    """The pods of one namespace, as one watch tells them to all tries of this process."""

    _of: dict[str, Pods] = {}

    def __init__(self, api: Api, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self.labels: dict[str, dict[str, str]] = {}
        """Of each pod that is there."""
        self.active: set[str] = set()
        """Those that have not ended, of all triggerers and workers."""
        self.granted: set[str] = set()
        """Those that may be made and have not been seen yet."""
        self.turns: deque[tuple[str, asyncio.Future[None]]] = deque()
        self.max_pods = 0
        self.followers: dict[str, asyncio.Queue[View | None]] = {}
        self.changes: set[asyncio.Task[None]] = set()  # else they might be collected as garbage
        self.listed = asyncio.get_running_loop().create_future()
        # In an empty context: else its lines go to the log of the task that came first.
        self.watch = asyncio.create_task(self._watch(), context=contextvars.Context())

    @classmethod
    async def of(cls, namespace: str) -> Pods:
        """Those of a namespace ('': of this pod's) once they are known. Raises as Api.ask does."""
        namespace = namespace or (ACCOUNT / "namespace").read_text()
        pods = cls._of.get(namespace)
        if pods is None or pods.watch.done():
            api = pods.api if pods else Api.in_cluster()
            pods = cls._of[namespace] = cls(api, namespace)
        await asyncio.shield(pods.listed)
        return pods

    def follow(self, name: str) -> asyncio.Queue[View | None]:
        """Each state of a pod from now on; None when it is gone without an end. See `leave`."""
        return self.followers.setdefault(name, asyncio.Queue())

    def leave(self, name: str) -> None:
        """No more of it, and whoever waits may have its turn."""
        self.followers.pop(name, None)
        self.granted.discard(name)
        self._give_turns()

    async def turn(self, name: str, max_pods: int) -> None:
        """Return when the pod may be made, so that at most `max_pods` run at once.

        One that is there has had its turn. Two triggerers may exceed the number by a few.
        """
        self.max_pods = max_pods
        if name not in self.labels:
            turn = asyncio.get_running_loop().create_future()
            self.turns.append((name, turn))
            self._give_turns()
            if not turn.done():
                log.info(f"Waits for one of {max_pods} pods to end (pipelines.maxPods)")
            await turn

    def _give_turns(self) -> None:
        while self.turns and len(self.active | self.granted) < self.max_pods:
            name, turn = self.turns.popleft()
            if not turn.done():  # cancelled
                self.granted.add(name)
                turn.set_result(None)

    async def create(self, pod: dict[str, Any]) -> View:
        """Create the pod, or take the one that has its name. Raises as Api.ask does."""
        try:
            answer = await self.api.ask("POST", self.path, body=pod)
        except ApiException as error:
            if error.status != 409 or "AlreadyExists" not in str(error.body):
                raise
            log.info(f"Pod {pod['metadata']['name']} is there already: going on with it")
            return await self.get(pod["metadata"]["name"])
        return self._seen(answer)

    async def get(self, name: str) -> View:
        """The pod as it is now. Raises as Api.ask does: ApiException with 404 if there is none."""
        return read(await self.api.ask("GET", f"{self.path}/{name}"))

    async def events(self, name: str) -> list[View]:
        """What has happened to it. Raises as Api.ask does."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        answer = await self.api.ask("GET", path, fieldSelector=f"involvedObject.name={name}")
        return [View(one) for one in answer["items"]]

    async def delete(
        self,
        name: str,
        made: asyncio.Future[Any] | None = None,
        unless: Awaitable[bool] | None = None,
    ) -> None:
        """Delete the pod, once the request that makes it is answered; there may be none."""

        async def delete() -> None:
            if made:
                await asyncio.wait([made])
            if not (unless and await unless):
                await self._change("DELETE", name)

        await asyncio.shield(self._start(delete()))

    def put_away(self, name: str, delete: bool) -> None:
        """Delete the pod of a task that has ended, or say that its end was seen.

        It is not waited for: Airflow goes on cancelling who waits, as if a person had acted.
        """
        self._start(self._change("DELETE", name) if delete else self._change("PATCH", name, SEEN))

    async def _change(self, method: str, name: str, body: Any = None) -> None:
        try:
            await self.api.ask(method, f"{self.path}/{name}", body=body)
        except REQUEST_ERRORS as error:
            if getattr(error, "status", None) != 404:
                log.warning(f"Pod {name} stays as it is: {failures.explain_refusal(error)}")

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """In a task of its own: Airflow cancels a trigger in each round until it has ended."""
        task = asyncio.create_task(work)
        self.changes.add(task)
        task.add_done_callback(self.changes.discard)
        return task

    async def _watch(self) -> None:
        """Never ends, unless the first list is refused: then `listed` tells why."""
        version = ""
        while True:
            try:
                version = version or await self._list()
                async for event in self._events(version):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._seen(event["object"], gone=event["type"] == "DELETED")
            except (*REQUEST_ERRORS, ValueError) as error:  # a line may be cut off
                if not self.listed.done():
                    self.listed.set_exception(error)
                    return
                log.warning(f"The watch is interrupted: {failures.explain_refusal(error)}")
                version = ""
                await asyncio.sleep(pod_manager.RETRY_SECONDS)

    async def _list(self) -> str:
        """Tell what is there, and what is gone; returns the version to watch from."""
        known = set(self.labels)  # not what is made while the list is on its way
        answer = await self.api.ask("GET", self.path, labelSelector=SELECTOR)
        there = {pod["metadata"]["name"] for pod in answer["items"]}
        for pod in answer["items"]:
            self._seen(pod)
        for name in known - there:
            self._seen({"metadata": {"name": name}, "status": {}}, gone=True)
        if not self.listed.done():
            self.listed.set_result(None)
        return answer["metadata"]["resourceVersion"]

    async def _events(self, version: str) -> AsyncIterator[Any]:
        query = {"labelSelector": SELECTOR, "resourceVersion": version, "watch": "true"}
        query |= {"allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        async with self.api.open("GET", self.path, SILENCE_SECONDS, **query) as response:
            async for line in lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":  # what it knows does not reach back so far
                    raise ApiException(event["object"]["code"], event["object"].get("message"))
                yield event

    def _seen(self, answer: dict[str, Any], gone: bool = False) -> View:
        pod = read(answer)
        name, ended = pod["metadata"]["name"], pod.status.phase in TERMINAL
        self.labels[name] = pod["metadata"].get("labels") or {}
        self.active.add(name)
        self.granted.discard(name)
        if ended or gone:
            self.active.discard(name)
        if gone:
            del self.labels[name]
        if name in self.followers:
            self.followers[name].put_nowait(None if gone and not ended else pod)
        self._give_turns()
        return pod


async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length, which aiohttp's own reader limits."""
    rest: list[bytes] = []
    async for chunk in response.content.iter_any():
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
    if any(rest):
        yield b"".join(rest)
