"""The operator of all tasks: KubernetesPodOperator with what it lacks.

Written against cncf-kubernetes 8.3.3 (Airflow 2.9.3) and 10.25.0 (Airflow 3.3.2), tests/dags runs
on both; it overrides only methods that exist with the same meaning in the two.

* The last message of the container (its termination message) becomes the task's XCom, with the
  image that the container ran.
* A pod that does not start, or fails, is explained in one line, not by a dump of its specification.
* It notices the end of a container within 0.2 s; the provider sleeps 1 s and 2 s (kubelet and API
  server agree on the end a moment after the log stream stops, so both sleeps are often taken).
* An API server that is away for a short time costs no try.
"""

from __future__ import annotations

import json
import sys
import time
from functools import cached_property
from typing import Any

from airflow.exceptions import AirflowException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager, PodPhase
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ml_pipelines.failures import HOPELESS_WAITS, explain_failure, explain_wait, waiting_for
from ml_pipelines.lineage import digest_in

# Long enough for a restart of the API server, short enough that a cluster which is gone is noticed.
API_OUTAGE_SECONDS = 120
API_RETRY_SECONDS = 2
POLL_SECONDS = 0.2
# The log stream ends up to this long before the API server reports the container as ended.
LOG_END_SECONDS = 1.6
# A deleted pod is gone after its grace period; the kubelet needs a moment more.
DELETION_MARGIN_SECONDS = 25


class PipelinePodManager(PodManager):
    """Reads pods with patience for the API server, and without the provider's long sleeps."""

    def read_pod(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        """The pod as the API server knows it now.

        Rides out an API server that is away, overloaded or restarting for API_OUTAGE_SECONDS.
        Raises ApiException (404 when the pod is gone) or urllib3's HTTPError.
        """
        give_up = time.monotonic() + API_OUTAGE_SECONDS
        warned = False
        while True:
            try:
                return self._client.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
            except (ApiException, HTTPError) as error:
                if not _is_transient(error) or time.monotonic() >= give_up:
                    raise
                if not warned:
                    self.log.warning("Kubernetes API: %s; trying again", _in_short(error))
                    warned = True
            time.sleep(API_RETRY_SECONDS)

    def await_pod_completion(self, pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> k8s.V1Pod:
        """The pod once its phase is final. Further arguments serve sidecars; it has none."""
        while True:
            remote_pod = self.read_pod(pod)
            if remote_pod.status.phase in PodPhase.terminal_states:
                return remote_pod
            time.sleep(POLL_SECONDS)

    def container_is_running(self, pod: k8s.V1Pod, container_name: str) -> bool:
        """Whether the container still runs: the provider asks when its log stream has ended."""
        believe = time.monotonic() + LOG_END_SECONDS
        while super().container_is_running(pod, container_name):
            if time.monotonic() >= believe:
                return True
            time.sleep(POLL_SECONDS)
        return False


class PipelinePodOperator(KubernetesPodOperator):
    """Runs one task of a pipeline as a pod; see the module for what it adds."""

    def __init__(self, *, runtime_class_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.runtime_class_name = runtime_class_name

    @cached_property
    def pod_manager(self) -> PodManager:
        return PipelinePodManager(kube_client=self.client)

    def build_pod_request_obj(self, context: Any = None) -> k8s.V1Pod:
        """The pod to create, with what 8.3.3 has no argument for and drops from `full_pod_spec`."""
        pod = super().build_pod_request_obj(context)
        # The workload does not talk to the API server.
        pod.spec.automount_service_account_token = False
        # Else seven variables per Service of the namespace, e.g. ML_PIPELINES_MLFLOW_PORT.
        pod.spec.enable_service_links = False
        pod.spec.termination_grace_period_seconds = self.termination_grace_period
        pod.spec.runtime_class_name = self.runtime_class_name
        return pod

    def execute_sync(self, context: Any) -> None:
        """Run the pod to its end; its result becomes the XCom `return_value`.

        With `image` and `image_digest` added: what it ran, which a tag that moves does not say.
        Not `execute`: Airflow 2.9 takes the call of the parent's for a misuse and warns.
        """
        super().execute_sync(context)
        result = {**(self._result() or {}), **self._image()}
        # Pushed here: `do_xcom_push` of this operator means a second container in the pod.
        context["ti"].xcom_push(key="return_value", value=result)

    def find_pod(
        self, namespace: str, context: Any, *, exclude_checked: bool = True
    ) -> k8s.V1Pod | None:
        """The pod of an earlier try that still runs, to be followed instead of starting another.

        Waits for one that is being deleted: it must not write beside its successor.
        """
        pod = super().find_pod(namespace, context, exclude_checked=exclude_checked)
        if pod is not None and pod.metadata.deletion_timestamp is not None:
            self._await_deletion(pod)
            return None
        return pod

    def await_pod_start(self, pod: k8s.V1Pod) -> None:
        """Return when the pod has left Pending; log each new reason for waiting once.

        Raises AirflowException when it cannot start, or has not after `startup_timeout_seconds`.
        """
        give_up = time.monotonic() + self.startup_timeout_seconds
        logged = None
        while True:
            remote_pod = self.pod_manager.read_pod(pod)
            if remote_pod.status.phase != PodPhase.PENDING:
                if remote_pod.status.container_statuses is None and (
                    remote_pod.status.phase == PodPhase.FAILED
                ):
                    raise AirflowException(f"Pod {pod.metadata.name} failed before it started")
                return
            waiting = waiting_for(remote_pod, self.base_container_name)
            if waiting and waiting[0] != logged:
                self.log.info("Pod %s waits: %s", pod.metadata.name, explain_wait(*waiting))
                logged = waiting[0]
            if waiting and waiting[0] in HOPELESS_WAITS:
                raise AirflowException(f"Pod {pod.metadata.name} cannot start")
            if time.monotonic() >= give_up:
                raise AirflowException(
                    f"Pod {pod.metadata.name} did not start within {self.startup_timeout_seconds} s"
                    " (startupTimeoutSeconds)"
                )
            time.sleep(self.startup_check_interval_seconds)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Log the events of a failed pod, delete the pod, and say why it failed.

        Called at the end of every try, failed or not. Raises AirflowException if the pod failed.
        """
        if self._killed or not remote_pod:
            return
        # Set when the try is ending by an exception (a time limit, a lost connection): this method
        # runs in a `finally`, and what it raises would take the place of the real reason.
        raising = sys.exc_info()[1]
        # The pod at hand may date from the start of the try.
        remote_pod = self._latest(remote_pod)
        if remote_pod is None:
            self.pod = None
            raise AirflowException(
                f"Pod {pod.metadata.name} is gone: it was deleted, or its node was lost"
            ) from raising
        self.remote_pod = remote_pod
        try:
            super().cleanup(pod, remote_pod, *args, **kwargs)
        except AirflowException as error:
            reason = explain_failure(remote_pod, self.base_container_name)
            if remote_pod.status.phase not in PodPhase.terminal_states:
                self._await_deletion(remote_pod)
            self.pod = None  # deleted: nothing is left for on_kill
            if raising is None:
                raise AirflowException(f"Pod {pod.metadata.name} failed: {reason}") from error
            self.log.error("Pod %s was stopped: %s", pod.metadata.name, reason)

    def on_kill(self) -> None:
        """Delete the pod and see it gone: `clean_up`, or the next try, may start right after."""
        pod = self.pod
        super().on_kill()
        if pod is not None:
            self._await_deletion(pod)

    def _base_statuses(self) -> list[k8s.V1ContainerStatus]:
        """The status of the container that works; empty when the pod is not known."""
        statuses = self.remote_pod.status.container_statuses if self.remote_pod else None
        return [status for status in statuses or [] if status.name == self.base_container_name]

    def _result(self) -> dict[str, Any] | None:
        """The JSON object that the container left as its termination message, if it did."""
        for status in self._base_statuses():
            ended = status.state.terminated if status.state else None
            if ended is not None and ended.message:
                try:
                    result = json.loads(ended.message)
                except json.JSONDecodeError:
                    result = None
                if isinstance(result, dict):
                    return result
                self.log.warning("Not a result: the termination message %r", ended.message)
        return None

    def _image(self) -> dict[str, str]:
        """The image that the pod asked for, and the digest of the one that its node ran."""
        found = {}
        for container in self.remote_pod.spec.containers if self.remote_pod else []:
            if container.name == self.base_container_name:
                found["image"] = container.image
        for status in self._base_statuses():
            if digest := digest_in(status.image_id):
                found["image_digest"] = digest
        return found

    def _latest(self, pod: k8s.V1Pod) -> k8s.V1Pod | None:
        """The pod as it is now; None when it is gone; as it was when the API does not answer."""
        try:
            return self.pod_manager.read_pod(pod)
        except ApiException as error:
            if error.status == 404:
                return None
            self.log.warning("Kubernetes API: %s", _in_short(error))
        except HTTPError as error:
            self.log.warning("Kubernetes API: %s", _in_short(error))
        return pod

    def _await_deletion(self, pod: k8s.V1Pod) -> None:
        """Return when the pod is gone, or its grace period is over by a good margin."""
        grace = pod.spec.termination_grace_period_seconds if pod.spec else None
        give_up = time.monotonic() + (30 if grace is None else grace) + DELETION_MARGIN_SECONDS
        while time.monotonic() < give_up:
            latest = self._latest(pod)
            if latest is None or latest.status.phase in PodPhase.terminal_states:
                return
            time.sleep(POLL_SECONDS)
        self.log.warning("Pod %s is still being deleted", pod.metadata.name)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, ApiException):
        return error.status in (0, None, 429) or error.status >= 500
    return True  # no answer at all: refused, reset, timed out


def _in_short(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return f"{type(error).__name__}: {error}"
