"""Asks the API server about a pod with patience and a time limit, without the provider's sleeps.

Written against cncf-kubernetes 8.3.3 (Airflow 2.9.3) and 10.25.0 (Airflow 3.3.2): it overrides only
methods that exist with the same meaning in the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager, PodPhase
from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
from kubernetes.client import CoreV1Api
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ml_pipelines.failures import container_state

T = TypeVar("T")

# Long enough for a restart of the API server, short enough that a cluster which is gone is noticed.
OUTAGE_SECONDS = 120
RETRY_SECONDS = 2
POLL_SECONDS = 0.2
# Connecting, and waiting for an answer: a server that accepts and never answers is one that is away.
REQUEST_SECONDS = (5, 30)
# The log stream ends up to this long before the API server reports the container as ended.
LOG_END_SECONDS = 1.6
# A pod that is to be gone, and whose container "runs" this long after its grace period, is on a node
# that does not answer any more.
LOST_SECONDS = 60


class PatientPodManager(PodManager):
    """PodManager that rides out an API server which is away for a while."""

    last_seen: k8s.V1Pod | None = None
    """The pod as it was read last; it tells why a pod is gone."""

    def patiently(
        self, call: Callable[[], T], *, final: Callable[[ApiException], Any] = lambda _: False
    ) -> T:
        """Return `call()`, repeated while the API server is away, overloaded or restarting.

        Raises ApiException when it refuses, at once when that is `final`, and that or urllib3's
        HTTPError when it has not recovered after OUTAGE_SECONDS.
        """
        give_up, outage = time.monotonic() + OUTAGE_SECONDS, False
        while True:
            try:
                return call()
            except (ApiException, HTTPError) as error:
                refused = isinstance(error, ApiException)
                # One that has just started refuses everybody until it has read the roles.
                starting = outage and refused and error.status in (401, 403)
                if (refused and final(error)) or not (is_transient(error) or starting):
                    raise
                if time.monotonic() >= give_up:
                    raise
                if not outage:
                    self.log.warning("Kubernetes API: %s; trying again", in_short(error))
                    outage = True
            time.sleep(RETRY_SECONDS)

    def request(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of CoreV1Api, patiently. Raises ApiException or HTTPError."""
        return self.patiently(lambda: getattr(self._client, method)(*args, **kwargs))

    def read_pod(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        """The pod as the API server knows it now.

        Raises ApiException (404 when the pod is gone) or HTTPError.
        """
        meta = pod.metadata
        self.last_seen = self.request("read_namespaced_pod", meta.name, meta.namespace)
        return self.last_seen

    def delete_pod(self, pod: k8s.V1Pod) -> None:
        """Delete the pod, which may be gone already. Raises ApiException or HTTPError."""
        try:
            self.request("delete_namespaced_pod", pod.metadata.name, pod.metadata.namespace)
        except ApiException as error:
            if error.status != 404:
                raise

    def list_pods(self, namespace: str, selector: str) -> list[k8s.V1Pod]:
        """The pods with these labels, the youngest first. Raises ApiException or HTTPError."""
        found = self.request(
            "list_namespaced_pod", namespace=namespace, label_selector=selector
        ).items
        return sorted(found, key=lambda pod: str(pod.metadata.creation_timestamp), reverse=True)

    def label_pod(self, pod: k8s.V1Pod, labels: dict[str, str]) -> None:
        """Add labels to the pod. Raises ApiException or HTTPError."""
        name, namespace = pod.metadata.name, pod.metadata.namespace
        self.request("patch_namespaced_pod", name, namespace, {"metadata": {"labels": labels}})

    def get_container_names(self, pod: k8s.V1Pod) -> list[str]:
        """As the provider, without its own repetitions: they would multiply the patience."""
        return _once(PodManager.get_container_names)(self, pod)

    def read_pod_logs(self, pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> Any:
        """The lines of a container's log, none while it cannot be read.

        The provider asks again as long as the container runs: training goes on without a reader.
        """
        try:
            return self.patiently(
                lambda: _once(PodManager.read_pod_logs)(self, pod, *args, **kwargs)
            )
        except (ApiException, HTTPError) as error:
            self.log.warning("The log cannot be read: %s", in_short(error))
            time.sleep(RETRY_SECONDS)
            return iter(())

    def container_is_running(self, pod: k8s.V1Pod, container_name: str) -> bool:
        """Whether the container still runs: the provider asks when its log stream has ended.

        Raises ApiException (404) when the pod's node is lost.
        """
        believe = time.monotonic() + LOG_END_SECONDS
        while super().container_is_running(pod, container_name):
            self._not_lost(self.last_seen)
            if time.monotonic() >= believe:
                return True
            time.sleep(POLL_SECONDS)
        return False

    def await_pod_completion(
        self,
        pod: k8s.V1Pod,
        istio_enabled: bool = False,
        container_name: str = "base",
        do_xcom_push: bool = False,
    ) -> k8s.V1Pod:
        """The pod once its phase is final, or, beside a sidecar, its container has ended.

        Raises ApiException (404 when the pod is gone, or its node lost) or HTTPError.
        """
        while True:
            remote_pod = self.read_pod(pod)
            if remote_pod.status.phase in PodPhase.terminal_states:
                return remote_pod
            state = container_state(remote_pod, container_name)
            if (istio_enabled or do_xcom_push) and state is not None and state.terminated:
                return remote_pod
            self._not_lost(remote_pod)
            time.sleep(POLL_SECONDS)

    def await_xcom_sidecar_container_start(self, pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """As the provider, if the pod has that sidecar."""
        seen = self.last_seen or self.read_pod(pod)
        if any(one.name == PodDefaults.SIDECAR_CONTAINER_NAME for one in seen.spec.containers):
            super().await_xcom_sidecar_container_start(pod, *args, **kwargs)

    @staticmethod
    def _not_lost(pod: k8s.V1Pod | None) -> None:
        """Raise ApiException(404) for a pod that should be gone but whose node is not heard of."""
        gone_at = pod.metadata.deletion_timestamp if pod else None  # includes the grace period
        if gone_at and datetime.now(UTC) > gone_at + timedelta(seconds=LOST_SECONDS):
            raise ApiException(status=404, reason="its node does not answer")


def limit_requests(client: CoreV1Api) -> None:
    """Give each request of a client that has none of its own a time limit, REQUEST_SECONDS."""
    rest = client.api_client.rest_client
    send = rest.request

    def request(*args: Any, **kwargs: Any) -> Any:
        kwargs["_request_timeout"] = kwargs.get("_request_timeout") or REQUEST_SECONDS
        return send(*args, **kwargs)

    rest.request = request


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, ApiException):
        # A conflict: another pod was counted against the ResourceQuota at the same moment.
        return error.status in (0, None, 409, 429) or error.status >= 500
    return True  # no answer at all: refused, reset, timed out


def in_short(error: Exception) -> str:
    """A failed request in a few words."""
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return f"{type(error).__name__}: {error}"


def _once(method: Callable[..., T]) -> Callable[..., T]:
    """A method of the provider without the repetitions that it is decorated with."""
    return getattr(method, "__wrapped__", method)
