"""A container's log, line by line into the log of the task."""

from __future__ import annotations

import asyncio

import structlog

from one_pod import failures, pod_manager
from one_pod.pods import REQUEST_ERRORS, Pods, lines

# The end of a log comes within this time after the pod's own, and after the line before.
END_SECONDS = 3
SILENCE_SECONDS = 600  # a connection that nobody has closed: it is opened anew

log = structlog.get_logger(__name__)


class Log:
    """Follows the log from now on, each line as a worker writes it, with the container's time.

    A restarted triggerer reads it from the start: Airflow's page shows lines of equal time and text
    once.
    """

    def __init__(self, pods: Pods, name: str, container: str) -> None:
        self.pods, self.path, self.container = pods, f"{pods.path}/{name}/log", container
        self.last = ""
        """When the newest line was written."""
        self.task = asyncio.create_task(self._follow())

    async def end(self) -> None:
        """Return when the rest has come, of a container that has ended."""
        told = None
        while told != self.last and not self.task.done():
            told = self.last
            await asyncio.wait([self.task], timeout=END_SECONDS)
        self.task.cancel()

    async def _follow(self) -> None:
        while True:
            try:
                await self._read()
                return
            except TimeoutError:
                continue
            except REQUEST_ERRORS as error:
                log.warning(f"The log cannot be read: {failures.explain_refusal(error)}")
                await asyncio.sleep(pod_manager.RETRY_SECONDS)

    async def _read(self) -> None:
        """Read to the end what was written after `last`; the API server takes whole seconds."""
        since, query = self.last, {"container": self.container}
        query |= {"follow": "true", "timestamps": "true"}
        if since:
            query["sinceTime"] = f"{since}Z"
        async with self.pods.api.open("GET", self.path, SILENCE_SECONDS, **query) as response:
            async for line in lines(response):
                stamp, _, text = line.decode(errors="replace").partition(" ")
                if (when := stamp.removesuffix("Z")) > since:
                    log.info(f"[{self.container}] {text}", timestamp=stamp)
                    self.last = when
