"""The operator of all tasks: KubernetesPodOperator with what it lacks.

Written against cncf-kubernetes 8.3.3 (Airflow 2.9.3) and 10.25.0 (Airflow 3.3.2), tests/dags runs
on both; it overrides only methods that exist with the same meaning in the two.

* The last message of the container (its termination message) becomes the task's XCom, with the
  image that the container ran.
* A pod that does not start, or fails, is explained in one line, not by a dump of its specification.
* It notices the end of a container within 0.2 s; the provider sleeps 1 s and 2 s (kubelet and API
  server agree on the end a moment after the log stream stops, so both sleeps are often taken).
* An API server that is away or overloaded for a short time costs no try.
* A pod of an earlier try is followed while it runs, its success is taken over, its failure is not.
* A failed pod stays for `failed_pod_ttl_seconds`; then the next task of any pipeline deletes it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from airflow.exceptions import AirflowException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager, PodPhase
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ml_pipelines.failures import (
    HOPELESS_WAITS,
    STUCK_WAITS,
    explain_absence,
    explain_failure,
    explain_refusal,
    explain_wait,
    quota_in_the_way,
    waiting_for,
)
from ml_pipelines.lineage import digest_in
from ml_pipelines.settings import KEPT_UNTIL

T = TypeVar("T")

# Long enough for a restart of the API server, short enough that a cluster which is gone is noticed.
API_OUTAGE_SECONDS = 120
API_RETRY_SECONDS = 2
POLL_SECONDS = 0.2
# The log stream ends up to this long before the API server reports the container as ended.
LOG_END_SECONDS = 1.6
# A deleted pod is gone after its grace period; the kubelet needs a moment more.
DELETION_MARGIN_SECONDS = 25
# How often the pod is asked for again while a ResourceQuota is used up.
QUOTA_RETRY_SECONDS = 5


class PipelinePodManager(PodManager):
    """Asks the API server with patience, and without the provider's long sleeps."""

    last_seen: k8s.V1Pod | None = None
    """The pod as it was read last; it tells why a pod is gone."""

    def patiently(self, call: Callable[[], T]) -> T:
        """Return `call()`, repeated while the API server is away, overloaded or restarting.

        Raises ApiException when it refuses, and that or urllib3's HTTPError when it has not
        recovered after API_OUTAGE_SECONDS.
        """
        give_up = time.monotonic() + API_OUTAGE_SECONDS
        outage = False
        while True:
            try:
                return call()
            except (ApiException, HTTPError) as error:
                # One that has just started refuses everybody until it has read the roles.
                starting = outage and isinstance(error, ApiException) and error.status in (401, 403)
                transient = _is_transient(error) or (starting and quota_in_the_way(error) is None)
                if not transient or time.monotonic() >= give_up:
                    raise
                if not outage:
                    self.log.warning("Kubernetes API: %s; trying again", _in_short(error))
                    outage = True
            time.sleep(API_RETRY_SECONDS)

    def read_pod(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        """The pod as the API server knows it now.

        Raises ApiException (404 when the pod is gone) or urllib3's HTTPError.
        """
        name, namespace = pod.metadata.name, pod.metadata.namespace
        self.last_seen = self.patiently(lambda: self._client.read_namespaced_pod(name, namespace))
        return self.last_seen

    def create_pod(self, pod: k8s.V1Pod) -> k8s.V1Pod:
        """Create the pod. Raises ApiException when the API server refuses it."""
        body = self._client.api_client.sanitize_for_serialization(pod)

        def create() -> k8s.V1Pod:
            try:
                return self._client.create_namespaced_pod(
                    body=body, namespace=pod.metadata.namespace
                )
            except ApiException as error:
                if error.status != 409 or "AlreadyExists" not in str(error.body):
                    raise
                # The name is drawn anew for each try: it is this pod, whose answer was lost.
                return pod

        return self.patiently(create)

    def delete_pod(self, pod: k8s.V1Pod) -> None:
        """Delete the pod, which may be gone already. Raises ApiException or HTTPError."""

        def delete() -> None:
            try:
                self._client.delete_namespaced_pod(
                    name=pod.metadata.name, namespace=pod.metadata.namespace
                )
            except ApiException as error:
                if error.status != 404:
                    raise

        self.patiently(delete)

    def label_pod(self, pod: k8s.V1Pod, labels: dict[str, str]) -> None:
        """Add labels to the pod. Raises ApiException or HTTPError."""
        name, namespace = pod.metadata.name, pod.metadata.namespace
        body = {"metadata": {"labels": labels}}
        self.patiently(lambda: self._client.patch_namespaced_pod(name, namespace, body))

    def list_pods(self, namespace: str, selector: str) -> list[k8s.V1Pod]:
        """The pods with these labels. Raises ApiException or HTTPError."""
        return self.patiently(
            lambda: (
                self._client.list_namespaced_pod(namespace=namespace, label_selector=selector).items
            )
        )

    def read_pod_logs(self, pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> Any:
        """The lines of a container's log, none while it cannot be read.

        The provider asks again as long as the container runs: training goes on without a reader.
        """
        # Without the provider's own repetitions: six tries in 30 s, then the task would fail.
        once = getattr(PodManager.read_pod_logs, "__wrapped__", PodManager.read_pod_logs)
        try:
            return self.patiently(lambda: once(self, pod, *args, **kwargs))
        except (ApiException, HTTPError) as error:
            self.log.warning("The log cannot be read: %s", _in_short(error))
            time.sleep(API_RETRY_SECONDS)
            return iter(())

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
    """Runs one task of a pipeline as a pod, and tells its result or what went wrong.

    `stuck_timeout_seconds`: how long a pod may wait for what nobody but a person provides (an image
    that cannot be pulled, a Secret that is missing). `failed_pod_ttl_seconds`: how long a failed
    pod is kept for a look, 0 deletes it at once.
    """

    def __init__(
        self,
        *,
        stuck_timeout_seconds: int = 120,
        failed_pod_ttl_seconds: int = 0,
        runtime_class_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.runtime_class_name = runtime_class_name
        self.stuck_timeout_seconds = stuck_timeout_seconds
        self.failed_pod_ttl_seconds = failed_pod_ttl_seconds

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
        """This try's pod once it has one, before that the one of an earlier try to go on with.

        That is a pod which runs, or has succeeded while nobody looked. One that has failed is put
        aside, one that is being deleted is waited for: it must not write beside its successor.
        """
        selector = self._build_find_pod_label_selector(context, exclude_checked=exclude_checked)
        pods = self.pod_manager.list_pods(namespace, selector)
        if self.pod is not None:
            return next((one for one in pods if one.metadata.name == self.pod.metadata.name), None)
        found = None
        for pod in sorted(pods, key=_age):
            if pod.metadata.deletion_timestamp is not None:
                self._await_deletion(pod)
            elif pod.status.phase == PodPhase.FAILED:
                reason = explain_failure(pod, self.base_container_name)
                self.log.warning("Pod %s of an earlier try failed: %s", pod.metadata.name, reason)
                self.process_pod_deletion(pod, reraise=False)
            elif found is not None or _is_of_an_earlier_run(pod, context):
                self.log.warning("Pod %s is not this run's any more", pod.metadata.name)
                self._delete_and_wait(pod)
            else:
                self.log_matching_pod(pod=pod, context=context)
                found = pod
        return found

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Any) -> k8s.V1Pod:
        """The pod of an earlier try that `find_pod` gives, else a new one.

        Raises AirflowException when the API server refuses it, or a ResourceQuota does until
        `startup_timeout_seconds` have passed.
        """
        namespace = pod_request_obj.metadata.namespace
        self._delete_expired_pods(namespace)
        pod = self.find_pod(namespace, context=context)
        if pod is not None:
            return pod
        give_up = time.monotonic() + self.startup_timeout_seconds
        logged = False
        while True:
            try:
                self.pod_manager.create_pod(pod_request_obj)
                return pod_request_obj
            except ApiException as error:
                quota = quota_in_the_way(error)
                if quota is None or quota.hopeless or time.monotonic() >= give_up:
                    raise AirflowException(
                        f"Pod {pod_request_obj.metadata.name} was refused: {explain_refusal(error)}"
                    ) from error
                if not logged:
                    self.log.info(
                        "Pod %s waits: %s", pod_request_obj.metadata.name, explain_refusal(error)
                    )
                    logged = True
            time.sleep(QUOTA_RETRY_SECONDS)

    def await_pod_start(self, pod: k8s.V1Pod) -> None:
        """Return when the pod has left Pending; log each new reason for waiting once.

        Raises AirflowException when it cannot start, has waited `stuck_timeout_seconds` for what
        only a person can provide, or has not started after `startup_timeout_seconds`.
        """
        give_up = time.monotonic() + self.startup_timeout_seconds
        logged, stuck_since = None, None
        while True:
            remote_pod = self.pod_manager.read_pod(pod)
            if remote_pod.status.phase != PodPhase.PENDING:
                if remote_pod.status.container_statuses is None and (
                    remote_pod.status.phase == PodPhase.FAILED
                ):
                    raise AirflowException(f"Pod {pod.metadata.name} failed before it started")
                return
            reason, message = waiting_for(remote_pod, self.base_container_name) or ("", "")
            if reason and reason != logged:
                explained = explain_wait(reason, message)
                self.log.info("Pod %s waits: %s", pod.metadata.name, explained)
                logged = reason
            if reason in HOPELESS_WAITS:
                raise AirflowException(f"Pod {pod.metadata.name} cannot start")
            now = time.monotonic()
            stuck_since = (stuck_since or now) if reason in STUCK_WAITS else None
            if stuck_since is not None and now - stuck_since >= self.stuck_timeout_seconds:
                raise AirflowException(
                    f"Pod {pod.metadata.name} cannot start: {reason} for "
                    f"{self.stuck_timeout_seconds} s (stuckTimeoutSeconds)"
                )
            if now >= give_up:
                raise AirflowException(
                    f"Pod {pod.metadata.name} did not start within {self.startup_timeout_seconds} s"
                    " (startupTimeoutSeconds)"
                )
            time.sleep(self.startup_check_interval_seconds)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Log the events of a failed pod, delete or keep the pod, and say why it failed.

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
            reason = explain_absence(self.pod_manager.last_seen)
            raise AirflowException(f"Pod {pod.metadata.name} is gone: {reason}") from raising
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

    def process_pod_deletion(self, pod: k8s.V1Pod, *, reraise: bool = True) -> bool:
        """Delete the pod, or keep it for a while if it has failed; return whether it was deleted.

        A kept pod has ended, and carries the label by which no later try takes it for its own.
        """
        until = int(time.time()) + self.failed_pod_ttl_seconds
        if self.failed_pod_ttl_seconds > 0 and pod.status.phase == PodPhase.FAILED:
            try:
                self.pod_manager.label_pod(
                    pod, {self.POD_CHECKED_KEY: "True", KEPT_UNTIL: str(until)}
                )
            except (ApiException, HTTPError) as error:
                self.log.warning("Pod %s is not kept: %s", pod.metadata.name, _in_short(error))
            else:
                self.log.info(
                    "Pod %s is kept until %s UTC for a look at it (failedPodTtlSeconds)",
                    pod.metadata.name,
                    datetime.fromtimestamp(until, tz=UTC).strftime("%H:%M:%S"),
                )
                return False
        super().process_pod_deletion(pod, reraise=reraise)
        return True

    def on_kill(self) -> None:
        """Delete the pod and see it gone: `clean_up`, or the next try, may start right after."""
        self._killed = True
        if self.pod is not None:
            try:
                self._delete_and_wait(self.pod)
            except (ApiException, HTTPError) as error:
                self.log.error("Pod %s: %s", self.pod.metadata.name, _in_short(error))

    def _delete_expired_pods(self, namespace: str) -> None:
        """Delete the failed pods of all pipelines whose time has come. Never fails the task."""
        try:
            for pod in self.pod_manager.list_pods(namespace, KEPT_UNTIL):
                if time.time() >= int(pod.metadata.labels[KEPT_UNTIL]):
                    self.pod_manager.delete_pod(pod)
        except (ApiException, HTTPError, ValueError) as error:
            self.log.warning("Failed pods of before could not be deleted: %s", error)

    def _delete_and_wait(self, pod: k8s.V1Pod) -> None:
        self.pod_manager.delete_pod(pod)
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


def _age(pod: k8s.V1Pod) -> float:
    """Seconds since the pod was created: the youngest comes first."""
    created = pod.metadata.creation_timestamp
    return (datetime.now(tz=UTC) - created).total_seconds() if created else 0.0


def _is_of_an_earlier_run(pod: k8s.V1Pod, context: Any) -> bool:
    """Whether the run was cleared after the pod was made: its files are gone since then."""
    started = getattr(context.get("dag_run"), "start_date", None)
    created = pod.metadata.creation_timestamp
    # The API server cuts the fraction of the second off.
    return bool(started and created and created < started.replace(microsecond=0))


def _is_transient(error: Exception) -> bool:
    if isinstance(error, ApiException):
        # A conflict: another pod was counted against the ResourceQuota at the same moment.
        return error.status in (0, None, 409, 429) or error.status >= 500
    return True  # no answer at all: refused, reset, timed out


def _in_short(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return f"{type(error).__name__}: {error}"
