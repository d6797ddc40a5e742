"""KubernetesPodOperator for any image, with what it lacks.

Every argument is that of cncf-kubernetes 8.3.3 (Airflow 2.9.3) to 10.25.0 (Airflow 3.3.2) and means
what it means there. What a task does not say comes from its DAG's `default_args`, then from the
chart's values (settings.py), then from HOUSE.

* The container's termination message, as JSON, is the task's result, with the image that it ran.
* Why a pod does not start, or has failed, is told in one line; a failed one stays for a while.
* An API server that is away is asked again. Room in a ResourceQuota is waited for, by the triggerer
  where there is one: a worker that waits takes room itself.
* A pod of an earlier try is followed while it runs, its success is taken over, its failure is not.
  One that still runs when its task has failed is deleted, also if its worker has died.
* A sidecar that the cluster injects does not hold the task up when its own container has ended.
"""

import random
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchFailedException, PodPhase
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException

from ml_pipelines import failures, settings
from ml_pipelines.lineage import FAILURE, dags_commit, result_of
from ml_pipelines.pod_manager import POLL_SECONDS, REQUEST_ERRORS, XCOM_SIDECAR, PatientPodManager

try:
    from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

    current_group = TaskGroupContext.get_current
except ImportError:  # Airflow 2
    from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
    from airflow.models.dag import DagContext
    from airflow.triggers.temporal import TimeDeltaTrigger
    from airflow.utils.task_group import TaskGroupContext

    current_group = TaskGroupContext.get_current_task_group

# What holds where neither the task, nor its DAG, nor the values say anything.
HOUSE: dict[str, Any] = {
    "startup_timeout_seconds": 600,
    "stuck_timeout_seconds": 120,
    "startup_check_interval_seconds": 0.5,
    "base_container_status_polling_interval": POLL_SECONDS,
    "termination_message_policy": "FallbackToLogsOnError",  # what a failed one has said last
    "log_events_on_startup": False,  # what a pod waits for is told anyway
    "log_events_on_failure": True,
    "log_pod_spec_on_failure": False,  # it is long, and may hold what is nobody's business
    "on_finish_action": "delete_succeeded_pod",
}
# Annotation of the pods of one life of a task: when it is cleared, the files of before are gone.
GENERATION = "ml-pipelines/generation"
QUOTA_RETRY_SECONDS = 1  # while a ResourceQuota is used up
# A worker waits for room so long, then nobody: some leave early, and the others get their room.
QUOTA_WORKER_SECONDS = (5, 20)
QUOTA_AWAY_SECONDS = (20, 60)


class PodOperator(KubernetesPodOperator):
    """Runs one task as a pod, and tells its result or what went wrong.

    `presets`: names of `pipelines.presets` in the chart's values, laid over what holds for all
    tasks, e.g. `["registry"]`. `stuck_timeout_seconds`: how long a pod may wait for what nobody but
    a person provides (an image that cannot be pulled, a Secret that is missing).
    Raises SettingsError for a preset that does not exist.
    """

    deadline_margin_seconds = 60  # after the execution timeout, at which a worker deletes the pod

    def __init__(
        self,
        *,
        presets: Iterable[str] = (),
        stuck_timeout_seconds: int | None = None,
        do_xcom_push: bool | None = None,
        **kwargs: Any,
    ) -> None:
        below = _defaults(kwargs, kwargs.pop("default_args"), presets)
        # Airflow has given this class its own arguments before it knew the values.
        wanted = below.get("do_xcom_push") if do_xcom_push is None else do_xcom_push
        super().__init__(do_xcom_push=wanted is not False, default_args=below, **kwargs)
        self.presets = tuple(presets)
        self.stuck_timeout_seconds = stuck_timeout_seconds or below["stuck_timeout_seconds"]
        self.xcom_sidecar = wanted is True
        self._context, self._handled, self._resumed = None, None, False
        self._refused = 0.0  # when a quota has refused the pod of this try for the first time
        if (values := settings.load()).get("launch") == "triggerer":
            from one_pod import launch  # a package of images/airflow3

            if launch.by_triggerer(self, values):
                return
        self.on_failure_callback = _and_ours(self.on_failure_callback)

    @classmethod
    def partial(cls, *, task_id: str, **kwargs: Any) -> Any:
        """As the parent's. What the scheduler knows of a mapped task comes from the values too."""
        given = kwargs.pop("default_args", None) or {}
        for above in _surroundings(kwargs):
            given = (above.default_args if above else {}) | given
        below = _defaults(kwargs | {"task_id": task_id}, given, kwargs.get("presets", ()))
        mapped = super().partial(task_id=task_id, default_args=below, **kwargs)
        mapped.kwargs["on_failure_callback"] = _and_ours(mapped.kwargs.get("on_failure_callback"))
        return mapped

    @cached_property
    def pod_manager(self) -> PatientPodManager:
        """The provider's, however it makes it: its arguments differ by version."""
        return PatientPodManager.of(super().pod_manager)

    def build_pod_request_obj(self, context: Any = None, **kwargs: Any) -> k8s.V1Pod:
        """The pod as the parent makes it, over the template of the values."""
        template = {"pod_template_dict": self._template(context), "pod_template_file": None}
        with self._having(**template, do_xcom_push=self.xcom_sidecar):
            pod = super().build_pod_request_obj(context, **kwargs)
        # The provider drops what is False from a template. The workload does not talk to the API
        # server; service links are seven variables per Service of the namespace.
        for name in ("automount_service_account_token", "enable_service_links"):
            if getattr(pod.spec, name) is None:
                setattr(pod.spec, name, False)
        # The provider adds up the lists of template and task; the task's entry is the one meant.
        pod.spec.volumes = list({one.name: one for one in pod.spec.volumes or []}.values())
        for container in pod.spec.containers:
            mounts = {one.mount_path.rstrip("/"): one for one in container.volume_mounts or []}
            container.volume_mounts = list(mounts.values())
        return pod

    def _template(self, context: Any = None) -> dict[str, Any]:
        """What the operator itself adds, over it the values' Pod, then the task's own template."""
        _, pod = settings.of_task(self.dag_id, self.task_id, self.presets)
        own = self.pod_template_dict or {}
        if self.pod_template_file:
            own = yaml.safe_load(Path(self.pod_template_file).read_text(encoding="utf-8"))
        template = settings.merge(self._base_first(pod), self._base_first(own))
        image = self.image or template["spec"]["containers"][0].get("image", "")
        base: dict[str, Any] = {"name": self.base_container_name}
        house: dict[str, Any] = {"spec": {"containers": [base]}}
        if self.execution_timeout is not None:
            seconds = int(self.execution_timeout.total_seconds()) + self.deadline_margin_seconds
            house["spec"]["activeDeadlineSeconds"] = seconds
        if context:
            # What a model or a prediction file should carry about the run that made it.
            variables = {
                "ML_PIPELINES_DAG_ID": self.dag_id,
                "ML_PIPELINES_RUN_ID": context["run_id"],
                "ML_PIPELINES_DAGS_COMMIT": dags_commit(),
                "ML_PIPELINES_IMAGE": image,
            }
            base["env"] = [{"name": name, "value": value} for name, value in variables.items()]
            house["metadata"] = {"annotations": {GENERATION: _generation(context)}}
        return settings.merge(house, template)

    def _base_first(self, pod: dict[str, Any]) -> dict[str, Any]:
        """The pod with its first container called as the operator's: the provider takes that."""
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

        Raises AirflowException when it is refused, by a quota until `startup_timeout_seconds` end;
        TaskDeferred before that.
        """
        name, namespace = pod_request_obj.metadata.name, pod_request_obj.metadata.namespace
        if (found := self.find_pod(namespace, context=context)) is not None:
            return found
        self.pod = pod_request_obj  # known before it exists: on_kill finds it in any case
        body = self.client.api_client.sanitize_for_serialization(pod_request_obj)
        leave = time.time() + random.uniform(*QUOTA_WORKER_SECONDS)
        while True:
            try:
                self.pod_manager.request("create_namespaced_pod", body=body, namespace=namespace)
                return pod_request_obj
            except ApiException as error:
                if error.status == 409:  # this try's, if only the answer got lost on the way
                    there = self.pod_manager.read_pod(pod_request_obj).metadata.labels or {}
                    if pod_request_obj.metadata.labels.items() <= there.items():
                        return pod_request_obj
                said, now = failures.explain_refusal(error), time.time()
                waited = now - (self._refused or now)
                if not failures.exceeds_quota(error) or waited >= self.startup_timeout_seconds:
                    self.pod = None  # a pod of this name is another task's: not for on_kill
                    raise AirflowException(f"Pod {name} was refused: {said}") from error
                if not self._refused:
                    self.log.info("Pod %s waits: %s", name, said)
                self._refused = self._refused or now
            if now >= leave and (self.deferrable or settings.load().get("triggerer")):
                self.pod = None
                pause = timedelta(seconds=random.uniform(*QUOTA_AWAY_SECONDS))
                trigger, since = TimeDeltaTrigger(pause), {"refused": self._refused}
                self.defer(trigger=trigger, method_name="execute_again", kwargs=since)
            time.sleep(QUOTA_RETRY_SECONDS)

    def execute_again(self, context: Any, refused: float, event: Any = None) -> Any:
        """Go on with a pod that a quota has refused since `refused`, and return its result."""
        self._refused = refused
        return self.execute(context)

    def find_pod(self, namespace: str, context: Any) -> k8s.V1Pod | None:
        """This try's pod once it has one, before that the one of an earlier try to go on with.

        That one runs, or has succeeded while nobody looked. Others are put aside; one that may
        still write is waited for, so that it does not write beside its successor.
        """
        if self.pod is not None:
            return self.pod_manager.read_pod(self.pod)
        labels = {"label_selector": self._build_find_pod_label_selector(context)}
        pods = self.pod_manager.request("list_namespaced_pod", namespace, **labels).items
        found = None
        for pod in sorted(pods, key=lambda pod: pod.metadata.creation_timestamp, reverse=True):
            made_for = (pod.metadata.annotations or {}).get(GENERATION)
            same_run = self.reattach_on_restart and made_for in (None, _generation(context))
            if pod.metadata.deletion_timestamp is not None:
                self.pod_manager.await_deletion(pod)
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
                    self.pod_manager.delete_and_wait(pod)
        return found

    def await_pod_start(self, pod: k8s.V1Pod) -> None:
        """Return when the pod has left Pending; log each new reason for waiting once.

        Raises PodLaunchFailedException when it cannot start, or not within a limit of the task.
        """
        name, told = pod.metadata.name, {""}
        began, stuck_since = {}, None
        while (seen := self.pod_manager.read_pod(pod)).status.phase == PodPhase.PENDING:
            now = time.monotonic()
            reason, message = failures.waiting_for(seen, self.base_container_name) or ("", "")
            if reason not in told:
                told.add(reason)
                self.log.info("Pod %s waits: %s", name, failures.explain_wait(reason, message))
                if getattr(self, "log_events_on_startup", False):
                    self._read_pod_events(pod, reraise=False)
            stuck_since = (stuck_since or now) if reason in failures.STUCK_WAITS else None
            failed = f"cannot start: {reason}" if reason in failures.HOPELESS_WAITS else ""
            if stuck_since and now - stuck_since >= (seconds := self.stuck_timeout_seconds):
                failed = f"cannot start: {reason} for {seconds} s (stuck_timeout_seconds)"
            limit = "startup_timeout_seconds"
            if seen.spec.node_name is None and hasattr(self, "schedule_timeout_seconds"):
                limit = "schedule_timeout_seconds"  # a newer provider's, for finding a node
            if now - began.setdefault(limit, now) >= (seconds := getattr(self, limit)):
                failed = failed or f"did not start within {seconds} s ({limit})"
            if failed:
                raise PodLaunchFailedException(f"Pod {name} {failed}")
            self.pod_manager.await_change(seen, self.startup_check_interval_seconds)

    def is_istio_enabled(self, pod: k8s.V1Pod) -> bool:
        """Whether the pod has a container that neither values nor task declare: it was injected."""
        declared = {one["name"] for one in self._template()["spec"]["containers"]} | {XCOM_SIDECAR}
        if self.full_pod_spec is not None and self.full_pod_spec.spec is not None:
            declared |= {one.name for one in self.full_pod_spec.spec.containers}
        there = (self.pod_manager.last_seen or pod).spec.containers
        return any(one.name not in declared for one in there)

    def execute_sync(self, context: Any) -> Any:
        """Run the pod to its end, and return its result."""
        # The caller may be handling an exception: not the one that ends this try.
        self._context, self._handled = context, sys.exc_info()[1]
        return super().execute_sync(context)

    def trigger_reentry(self, context: Any, event: dict[str, Any]) -> Any:
        """Go on where the triggerer has waited for the pod, and return its result."""
        self._context, self._handled, self._resumed = context, sys.exc_info()[1], True
        return super().trigger_reentry(context, event)

    def extract_xcom(self, pod: k8s.V1Pod, **kwargs: Any) -> Any:
        """What the container left as its termination message, read as JSON; None if it failed.

        An object gets `image` and `image_digest` added: a tag that moves does not say what ran.
        Pushed before the pod goes: if the database is away, the next try takes over its success.
        Raises AirflowFailException for a message that the kubelet has cut off.
        """
        result = super().extract_xcom(pod, **kwargs) if self.xcom_sidecar else self._message()
        if result is not None:
            self._context["ti"].xcom_push(key="return_value", value=result)
        return result

    def _message(self) -> Any:
        name, pod = self.base_container_name, self.pod_manager.read_pod(self.pod)
        if not self._resumed:  # the triggerer has waited, perhaps for a pod that never started
            pod = self.pod_manager.await_pod_completion(pod, self.is_istio_enabled(pod), name)
        try:
            return result_of(pod, name, self.log.warning)
        except ValueError as error:
            raise AirflowFailException(str(error)) from error

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *args: Any, **kwargs: Any) -> None:
        """Delete or keep the pod, tell a failed one. Raises AirflowException if it has failed."""
        if self._killed or not remote_pod:
            return
        # This method runs in a `finally`: what it raises takes the place of what ends the try.
        raising = None if sys.exc_info()[1] is self._handled else sys.exc_info()[1]
        try:
            self.remote_pod = remote_pod = self.pod_manager.read_pod(remote_pod)
        except REQUEST_ERRORS as error:
            if getattr(error, "status", None) == 404:
                reason = failures.explain_absence(self.pod_manager.last_seen)
                self._tell_end(pod, f"is gone: {reason}", raising)
            elif raising is None:
                raise
            else:  # it may be working well: the next try follows it
                said = failures.explain_refusal(error)
                self.log.warning("Pod %s stays as it is: %s", pod.metadata.name, said)
            return
        phase = remote_pod.status.phase
        kinds = Exception if phase == PodPhase.SUCCEEDED else REQUEST_ERRORS
        unfinished = isinstance(raising, kinds) and not isinstance(raising, AirflowFailException)
        if unfinished and phase != PodPhase.FAILED and self.reattach_on_restart:
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
                with suppress(*REQUEST_ERRORS):  # else it would write beside the next try
                    self.pod_manager.delete_and_wait(remote_pod)
            spec = f"\nremote_pod: {remote_pod}" if self.log_pod_spec_on_failure else ""
            self._tell_end(pod, f"failed: {reason}{spec}", raising)

    def _tell_end(self, pod: k8s.V1Pod, said: str, raising: BaseException | None) -> None:
        """Raise how the pod has ended; only log it if the exception that ends the try says more."""
        self.pod = None  # nothing is left for on_kill
        # What the triggerer has seen, or a request has met, is this end of the pod.
        less = (*REQUEST_ERRORS, *([AirflowException] if self._resumed else []))
        if raising is None or isinstance(raising, less):
            raise AirflowException(f"Pod {pod.metadata.name} {said}") from raising
        self.log.error("Pod %s %s", pod.metadata.name, said)

    def on_kill(self) -> None:
        """Delete the pod and see it gone: `clean_up`, or the next try, may start right after."""
        self._killed = True
        if self.pod is not None and getattr(self, "on_kill_action", "") != "keep_pod":
            with suppress(*REQUEST_ERRORS):
                self.pod_manager.delete_and_wait(self.pod, self.termination_grace_period)


def after_failure(context: Any) -> None:
    """Leave as XCom what has ended the task, and delete its pod if it still runs.

    Airflow calls it, in its DAG processor when a worker has died in the last try: nobody follows
    that pod any more. A try that ends by itself has seen to it. Raises ApiException or HTTPError.
    """
    if (error := context.get("exception")) is not None:  # Airflow 3 has none of a worker that died
        context["ti"].xcom_push(key=FAILURE, value=str(error))
    task = context["task"].unmap({})
    if task.on_finish_action == "keep_pod":
        return
    namespace = task.build_pod_request_obj().metadata.namespace
    labels = {"label_selector": task._build_find_pod_label_selector(context)}
    for pod in task.pod_manager.request("list_namespaced_pod", namespace, **labels).items:
        if pod.status.phase not in PodPhase.terminal_states:
            task.log.warning("Pod %s still runs and is deleted", pod.metadata.name)
            task.pod_manager.delete_pod(pod)


def _and_ours(callbacks: Any) -> list[Any]:
    """What a task wants to be called when it has failed, and what follows in any case."""
    own = [callbacks] if callable(callbacks) else callbacks or []
    return [*(one for one in own if one is not after_failure), after_failure]


def _defaults(known: dict, given: dict, presets: Iterable[str]) -> dict[str, Any]:
    """The lowest layers of a task's arguments: HOUSE, the values, then what its DAG has `given`."""
    group, dag = _surroundings(known)
    task_id = known["task_id"]
    if group is not None and not task_id.startswith(f"{group.group_id}."):
        task_id = group.child_id(task_id)  # not yet, unless a mapped task is being made
    arguments, _ = settings.of_task(dag.dag_id if dag else "", task_id, presets)
    # A pod with a fixed name that stays would be in the way of the next.
    fixed = (arguments | given | known).get("random_name_suffix") is False
    return HOUSE | ({"on_finish_action": "delete_pod"} if fixed else {}) | arguments | given


def _surroundings(known: dict[str, Any]) -> tuple[Any, Any]:
    """The task group and the DAG that a task is made in."""
    dag = known.get("dag") or DagContext.get_current_dag()
    return known.get("task_group") or (current_group(dag) if dag else None), dag


def _generation(context: Any) -> str:
    """Changes when the task is cleared (Airflow allows more tries), or its run (starts anew)."""
    started = getattr(context.get("dag_run"), "start_date", None)
    return f"{started.isoformat() if started else ''}/{getattr(context['ti'], 'max_tries', '')}"
