"""Asks the API server about a pod with patience and a time limit, without the provider's sleeps."""

import time
from contextlib import closing, suppress
from typing import Any

from airflow.providers.cncf.kubernetes.utils import pod_manager as provider
from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from .failures import exceeds_quota, explain_refusal, has_succeeded

XCOM_SIDECAR = PodDefaults.SIDECAR_CONTAINER_NAME
REQUEST_ERRORS = (ApiException, HTTPError)
# Long enough for a restart of the API server, short enough that a cluster which is gone is noticed.
OUTAGE_SECONDS = 120
RETRY_SECONDS = 2
POLL_SECONDS = 0.2
# Connecting, and waiting for an answer: a server that accepts and never answers is away.
REQUEST_SECONDS = (5, 30)
# The log stream ends up to this long before the API server reports the container as ended.
LOG_END_SECONDS = 1.6
# A pod that should have been gone for so long is on a node that does not answer any more.
LOST_SECONDS = 60


class PatientPodManager(provider.PodManager):
    """PodManager that rides out an API server which is away for a while."""

    last_seen: k8s.V1Pod | None = None  # it tells why a pod is gone
    log_pause = RETRY_SECONDS

    @classmethod
    def of(cls, manager: provider.PodManager) -> "PatientPodManager":
        """The provider's, with patience; requests without a time limit get REQUEST_SECONDS."""
        rest = manager._client.api_client.rest_client
        send = rest.request

        def request(*args: Any, **kwargs: Any) -> Any:
            kwargs["_request_timeout"] = kwargs.get("_request_timeout") or REQUEST_SECONDS
            return send(*args, **kwargs)

        rest.request, manager.__class__ = request, cls
        return manager

    def request(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The answer of a method of CoreV1Api, also if it comes after a few tries.

        Raises ApiException when it is refused, that or HTTPError after an outage of OUTAGE_SECONDS.
        """
        give_up, outage = time.monotonic() + OUTAGE_SECONDS, False
        while True:
            try:
                return getattr(self._client, method)(*args, **kwargs)
            except REQUEST_ERRORS as error:
                if not is_transient(error, outage=outage) or time.monotonic() >= give_up:
                    raise
                if not outage:
                    self.log.warning("Kubernetes API: %s; trying again", explain_refusal(error))
                outage = True
            time.sleep(RETRY_SECONDS)

    def read_pod(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        """The pod as the API server knows it now, its phase final as soon as it has succeeded.

        Raises ApiException (404 when the pod is gone, or its node lost) or HTTPError.
        """
        seen = self.request("read_namespaced_pod", pod.metadata.name, pod.metadata.namespace)
        self.last_seen = seen
        if has_succeeded(seen):
            seen.status.phase = provider.PodPhase.SUCCEEDED
        gone_at = seen.metadata.deletion_timestamp  # the grace period is in it
        lost = gone_at is not None and gone_at.timestamp() + LOST_SECONDS < time.time()
        if lost and seen.status.phase not in provider.PodPhase.terminal_states:
            raise ApiException(status=404, reason="Its node does not answer")
        return seen

    def await_change(self, pod: k8s.V1Pod, seconds: float) -> None:
        """Return when the pod has changed since it was read, or some seconds have gone by."""
        give_up = time.monotonic() + seconds
        with suppress(*REQUEST_ERRORS):  # without the right, as after a connection that breaks
            news = self._client.list_namespaced_pod(
                pod.metadata.namespace,
                field_selector=f"metadata.name={pod.metadata.name}",
                resource_version=pod.metadata.resource_version,
                timeout_seconds=max(1, round(seconds)),
                watch=True,
                _preload_content=False,
            )
            with closing(news):
                if next(news.stream(), None):
                    return
        time.sleep(max(0, give_up - time.monotonic()))

    def delete_pod(self, pod: k8s.V1Pod, grace: float | None = None) -> None:
        """Delete the pod, which may be gone already. Raises ApiException or HTTPError."""
        name, options = pod.metadata.name, {"grace_period_seconds": grace}
        try:
            self.request("delete_namespaced_pod", name, pod.metadata.namespace, **options)
        except ApiException as error:
            if error.status != 404:
                raise

    def delete_and_wait(self, pod: k8s.V1Pod, grace: float | None = None) -> None:
        """Delete the pod, and see that it writes no more. Raises ApiException or HTTPError."""
        self.delete_pod(pod, grace)
        self.await_deletion(pod)

    def await_deletion(self, pod: k8s.V1Pod) -> None:
        """Return when a pod that is being deleted writes no more: it has ended, or is lost."""
        try:
            while self.read_pod(pod).status.phase not in provider.PodPhase.terminal_states:
                time.sleep(POLL_SECONDS)
        except ApiException as error:
            if error.status != 404:
                raise

    def read_pod_logs(self, pod: k8s.V1Pod, container_name: str, *args: Any, **kwargs: Any) -> Any:
        """The lines of a container's log; none, after a pause, if it cannot be read now."""
        try:
            read = provider.PodManager.read_pod_logs.__wrapped__  # without its repetitions
            lines = read(self, pod, container_name, *args, **kwargs)
        except REQUEST_ERRORS as error:
            self.log.warning("The log cannot be read: %s", explain_refusal(error))
            again = time.monotonic() + self.log_pause
            self.log_pause = min(2 * self.log_pause, OUTAGE_SECONDS)
            while super().container_is_running(pod, container_name) and time.monotonic() < again:
                time.sleep(RETRY_SECONDS)
            return iter(())
        self.log_pause = RETRY_SECONDS
        return lines

    def container_is_running(self, pod: k8s.V1Pod, container_name: str) -> bool:
        """Whether the container still runs: the provider asks when its log stream has ended."""
        believe = time.monotonic() + LOG_END_SECONDS
        while super().container_is_running(pod, container_name):
            if container_name == XCOM_SIDECAR or time.monotonic() >= believe:
                return True
            self.await_change(self.last_seen or pod, POLL_SECONDS)
        return False

    def await_pod_completion(
        self,
        pod: k8s.V1Pod,
        istio_enabled: bool = False,
        container_name: str = "base",
        do_xcom_push: bool = False,
        polling_time: float = POLL_SECONDS,
    ) -> k8s.V1Pod:
        """The pod once its phase is final, or, beside a sidecar, its container has ended.

        Raises ApiException (404 when the pod is gone, or its node lost) or HTTPError.
        """
        while True:
            seen = self.read_pod(pod)
            beside = istio_enabled or (do_xcom_push and _has_xcom_sidecar(seen))
            done = beside and provider.container_is_completed(seen, container_name)
            if done or seen.status.phase in provider.PodPhase.terminal_states:
                return seen
            self.await_change(seen, polling_time)

    def await_container_completion(self, pod: k8s.V1Pod, container_name: str, **more: Any) -> None:
        """Return when the container has ended, or its pod without it."""
        self.await_pod_completion(pod, True, container_name, **more)

    def await_xcom_sidecar_container_start(self, pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """As the provider, if the pod has that sidecar."""
        if _has_xcom_sidecar(self.last_seen or self.read_pod(pod)):
            super().await_xcom_sidecar_container_start(pod, *args, **kwargs)


def _has_xcom_sidecar(pod: k8s.V1Pod) -> bool:
    return any(one.name == XCOM_SIDECAR for one in pod.spec.containers)


def is_transient(error: Exception, *, outage: bool = False) -> bool:
    """Whether the same request may succeed in a moment; `outage`: it is not the first to fail."""
    if not isinstance(error, ApiException):
        return True  # no answer at all: refused, reset, timed out
    if error.status in (401, 403):
        # One that has just started refuses everybody until it has read the roles.
        return outage and not exceeds_quota(error)
    if error.status == 409:
        # Another pod was counted against the ResourceQuota at the same moment.
        return "AlreadyExists" not in str(error.body)
    return error.status in (0, None, 429) or error.status >= 500
