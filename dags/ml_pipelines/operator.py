"""KubernetesPodOperator for any image, with what it lacks.

    PodOperator(task_id="fetch", image="python:3.12-slim", cmds=["python", "fetch.py"])

Every argument is KubernetesPodOperator's and means what it means there. What a task does not say
comes from the `default_args` of its DAG, then from the chart's values (settings.py), then from HOUSE.
What it does more:

* The container's termination message, as JSON, is the task's result, with the image that it ran.
  (`do_xcom_push=True` takes it from a sidecar in its place, as the parent does.)
* A pod that does not start, or fails, is explained in one line.
* It notices the end of a container within 0.2 s; the provider sleeps 1 s and 2 s.
* An API server that is away for a short time costs no try.
* A pod of an earlier try is followed while it runs, its success is taken over, its failure is not.
* A failed pod stays for a look at it, until the chart's janitor deletes it.
* A sidecar that the cluster injects does not hold the task up when its own container has ended.

Written against cncf-kubernetes 8.3.3 (Airflow 2.9.3) and 10.25.0 (Airflow 3.3.2).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import yaml
from airflow.exceptions import AirflowException, AirflowSkipException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodPhase
from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
from kubernetes.client import CoreV1Api
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ml_pipelines import settings
from ml_pipelines.failures import (
    HOPELESS_WAITS,
    STUCK_WAITS,
    container_state,
    explain_absence,
    explain_failure,
    explain_refusal,
    explain_wait,
    quota_in_the_way,
    waiting_for,
)
from ml_pipelines.lineage import dags_commit, image_of
from ml_pipelines.pod_manager import (
    POLL_SECONDS,
    PatientPodManager,
    in_short,
    limit_requests,
)

try:
    from airflow.sdk.bases.operator import get_merged_defaults
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext

    current_dag, current_group = DagContext.get_current, TaskGroupContext.get_current
except ImportError:  # Airflow 2
    from airflow.models.baseoperator import get_merged_defaults
    from airflow.models.dag import DagContext
    from airflow.utils.task_group import TaskGroupContext

    current_dag, current_group = (
        DagContext.get_current_dag,
        TaskGroupContext.get_current_task_group,
    )

# What holds where neither the task, nor its DAG, nor the values say anything.
HOUSE: dict[str, Any] = {
    "startup_timeout_seconds": 600,
    "stuck_timeout_seconds": 120,
    "startup_check_interval_seconds": 0.5,
    # The last lines of a container that has failed and left no message.
    "termination_message_policy": "FallbackToLogsOnError",
    "log_events_on_failure": True,
    "log_pod_spec_on_failure": False,  # it is long, and may hold what is nobody's business
    "on_finish_action": "delete_succeeded_pod",
}

# Annotation that is another one after the task or its run was cleared: the files of before are gone.
GENERATION = "ml-pipelines/generation"
# Airflow ends a task at its execution timeout and deletes the pod. The deadline in the pod itself
# comes a little later: it is for a pod whose worker died, and ends it with nobody watching.
DEADLINE_MARGIN_SECONDS = 60
# A deleted pod is gone after its grace period; the kubelet needs a moment more.
DELETION_MARGIN_SECONDS = 25
# How often the pod is asked for again while a ResourceQuota is used up.
QUOTA_RETRY_SECONDS = 5
# The kubelet cuts a termination message off here.
MESSAGE_BYTES = 4096


class ResultError(AirflowException):
    """The container has left a result that cannot be read."""


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
        given = kwargs.pop("default_args", None) or {}
        below = _defaults(kwargs, given, presets)
        super().__init__(do_xcom_push=do_xcom_push in (None, True), default_args=below, **kwargs)
        self.presets = tuple(presets)
        # Airflow has given this class its own arguments before it knows the values.
        self.stuck_timeout_seconds = stuck_timeout_seconds or below["stuck_timeout_seconds"]
        self.xcom_sidecar = do_xcom_push is True
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

    def build_pod_request_obj(self, context: Any = None, **kwargs: Any) -> k8s.V1Pod:
        """The pod as the parent makes it, over the template of the values."""
        template = self._template(context)
        with self._having(
            pod_template_dict=template, pod_template_file=None, do_xcom_push=self.xcom_sidecar
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

    def _template(self, context: Any) -> dict[str, Any]:
        """The values' Pod, what the operator itself adds, and over them the task's own template."""
        _, pod = settings.of_task(self.dag_id, self.task_id, self.presets)
        layers: list[Any] = [{"metadata": {}, "spec": {"containers": [{}]}}, pod]
        if self.pod_template_file:
            with open(self.pod_template_file, encoding="utf-8") as file:
                layers.append(yaml.safe_load(file))
        elif self.pod_template_dict:
            layers.append(self.pod_template_dict)
        template: dict[str, Any] = {}
        for layer in layers:
            template = settings.merge(template, self._base_first(layer))
        if context:
            self._add_lineage(template, context)
        if self.active_deadline_seconds is None and self.execution_timeout is not None:
            seconds = int(self.execution_timeout.total_seconds()) + DEADLINE_MARGIN_SECONDS
            template["spec"].setdefault("activeDeadlineSeconds", seconds)
        if self.termination_grace_period is not None:  # 8.3.3 does not write it into the pod
            template["spec"]["terminationGracePeriodSeconds"] = self.termination_grace_period
        return template

    def _base_first(self, pod: dict[str, Any]) -> dict[str, Any]:
        """The pod with its first container called as the operator's: the provider takes that one."""
        spec = pod.get("spec") or {}
        first, *others = spec.get("containers") or [{}]
        named = [{**first, "name": self.base_container_name}, *others]
        return {**pod, "spec": {**spec, "containers": named}}

    def _add_lineage(self, template: dict[str, Any], context: Any) -> None:
        """What a model or a prediction file should carry about the run that made it."""
        base = template["spec"]["containers"][0]
        variables = {
            "ML_PIPELINES_DAG_ID": self.dag_id,
            "ML_PIPELINES_RUN_ID": context["run_id"],
            "ML_PIPELINES_DAGS_COMMIT": dags_commit(),
            "ML_PIPELINES_IMAGE": self.image or base.get("image", ""),
        }
        env = [{"name": name, "value": value} for name, value in variables.items()]
        base["env"] = [*base.get("env", []), *env]
        template["metadata"].setdefault("annotations", {})[GENERATION] = _generation(context)

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
        # Known before it exists: on_kill finds it whatever happens in between.
        self.pod = pod_request_obj
        give_up = time.monotonic() + self.startup_timeout_seconds
        logged = False
        while True:
            try:
                self._create(pod_request_obj)
            except ApiException as error:
                said, quota = explain_refusal(error), quota_in_the_way(error)
                if quota is None or quota.hopeless or time.monotonic() >= give_up:
                    self.pod = None
                    raise AirflowException(f"Pod {name} was refused: {said}") from error
                if not logged:
                    self.log.info("Pod %s waits: %s", name, said)
                    logged = True
                time.sleep(QUOTA_RETRY_SECONDS)
            else:
                return pod_request_obj

    def _create(self, pod: k8s.V1Pod) -> None:
        body = self.client.api_client.sanitize_for_serialization(pod)

        def create() -> None:
            try:
                self.client.create_namespaced_pod(body=body, namespace=pod.metadata.namespace)
            except ApiException as error:
                if error.status != 409 or "AlreadyExists" not in str(error.body):
                    raise
                # Ours, if the answer got lost on the way; a name without a suffix may be taken.
                there = self.pod_manager.read_pod(pod).metadata.labels or {}
                if any(there.get(key) != said for key, said in body["metadata"]["labels"].items()):
                    self.pod = None
                    raise AirflowException(
                        f"Pod {pod.metadata.name} exists already, and is another task's"
                    ) from error

        self.pod_manager.patiently(create, final=quota_in_the_way)

    def find_pod(
        self, namespace: str, context: Any, *, exclude_checked: bool = True
    ) -> k8s.V1Pod | None:
        """This try's pod once it has one, before that the one of an earlier try to go on with.

        That is a pod which runs, or has succeeded while nobody looked. One that has failed is put
        aside, one that is being deleted is waited for: it must not write beside its successor.
        """
        if self.pod is not None:
            return self.pod_manager.read_pod(self.pod)
        selector = self._build_find_pod_label_selector(context, exclude_checked=exclude_checked)
        found = None
        for pod in self.pod_manager.list_pods(namespace, selector):
            if pod.metadata.deletion_timestamp is not None:
                self._await_deletion(pod)
            elif pod.status.phase == PodPhase.FAILED:
                reason = explain_failure(pod, self.base_container_name)
                self.log.warning("Pod %s of an earlier try failed: %s", pod.metadata.name, reason)
                self.patch_already_checked(pod, reraise=False)
                self.process_pod_deletion(pod, reraise=False)
            elif found is not None or not self._is_to_follow(pod, context):
                self.log.warning("Pod %s is not this run's any more", pod.metadata.name)
                self._delete_and_wait(pod)
            else:
                self.log_matching_pod(pod=pod, context=context)
                found = pod
        return found

    def _is_to_follow(self, pod: k8s.V1Pod, context: Any) -> bool:
        """Whether the task goes on with a pod of an earlier try: not after it was cleared."""
        made_for = (pod.metadata.annotations or {}).get(GENERATION)
        return self.reattach_on_restart and made_for in (None, _generation(context))

    def await_pod_start(self, pod: k8s.V1Pod) -> None:
        """Return when the pod has left Pending; log each new reason for waiting once.

        Raises AirflowException when it cannot start, has waited `stuck_timeout_seconds` for what
        only a person can provide, or has not started after `startup_timeout_seconds`; on providers
        that tell the two apart, of which `schedule_timeout_seconds` are for finding a node.
        """
        name, began, placed = pod.metadata.name, time.monotonic(), False
        logged, stuck_since = None, None
        while (seen := self.pod_manager.read_pod(pod)).status.phase == PodPhase.PENDING:
            now = time.monotonic()
            reason, message = waiting_for(seen, self.base_container_name) or ("", "")
            if reason and reason != logged:
                self.log.info("Pod %s waits: %s", name, explain_wait(reason, message))
                logged = reason
            if reason in HOPELESS_WAITS:
                raise AirflowException(f"Pod {name} cannot start")
            stuck_since = (stuck_since or now) if reason in STUCK_WAITS else None
            if stuck_since is not None and now - stuck_since >= self.stuck_timeout_seconds:
                raise AirflowException(
                    f"Pod {name} cannot start: {reason} for {self.stuck_timeout_seconds} s "
                    "(stuckTimeoutSeconds)"
                )
            limit = self.startup_timeout_seconds
            if hasattr(self, "schedule_timeout_seconds"):
                if seen.spec.node_name is None:
                    limit = self.schedule_timeout_seconds
                elif not placed:
                    placed, began = True, now
            if now - began >= limit:
                raise AirflowException(
                    f"Pod {name} did not start within {limit} s (startupTimeoutSeconds)"
                )
            time.sleep(self.startup_check_interval_seconds)
        if seen.status.phase == PodPhase.FAILED and not seen.status.container_statuses:
            raise AirflowException(f"Pod {name} failed before it started")

    def is_istio_enabled(self, pod: k8s.V1Pod) -> bool:
        """Whether the pod has a container that nobody declared: it ends with the task's own."""
        seen = self.pod_manager.last_seen
        if seen is None:
            return False
        declared = self._declared()
        return any(one.name not in declared for one in seen.spec.containers)

    def _declared(self) -> set[str]:
        """The names of the containers that values and task ask for, whose end is waited for."""
        containers = self._template(None)["spec"]["containers"]
        names = {one["name"] for one in containers} | {PodDefaults.SIDECAR_CONTAINER_NAME}
        if self.full_pod_spec is not None and self.full_pod_spec.spec is not None:
            names |= {one.name for one in self.full_pod_spec.spec.containers}
        return names

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
        if self.xcom_sidecar:
            result = super().extract_xcom(pod, **kwargs)
        else:
            result = self._message()
        if result is not None:
            self._context["ti"].xcom_push(key="return_value", value=result)
        return result

    def _message(self) -> Any:
        pod = self.pod_manager.await_pod_completion(
            self.pod, self.is_istio_enabled(self.pod), self.base_container_name
        )
        state = container_state(pod, self.base_container_name)
        if state is None or state.terminated is None or state.terminated.exit_code != 0:
            return None
        result, said = None, state.terminated.message
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
            return {**(result or {}), **image_of(pod, self.base_container_name)}
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
        name = pod.metadata.name
        try:
            remote_pod = self.pod_manager.read_pod(remote_pod)
        except (ApiException, HTTPError) as error:
            if getattr(error, "status", None) == 404:
                self._tell_absence(name, raising)
            elif raising is not None:
                # It may be working well: the next try follows it.
                self.log.warning("Pod %s stays as it is: %s", name, in_short(error))
            else:
                raise
            return
        self.remote_pod = remote_pod
        ended = remote_pod.status.phase in PodPhase.terminal_states
        lost = isinstance(raising, Exception) and not isinstance(raising, ResultError)
        if lost and self.reattach_on_restart and remote_pod.status.phase == PodPhase.SUCCEEDED:
            self.log.warning("Pod %s succeeded and stays, for the next try to take over", name)
            return
        try:
            super().cleanup(pod, remote_pod, *args, **kwargs)
        except AirflowSkipException:
            raise
        except AirflowException as error:
            reason = explain_failure(remote_pod, self.base_container_name)
            if not ended and self.on_finish_action != "keep_pod":
                self._delete_and_wait(remote_pod)  # else it would write beside the next try
            self.pod = None  # nothing is left for on_kill
            # What the triggerer has seen is the end of this pod, told in fewer words.
            if raising is None or (self._resumed and isinstance(raising, AirflowException)):
                spec = f"\nremote_pod: {remote_pod}" if self.log_pod_spec_on_failure else ""
                raise AirflowException(f"Pod {name} failed: {reason}{spec}") from error
            self.log.error("Pod %s was stopped: %s", name, reason)

    def _tell_absence(self, name: str, raising: BaseException | None) -> None:
        self.pod = None
        reason = explain_absence(self.pod_manager.last_seen)
        if raising is None or isinstance(raising, Exception):
            raise AirflowException(f"Pod {name} is gone: {reason}") from raising
        self.log.error("Pod %s is gone: %s", name, reason)

    def on_kill(self) -> None:
        """Delete the pod and see it gone: `clean_up`, or the next try, may start right after."""
        self._killed = True
        if self.pod is not None and getattr(self, "on_kill_action", "delete_pod") == "delete_pod":
            try:
                self._delete_and_wait(self.pod)
            except (ApiException, HTTPError) as error:
                self.log.error("Pod %s: %s", self.pod.metadata.name, in_short(error))

    def _delete_and_wait(self, pod: k8s.V1Pod) -> None:
        self.pod_manager.delete_pod(pod)
        self._await_deletion(pod)

    def _await_deletion(self, pod: k8s.V1Pod) -> None:
        """Return when the pod is gone, or its grace period is over by a good margin."""
        grace = pod.spec.termination_grace_period_seconds if pod.spec else None
        give_up = time.monotonic() + (30 if grace is None else grace) + DELETION_MARGIN_SECONDS
        while time.monotonic() < give_up:
            try:
                latest = self.pod_manager.read_pod(pod)
            except (ApiException, HTTPError) as error:
                if getattr(error, "status", None) == 404:
                    return
                self.log.warning("Kubernetes API: %s", in_short(error))
            else:
                if latest.status.phase in PodPhase.terminal_states:
                    return
            time.sleep(POLL_SECONDS)
        self.log.warning("Pod %s is still being deleted", pod.metadata.name)


def _defaults(
    known: dict[str, Any], given: dict[str, Any], presets: Iterable[str]
) -> dict[str, Any]:
    """The lowest layers of a task's arguments: HOUSE, the values, then what its DAG has `given`."""
    dag = known.get("dag") or current_dag()
    group = known.get("task_group") or (current_group(dag) if dag else None)
    task_id = known["task_id"]
    if group is not None and not str(task_id).startswith(f"{group.group_id}."):
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
