"""Builds the tasks of the pipelines: every pod of theirs comes from `pod_task`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from kubernetes.client import models as k8s

from ml_pipelines.operator import PipelinePodOperator
from ml_pipelines.runs import MOUNT_PATH, RUN_DIRECTORY_TEMPLATE
from ml_pipelines.settings import Registry, Settings

VOLUME = "training-storage"
USER = GROUP = 10001  # of the workload's image; the run's directory belongs to the group

# A process that ignores SIGTERM for longer is writing into a run that has moved on.
GRACE_SECONDS = 5
# Airflow ends a task at its execution timeout and deletes the pod. The deadline in the pod itself
# comes a little later: it is for a pod whose worker died, and ends it with nobody watching.
DEADLINE_MARGIN_SECONDS = 60


def pod_task(
    task_id: str,
    command: list[str],
    settings: Settings,
    *,
    registry: bool = False,
    env: Mapping[str, str] = MappingProxyType({}),
    **arguments: Any,
) -> PipelinePodOperator:
    """The task that runs `command` in the workload's image, in the run's own directory at /tmp.

    With `registry` it gets the model registry's address and, for W&B, the key: a reference to the
    Secret, so that no key is in a pod specification, a rendered field or the serialized DAG.
    `env` is what else the command is told, as templates; `arguments` are the operator's own.
    Raises KeyError for a task id that the settings do not know.
    """
    task = settings.task(task_id)
    variables = _lineage(task.image) + (_registry(settings.registry) if registry else [])
    variables += [_variable(name, value) for name, value in [*env.items(), *task.env.items()]]
    # By name, once each: what the settings say comes last and wins.
    environment = list({variable.name: variable for variable in variables}.values())
    return PipelinePodOperator(
        task_id=task_id,
        name=task_id.replace("_", "-"),
        namespace=settings.namespace,
        image=task.image,
        image_pull_policy=settings.image.pull_policy,
        image_pull_secrets=[
            k8s.V1LocalObjectReference(name=name) for name in settings.image.pull_secrets
        ],
        cmds=command,
        env_vars=environment,
        env_from=[_environment(source) for source in task.env_from],
        # Made anew for each task: rendering writes the run's path into the objects.
        volumes=[_volume(settings)],
        volume_mounts=[
            k8s.V1VolumeMount(name=VOLUME, mount_path=MOUNT_PATH, sub_path=RUN_DIRECTORY_TEMPLATE)
        ],
        container_resources=k8s.V1ResourceRequirements(
            requests=dict(task.resources.get("requests", {})),
            limits=dict(task.resources.get("limits", {})),
        ),
        node_selector=task.node_selector,
        tolerations=task.tolerations,
        affinity=task.affinity,
        priority_class_name=task.priority_class_name or None,
        runtime_class_name=task.runtime_class_name or None,
        service_account_name=task.service_account_name or None,
        labels={
            "app.kubernetes.io/name": "ml-pipelines",
            "app.kubernetes.io/component": "task",
            **task.labels,
        },
        annotations=task.annotations,
        security_context=k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            run_as_group=GROUP,
            fs_group=GROUP,
            # Not file by file at each start: the volume holds the files of all runs.
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
        container_security_context=k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        ),
        retries=task.retries,
        retry_delay=timedelta(seconds=task.retry_delay_seconds),
        execution_timeout=timedelta(seconds=task.execution_timeout_seconds),
        active_deadline_seconds=task.execution_timeout_seconds + DEADLINE_MARGIN_SECONDS,
        startup_timeout_seconds=task.startup_timeout_seconds,
        stuck_timeout_seconds=task.stuck_timeout_seconds,
        startup_check_interval_seconds=0.5,
        termination_grace_period=GRACE_SECONDS,
        termination_message_policy="FallbackToLogsOnError",
        # With keep_pod 8.3.3 leaves a running one behind for the next try to meet. The operator
        # keeps a failed one for a while itself; its events and last lines are in the task log.
        on_finish_action="delete_pod",
        failed_pod_ttl_seconds=task.failed_pod_ttl_seconds,
        log_events_on_failure=True,
        log_pod_spec_on_failure=False,
        do_xcom_push=False,
        deferrable=False,
        **arguments,
    )


def _volume(settings: Settings) -> k8s.V1Volume:
    return k8s.V1Volume(
        name=VOLUME,
        persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(
            claim_name=settings.claim_name
        ),
    )


def _variable(name: str, value: str | Mapping[str, Any]) -> k8s.V1EnvVar:
    if isinstance(value, str):
        return k8s.V1EnvVar(name=name, value=value)
    return k8s.V1EnvVar(name=name, value_from=value["valueFrom"])


def _environment(source: Mapping[str, Any]) -> k8s.V1EnvFromSource:
    return k8s.V1EnvFromSource(
        prefix=source.get("prefix"),
        secret_ref=source.get("secretRef"),
        config_map_ref=source.get("configMapRef"),
    )


def _lineage(image: str) -> list[k8s.V1EnvVar]:
    """What a model or a prediction file should carry about the run that made it."""
    return [
        k8s.V1EnvVar(name="ML_PIPELINES_DAG_ID", value="{{ dag.dag_id }}"),
        k8s.V1EnvVar(name="ML_PIPELINES_RUN_ID", value="{{ run_id }}"),
        k8s.V1EnvVar(name="ML_PIPELINES_RUN_DIRECTORY", value=RUN_DIRECTORY_TEMPLATE),
        k8s.V1EnvVar(name="ML_PIPELINES_IMAGE", value=image),
        # A template, filled in by the worker: the commit that it runs from.
        k8s.V1EnvVar(name="ML_PIPELINES_DAGS_COMMIT", value="{{ dags_commit() }}"),
    ]


def _registry(registry: Registry) -> list[k8s.V1EnvVar]:
    values = {"REGISTRY": registry.type}
    if registry.type == "mlflow":
        values["MLFLOW_TRACKING_URI"] = registry.mlflow.tracking_uri
        values["MLFLOW_EXPERIMENT_NAME"] = registry.mlflow.experiment
        return [k8s.V1EnvVar(name=name, value=value) for name, value in values.items()]
    values["WANDB_PROJECT"] = registry.wandb.project
    values["WANDB_ENTITY"] = registry.wandb.entity
    values["WANDB_BASE_URL"] = registry.wandb.base_url
    # An empty WANDB_BASE_URL is not "the default" to the SDK but an address that is wrong.
    variables = [k8s.V1EnvVar(name=name, value=value) for name, value in values.items() if value]
    key = k8s.V1SecretKeySelector(
        name=registry.wandb.secret_name,
        key=registry.wandb.secret_key,
        # Without the Secret the pod starts all the same, and the workload says what is missing.
        # A pod that cannot start would be silent until the startup timeout.
        optional=True,
    )
    source = k8s.V1EnvVarSource(secret_key_ref=key)
    return [*variables, k8s.V1EnvVar(name="WANDB_API_KEY", value_from=source)]
