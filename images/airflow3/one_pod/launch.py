"""Whether Airflow 3's triggerer runs a task's pod itself, without a worker, and how.

`pipelines.launch` of the chart's values decides, in the settings that the DAGs read: `worker`, or
`triggerer` for each task that the triggerer can run as a worker would. The DAGs' operator asks here
when it is made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from kubernetes.client import ApiClient, Configuration

from one_pod.start import LIMITS as START

TRIGGER = "one_pod.trigger.PodTrigger"
# Only a worker is held to these limits: the scheduler gives out the slots when it starts one.
LIMITS = {
    "pool": "default_pool",
    "pool_slots": 1,
    "max_active_tis_per_dag": None,
    "max_active_tis_per_dagrun": None,
}
# What the DAG's code does, or a worker alone can do. The default of each.
OTHERS = {
    "on_execute_callback": None,
    "on_success_callback": None,
    "on_skipped_callback": None,
    "retry_policy": None,
    "multiple_outputs": False,
    "_pre_execute_hook": None,
    "_post_execute_hook": None,
    "executor": None,
    "callbacks": [],
    "deferrable": False,
    "xcom_sidecar": False,
    "kubernetes_conn_id": "kubernetes_default",
    "config_file": None,
    "cluster_context": None,
    "init_container_logs": None,
    "log_formatter": None,
}
OF_DAG = {
    "user_defined_macros": None,
    "user_defined_filters": None,
    "jinja_environment_kwargs": None,
    "render_template_as_native_obj": False,
    "fail_fast": False,
}
# Fields with templates that make a list, which a manifest cannot have in its place.
LISTS = ("cmds", "arguments", "env_vars", "volumes", "volume_mounts", "env_from")


SILENT = logging.getLogger(f"{__name__}.silent")
SILENT.setLevel(logging.WARNING)
USUAL = Configuration()


def by_triggerer(task: Any, values: dict[str, Any]) -> bool:
    """Have the triggerer run the task if nothing speaks against it; returns whether it does.

    `values`: what the chart has written for the DAGs.
    """
    if why_worker(task, values):
        return False
    task.start_from_trigger, task.start_trigger_args = True, start_args(task, values["maxPods"])
    # It is the pod's alone: a task that waits for its turn is not late.
    task.execution_timeout = None
    return True


def why_worker(task: Any, values: dict[str, Any]) -> str:
    """What a task wants that only a worker gives, '' if nothing."""
    from airflow.configuration import conf
    from airflow.sdk.definitions.xcom_arg import XComArg

    if type(task).__module__ != "ml_pipelines.operator":
        return "an operator of one's own"
    if getattr(task, "_BaseOperator__from_mapped", False):
        return "mapped"
    for name, default in (LIMITS | OTHERS).items():
        if (getattr(task, name, default) or default) != default:
            return name
    if (dag := task.get_dag()) is not None:
        for name, default in OF_DAG.items():
            if (getattr(dag, name, default) or default) != default:
                return f"{name} of the DAG"
        of_values = values.get("dags", {}).get(dag.dag_id, {})
        usual = conf.getint("core", "max_active_tasks_per_dag")
        if "max_active_tasks" in of_values or dag.max_active_tasks != usual:
            return "max_active_tasks of the DAG"
    if task.in_cluster is False:
        return "in_cluster"
    if not task.random_name_suffix:
        return "random_name_suffix"
    if task.container_logs not in (task.base_container_name, [task.base_container_name]):
        return "container_logs"
    for name in task.template_fields:
        value = getattr(task, name, None)
        if next(XComArg.iter_xcom_references(value), None):
            return f"a result in {name}"
        if name in LISTS and isinstance(value, str):
            return f"a template for all of {name}"
    return ""


def start_args(task: Any, max_pods: int) -> Any:
    """What the scheduler makes the task's trigger of: its pod, templates in it, and options."""
    from airflow.triggers.base import StartTriggerArgs

    options = {
        "container": task.base_container_name,
        "limits": {name: vars(task)[name] for name in START},
        "log": task.get_logs,
        "log_events": task.log_events_on_failure,
        "on_finish_action": task.on_finish_action.value,
        "on_kill_action": task.on_kill_action.value,
        "skip_on_exit_code": list(task.skip_on_exit_code),
        "push": task.do_xcom_push,
        "max_pods": int(max_pods),
    }
    # As text: Airflow writes each object in a DAG at twice its length.
    kwargs = {"pod": json.dumps(manifest(task)), "options": options}
    return StartTriggerArgs(trigger_cls=TRIGGER, trigger_kwargs=kwargs, next_method="execute")


def manifest(task: Any) -> dict[str, Any]:
    """The task's pod as JSON, templates in it; the trigger adds name and labels of a try.

    Without a namespace where nothing names one: then it is the triggerer's.
    """
    nowhere = "nowhere"
    ti = SimpleNamespace(dag_id=task.dag_id, task_id=task.task_id, map_index=-1, try_number=0)
    context = {"ti": ti, "run_id": "{{ run_id }}", "dag": task.get_dag()}
    of_now = {
        "hook": SimpleNamespace(is_in_cluster=True, get_namespace=lambda: nowhere),
        "_cached_logger": SILENT,  # "Building pod", which nobody does yet
    }
    own = {"random_name_suffix": False, "deadline_margin_seconds": 0, "env_vars": task.env_vars}
    vars(task).update(of_now)
    try:
        with task._having(**own), one_configuration():
            pod = ApiClient().sanitize_for_serialization(task.build_pod_request_obj(context))
    finally:
        for name in of_now:
            del vars(task)[name]
    if pod["metadata"]["namespace"] == nowhere:
        del pod["metadata"]["namespace"]
    return pod


@contextmanager
def one_configuration() -> Iterator[None]:
    """Let all models of Kubernetes share a configuration.

    Each has one, of which it reads a flag. Copied with each copy of a model, they took most of the
    time in which a file of DAGs is read.
    """
    before = Configuration._default, Configuration.__deepcopy__
    Configuration._default = USUAL
    Configuration.__deepcopy__ = lambda self, _memo: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        Configuration._default, Configuration.__deepcopy__ = before  # type: ignore[method-assign]
