"""KubernetesPodOperator for any image, with what it lacks.

    PodOperator(task_id="fetch", image="python:3.12-slim", cmds=["python", "fetch.py"])

Every argument is KubernetesPodOperator's and means what it means there. What a task does not say
comes from its DAG's `default_args`, then from the chart's values (settings.py), then from HOUSE.
What it does more:

* The container's termination message, as JSON, is the task's result, with the image that it ran.
  (`do_xcom_push=True` takes it from a sidecar in its place, as the parent does.)
* A pod that does not start, or fails, is explained in one line.
* It notices the end of a container within 0.2 s; the provider sleeps 1 s and 2 s.
* An API server that is away for a short time costs no try.
* A pod of an earlier try is followed while it runs, its success is taken over, its failure is not.
* A failed pod stays for a look at it, until the chart's janitor deletes it; one that still runs when
  its try ends is deleted (but with `on_finish_action="keep_pod"`).
* A sidecar that the cluster injects does not hold the task up when its own container has ended.

Written against cncf-kubernetes 8.3.3 (Airflow 2.9.3) and 10.25.0 (Airflow 3.3.2).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import yaml
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    PodLaunchFailedException,
    PodPhase,
    get_container_status,
)
from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
from kubernetes.client import CoreV1Api
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ml_pipelines import failures, settings
from ml_pipelines.lineage import dags_commit, image_of
from ml_pipelines.pod_manager import POLL_SECONDS, PatientPodManager, in_short, limit_requests

try:
    from airflow.sdk.bases.operator import get_merged_defaults
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

    current_dag, current_group = DagContext.get_current, TaskGroupContext.get_current
except ImportError:  # Airflow 2
    from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
    from airflow.models.baseoperator import get_merged_defaults
    from airflow.models.dag import DagContext
    from airflow.utils.task_group import TaskGroupContext

    current_dag = DagContext.get_current_dag
    current_group = TaskGroupContext.get_current_task_group

# What holds where neither the task, nor its DAG, nor the values say anything.
HOUSE: dict[str, Any] = {
    "startup_timeout_seconds": 600,
    "stuck_timeout_seconds": 120,
    "startup_check_interval_seconds": 0.5,
    "base_container_status_polling_interval": POLL_SECONDS,
    # The last lines of a container that has failed and left no message.
    "termination_message_policy": "FallbackToLogsOnError",
    "log_events_on_startup": False,  # what a pod waits for is told in one line
    "log_events_on_failure": True,
    "log_pod_spec_on_failure": False,  # it is long, and may hold what is nobody's business
    "on_finish_action": "delete_succeeded_pod",
}
# Annotation that is another one after the task or its run was cleared: the files of before are gone.
GENERATION = "ml-pipelines/generation"
# Airflow ends a task at its execution timeout and deletes the pod. The deadline in the pod itself
# comes a little later: it is for a pod whose worker died, and ends it with nobody watching.
DEADLINE_MARGIN_SECONDS = 60
# How often the pod is asked for again while a ResourceQuota is used up.
QUOTA_RETRY_SECONDS = 5
# The kubelet cuts a termination message off here.
MESSAGE_BYTES = 4096
REQUEST_ERRORS = (ApiException, HTTPError)


class ResultError(AirflowFailException):
    """The container has left a result that cannot be read; to run it again changes nothing."""


class PodOperator(KubernetesPodOperator):
    """Runs one task as a pod, and tells its result or what went wrong.

    `presets`: names of `pipelines.presets` in the chart's values, laid over what holds for all
    tasks, e.g. `["registry"]`. `stuck_timeout_seconds`: how long a pod may wait for what nobody but
    a person provides (an image that cannot be pulled, a Secret that is missing).
    Raises SettingsError for a preset that does not exist.
    """

    def __init__(
        self,
        *,
        presets: Iterable[str] = (),
        stuck_timeout_seconds: int | None = None,
        do_xcom_push: bool | None = None,
        **kwargs: Any,
    ) -> None:
        below = _defaults(kwargs, kwargs.pop("default_args", None) or {}, presets)
        # Airflow has given this class its own arguments before it knew the values.
        wanted = below.get("do_xcom_push") if do_xcom_push is None else do_xcom_push
        super().__init__(do_xcom_push=wanted is not False, default_args=below, **kwargs)
        self.presets = tuple(presets)
        self.stuck_timeout_seconds = stuck_timeout_seconds or below["stuck_timeout_seconds"]
        self.xcom_sidecar = wanted is True
        self._context: Any = None
        self._handled: BaseException | None = None
        self._resumed = False

    @classmethod
    def partial(cls, *, task_id: str, **kwargs: Any) -> Any:
        """As the parent's. What the scheduler must know of a mapped task comes from the values too."""
        dag = kwargs.get("dag") or current_dag()
        group = kwargs.get("task_group") or (current_group(dag) if dag else None)
        given, _ = get_merged_defaults(dag, group, None, kwargs.get("default_args"))
        known = {"task_id": task_id, "dag": dag, "task_group": group}
        kwargs["default_args"] = _defaults(known, given, kwargs.get("presets", ()))
        return super().partial(task_id=task_id, **kwargs)

    @cached_property
    def client(self) -> CoreV1Api:
        """The provider's client, whose requests end."""
        client = super().client
        limit_requests(client)
        return client

    @cached_property
    def pod_manager(self) -> PatientPodManager:
        """The provider's, however it makes it; its arguments differ by version."""
        manager = super().pod_manager
        manager.__class__ = PatientPodManager
        return manager

    # The pod

    @staticmethod
    def _get_ti_pod_labels(context: Any = None, include_try_number: bool = True) -> dict[str, str]:
        """The parent's, valid also for an id without a safe character: its label is `-` and a hash."""
        labels = KubernetesPodOperator._get_ti_pod_labels(context, include_try_number)
        return {key: value.lstrip("-") for key, value in labels.items()}

    def build_pod_request_obj(self, context: Any = None, **kwargs: Any) -> k8s.V1Pod:
        """The pod as the parent makes it, over the template of the values."""
        with self._having(
            pod_template_dict=self._template(context),
            pod_template_file=None,
            do_xcom_push=self.xcom_sidecar,
        ):
            pod = super().build_pod_request_obj(context, **kwargs)
        spec = pod.spec
        # False is nothing to the provider, which drops it from a template. The workload does not
        # talk to the API server; service links are seven variables per Service of the namespace.
        if spec.automount_service_account_token is None:
            spec.automount_service_account_token = False
        if spec.enable_service_links is None:
            spec.enable_service_links = False
        # The provider adds up the lists of template and task; the task's entry is the one meant.
        spec.volumes = _last(spec.volumes, lambda volume: volume.name)
        for container in spec.containers:
            mounts = _last(container.volume_mounts, lambda mount: mount.mount_path.rstrip("/"))
            container.volume_mounts = mounts
        return pod

    def _template(self, context: Any = None) -> dict[str, Any]:
        """What the operator itself adds, over it the values' Pod, then the task's own template."""
        _, pod = settings.of_task(self.dag_id, self.task_id, self.presets)
        template = self._base_first(pod)
        if self.pod_template_file:
            with open(self.pod_template_file, encoding="utf-8") as file:
                template = settings.merge(template, self._base_first(yaml.safe_load(file)))
        elif self.pod_template_dict:
            template = settings.merge(template, self._base_first(self.pod_template_dict))
        house: dict[str, Any] = {"spec": {"containers": [{"name": self.base_container_name}]}}
        if self.execution_timeout is not None:
            seconds = int(self.execution_timeout.total_seconds()) + DEADLINE_MARGIN_SECONDS
            house["spec"]["activeDeadlineSeconds"] = seconds
        if context:
            # What a model or a prediction file should carry about the run that made it.
            image = self.image or template["spec"]["containers"][0].get("image", "")
            house["metadata"] = {"annotations": {GENERATION: _generation(context)}}
            house["spec"]["containers"][0]["env"] = [
                {"name": "ML_PIPELINES_DAG_ID", "value": self.dag_id},
                {"name": "ML_PIPELINES_RUN_ID", "value": context["run_id"]},
                {"name": "ML_PIPELINES_DAGS_COMMIT", "value": dags_commit()},
                {"name": "ML_PIPELINES_IMAGE", "value": image},
            ]
        return settings.merge(house, template)

    def _base_first(self, pod: dict[str, Any]) -> dict[str, Any]:
        """The pod with its first container called as the operator's: the provider takes that one."""
        spec = pod.get("spec") or {}
        first, *others = spec.get("containers") or [{}]
        named = [{**first, "name": self.base_container_name}, *others]
        return {**pod, "spec": {**spec, "containers": named}}

    @contextmanager
    def _having(self, **attributes: Any) -> Any:
        """Other attributes for the time of a call of the parent's."""
        before = {name: getattr(self, name) for name in attributes}
        self.__dict__.update(attributes)
        try:
            yield
        finally:
            self.__dict__.update(before)

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Any) -> k8s.V1Pod:
        """The pod of an earlier try that `find_pod` gives, else a new one.

        Raises AirflowException when the API server refuses it, or a ResourceQuota does until
        `startup_timeout_seconds` have passed.
        """
        name, namespace = pod_request_obj.metadata.name, pod_request_obj.metadata.namespace
        pod = self.find_pod(namespace, context=context)
        if pod is not None:
            return pod
        if not self.random_name_suffix and self.on_finish_action != "keep_pod":
            self._clear_name(pod_request_obj)
        # Known before it exists: on_kill finds it whatever happens in between.
        self.pod = pod_request_obj
        body = self.client.api_client.sanitize_for_serialization(pod_request_obj)
        give_up, logged = time.monotonic() + self.startup_timeout_seconds, False
        while True:
            try:
                self.pod_manager.request("create_namespaced_pod", body=body, namespace=namespace)
                return pod_request_obj
            except ApiException as error:
                if error.status == 409 and self._is_made(pod_request_obj):
                    return pod_request_obj
                said = failures.explain_refusal(error)
                if not failures.exceeds_quota(error) or time.monotonic() >= give_up:
                    self.pod = None  # a pod of this name is another task's: not for on_kill
                    raise AirflowException(f"Pod {name} was refused: {said}") from error
                if not logged:
                    self.log.info("Pod %s waits: %s", name, said)
                    logged = True
            time.sleep(QUOTA_RETRY_SECONDS)

    def _is_made(self, pod: k8s.V1Pod) -> bool:
        """Whether the pod of this name is this try's: the answer may have got lost on the way."""
        there = self.pod_manager.read_pod(pod).metadata.labels or {}
        return all(there.get(key) == said for key, said in pod.metadata.labels.items())

    def _clear_name(self, pod: k8s.V1Pod) -> None:
        """Delete the pod that this task has left for a look, under the name that it needs again."""
        labels = {key: pod.metadata.labels[key] for key in ("dag_id", "task_id")}
        labels[self.POD_CHECKED_KEY] = "True"
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        for left in self.pod_manager.list_pods(pod.metadata.namespace, selector):
            if left.metadata.name == pod.metadata.name:
                self._delete_and_wait(left)

    def find_pod(
        self, namespace: str, context: Any, *, exclude_checked: bool = True
    ) -> k8s.V1Pod | None:
        """This try's pod once it has one, before that the one of an earlier try to go on with.

        That is a pod which runs, or has succeeded while nobody looked. Others are put aside; one
        that may still write is waited for, so that it does not write beside its successor.
        """
        if self.pod is not None:
            return self.pod_manager.read_pod(self.pod)
        selector = self._build_find_pod_label_selector(context, exclude_checked=exclude_checked)
        found = None
        for pod in self.pod_manager.list_pods(namespace, selector):
            made_for = (pod.metadata.annotations or {}).get(GENERATION)
            same_run = self.reattach_on_restart and made_for in (None, _generation(context))
            if pod.metadata.deletion_timestamp is not None:
                self._await_deletion(pod)
            elif found is None and same_run and pod.status.phase != PodPhase.FAILED:
                self.log_matching_pod(pod=pod, context=context)
                found = pod
            else:
                reason = failures.explain_failure(pod, self.base_container_name)
                self.log.warning("Pod %s is not followed: %s", pod.metadata.name, reason)
                self.patch_already_checked(pod, reraise=False)
                if pod.status.phase in PodPhase.terminal_states:
                    self.process_pod_deletion(pod, reraise=False)
                else:
                    self._delete_and_wait(pod)
        return found

    def await_pod_start(self, pod: k8s.V1Pod) -> None:
        """Return when the pod has left Pending; log each new reason for waiting once.

        Raises PodLaunchFailedException when it cannot start, waits `stuck_timeout_seconds` for what
        only a person can provide, or does not start within `startup_timeout_seconds`; with a newer
        provider, of which `schedule_timeout_seconds` are for finding a node.
        """
        name, told = pod.metadata.name, set[str]()
        limit, began, stuck_since = "", 0.0, None
        while (seen := self.pod_manager.read_pod(pod)).status.phase == PodPhase.PENDING:
            now = time.monotonic()
            reason, message = failures.waiting_for(seen, self.base_container_name) or ("", "")
            if reason and reason not in told:
                self.log.info("Pod %s waits: %s", name, failures.explain_wait(reason, message))
            told.add(reason)
            if getattr(self, "log_events_on_startup", False):
                self._tell_events(pod, told)
            stuck_since = (stuck_since or now) if reason in failures.STUCK_WAITS else None
            if reason in failures.HOPELESS_WAITS:
                raise PodLaunchFailedException(f"Pod {name} cannot start: {reason}")
            if stuck_since and now - stuck_since >= (seconds := self.stuck_timeout_seconds):
                raise PodLaunchFailedException(
                    f"Pod {name} cannot start: {reason} for {seconds} s (stuck_timeout_seconds)"
                )
            before, limit = limit, "startup_timeout_seconds"
            if seen.spec.node_name is None and hasattr(self, "schedule_timeout_seconds"):
                limit = "schedule_timeout_seconds"
            if limit != before:
                began = now
            if now - began >= (seconds := getattr(self, limit)):
                raise PodLaunchFailedException(
                    f"Pod {name} did not start within {seconds} s ({limit})"
                )
            time.sleep(self.startup_check_interval_seconds)

    def _tell_events(self, pod: k8s.V1Pod, told: set[str]) -> None:
        with suppress(*REQUEST_ERRORS):
            for event in self.pod_manager.read_pod_events(pod).items:
                if event.metadata.uid not in told:
                    self.log.info("Pod Event: %s - %s", event.reason, event.message)
                told.add(event.metadata.uid)

    def is_istio_enabled(self, pod: k8s.V1Pod) -> bool:
        """Whether the pod has a container that neither values nor task declare.

        It was injected and ends with the task's own, while the end of declared ones is waited for.
        """
        declared = {one["name"] for one in self._template()["spec"]["containers"]}
        if self.full_pod_spec is not None and self.full_pod_spec.spec is not None:
            declared |= {one.name for one in self.full_pod_spec.spec.containers}
        declared.add(PodDefaults.SIDECAR_CONTAINER_NAME)
        seen = self.pod_manager.last_seen or pod
        return bool(seen) and any(one.name not in declared for one in seen.spec.containers)

    # Its result

    def execute_sync(self, context: Any) -> Any:
        """Run the pod to its end, and return its result.

        Not `execute`: Airflow 2.9 takes the call of the parent's for a misuse and warns.
        """
        self._begin(context)
        return super().execute_sync(context)

    def trigger_reentry(self, context: Any, event: dict[str, Any]) -> Any:
        """Go on where the triggerer has waited for the pod, and return its result."""
        self._begin(context)
        self._resumed = True
        return super().trigger_reentry(context, event)

    def _begin(self, context: Any) -> None:
        self._context = context
        # The caller may be handling an exception: not the one that ends this try.
        self._handled = sys.exc_info()[1]

    def extract_xcom(self, pod: k8s.V1Pod, **kwargs: Any) -> Any:
        """What the container left as its termination message, read as JSON; None if it failed.

        An object gets `image` and `image_digest` added: what it ran, which a tag that moves does
        not say. It is pushed here as well, before the pod goes: with a database that is away the
        try fails and the pod stays, for the next one to take over its success.
        Raises ResultError for a message that the kubelet has cut off.
        """
        result = super().extract_xcom(pod, **kwargs) if self.xcom_sidecar else self._message()
        if result is not None:
            self._context["ti"].xcom_push(key="return_value", value=result)
        return result

    def _message(self) -> Any:
        name, manager = self.base_container_name, self.pod_manager
        if self._resumed:  # the triggerer has waited, perhaps for a pod that never started
            pod = manager.read_pod(self.pod)
        else:
            pod = manager.await_pod_completion(self.pod, self.is_istio_enabled(self.pod), name)
        status = get_container_status(pod, name)
        ended = status.state.terminated if status else None
        if ended is None or ended.exit_code != 0 or pod.status.phase == PodPhase.FAILED:
            return None
        result, said = None, ended.message
        if said:
            try:
                result = json.loads(said)
            except json.JSONDecodeError as error:
                if len(said.encode()) >= MESSAGE_BYTES:
                    raise ResultError(
                        f"the result in /dev/termination-log is longer than the {MESSAGE_BYTES} "
                        "bytes that Kubernetes takes: leave it in a file, or set do_xcom_push=True"
                    ) from error
                self.log.warning("Not a result: the termination message %r", said)
        if result is None or isinstance(result, dict):
            return {**(result or {}), **image_of(pod, name)}
        return result

    # Its end

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Log the events of a failed pod, delete or keep the pod, and say why it failed.

        Called at the end of every try, failed or not. Raises AirflowException if the pod failed.
        """
        if self._killed or not remote_pod:
            return
        # Set when the try is ending by an exception (a time limit, a lost connection): this method
        # runs in a `finally`, and what it raises would take the place of the real reason.
        raising = sys.exc_info()[1]
        if raising is self._handled:
            raising = None
        try:
            self.remote_pod = remote_pod = self.pod_manager.read_pod(remote_pod)
        except REQUEST_ERRORS as error:
            if getattr(error, "status", None) == 404:
                reason = failures.explain_absence(self.pod_manager.last_seen)
                self._tell_end(pod, f"is gone: {reason}", raising)
            elif raising is None:
                raise
            else:  # it may be working well: the next try follows it
                self.log.warning("Pod %s stays as it is: %s", pod.metadata.name, in_short(error))
            return
        phase = remote_pod.status.phase
        if phase == PodPhase.SUCCEEDED:
            unfinished = isinstance(raising, Exception) and not isinstance(raising, ResultError)
        else:
            unfinished = isinstance(raising, REQUEST_ERRORS) and phase != PodPhase.FAILED
        if unfinished and self.reattach_on_restart:
            self.log.warning("Pod %s (%s) stays, for the next try", pod.metadata.name, phase)
            return
        try:
            # Without the sidecar the whole pod has to succeed, not only its first container.
            with self._having(do_xcom_push=self.xcom_sidecar):
                super().cleanup(pod, remote_pod, *args, **kwargs)
        except AirflowSkipException:
            raise
        except AirflowException:
            reason = failures.explain_failure(remote_pod, self.base_container_name)
            if phase not in PodPhase.terminal_states and self.on_finish_action != "keep_pod":
                with suppress(*REQUEST_ERRORS):
                    self._delete_and_wait(remote_pod)  # else it would write beside the next try
            spec = f"\nremote_pod: {remote_pod}" if self.log_pod_spec_on_failure else ""
            self._tell_end(pod, f"failed: {reason}{spec}", raising)

    def _tell_end(self, pod: k8s.V1Pod, said: str, raising: BaseException | None) -> None:
        """Raise how the pod has ended; only log it if the exception that ends the try says more."""
        self.pod = None  # nothing is left for on_kill
        # What the triggerer has seen, or a request has met, is this end of the pod.
        less = isinstance(raising, AirflowException) if self._resumed else False
        if raising is None or less or isinstance(raising, REQUEST_ERRORS):
            raise AirflowException(f"Pod {pod.metadata.name} {said}") from raising
        self.log.error("Pod %s %s", pod.metadata.name, said)

    def on_kill(self) -> None:
        """Delete the pod and see it gone: `clean_up`, or the next try, may start right after."""
        self._killed = True
        if self.pod is None or getattr(self, "on_kill_action", "delete_pod") == "keep_pod":
            return
        grace = self.termination_grace_period
        options = {} if grace is None else {"grace_period_seconds": grace}
        try:
            self._delete_and_wait(self.pod, **options)
        except REQUEST_ERRORS as error:
            self.log.error("Pod %s: %s", self.pod.metadata.name, in_short(error))

    def _delete_and_wait(self, pod: k8s.V1Pod, **options: Any) -> None:
        self.pod_manager.delete_pod(pod, **options)
        self._await_deletion(pod)

    def _await_deletion(self, pod: k8s.V1Pod) -> None:
        """Return when a pod that is being deleted writes no more: it has ended, or is lost."""
        try:
            while self.pod_manager.read_pod(pod).status.phase not in PodPhase.terminal_states:
                time.sleep(POLL_SECONDS)
        except ApiException as error:
            if error.status != 404:
                raise


def _defaults(
    known: dict[str, Any], given: dict[str, Any], presets: Iterable[str]
) -> dict[str, Any]:
    """The lowest layers of a task's arguments: HOUSE, the values, then what its DAG has `given`."""
    dag = known.get("dag") or current_dag()
    group = known.get("task_group") or (current_group(dag) if dag else None)
    task_id = known["task_id"]
    if group is not None and not task_id.startswith(f"{group.group_id}."):
        task_id = group.child_id(task_id)  # not yet, unless a mapped task is being made
    arguments, _ = settings.of_task(dag.dag_id if dag else "", task_id, presets)
    return HOUSE | arguments | given


def _generation(context: Any) -> str:
    """What is the same for all tries of a task until it, or its run, is cleared.

    Airflow starts a cleared run anew, and raises the number of tries of a cleared task. No clock of
    the API server is asked: it may differ from Airflow's.
    """
    started = getattr(context.get("dag_run"), "start_date", None)
    return f"{started.isoformat() if started else ''}/{getattr(context['ti'], 'max_tries', '')}"


def _last(items: list[Any] | None, key: Any) -> list[Any] | None:
    """Of items with the same key the last."""
    return list({key(item): item for item in items}.values()) if items else items
