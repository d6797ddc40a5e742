"""Lines that Airflow sends to a statsd server with the settings of the chart.

A training and an inference run end well, a run of churn.v1 fails. The names are Airflow's own:
tests/dags/test_metrics.py looks for them in its sources.
"""

# Of scheduler, executor, DAG processing and triggerer.
_PARTS = """\
airflow.scheduler_heartbeat:1|c
airflow.scheduler.scheduler_loop_duration:21.5|ms
airflow.scheduler.tasks.starving:2|g
airflow.scheduler.tasks.executable:1|g
airflow.executor.open_slots,status=open,{executor}=KubernetesExecutor:6|g
airflow.executor.queued_tasks,status=queued,{executor}=KubernetesExecutor:1|g
airflow.executor.running_tasks,status=running,{executor}=KubernetesExecutor:2|g
airflow.pool.open_slots,pool_name=default_pool:126|g
airflow.pool.running_slots,pool_name=default_pool:2|g
airflow.dag_processing.total_parse_time:3.25|g
airflow.dagbag_size:4|g
airflow.dag_processing.import_errors:1|g
airflow.triggerer_heartbeat:1|c
"""
_TASK = """\
airflow.ti.start,dag_id={dag},task_id={task}:1|c
airflow.task.duration,{task_tags}:{milliseconds}|ms
airflow.ti.finish,dag_id={dag},task_id={task},state={state}:1|c
"""
_RUN = """\
airflow.dagrun.duration.{state},dag_id={dag},run_type=manual:{milliseconds}|ms
"""
# What Airflow 2 says of the same with ids in the names.
_TASK_TWICE = """\
airflow.ti.start.{dag}.{task},dag_id={dag},task_id={task}:1|c
airflow.dag.{dag}.{task}.duration:{milliseconds}|ms
airflow.dag.{dag}.{task}.queued_duration:900|ms
airflow.operator_successes_PodOperator,dag_id={dag},task_id={task}:1|c
airflow.local_task_job.task_exit.17.{dag}.{task}.0:1|c
airflow.ti.finish.{dag}.{task}.{state},dag_id={dag},task_id={task}:1|c
"""
_RUN_TWICE = """\
airflow.dagrun.duration.{state}.{dag},dag_id={dag},run_type=manual:{milliseconds}|ms
airflow.dagrun.dependency-check.{dag},dag_id={dag},run_type=manual:3.5|ms
airflow.dagrun.{dag}.first_task_scheduling_delay,dag_id={dag},run_type=manual:800|ms
"""
_PARTS_TWICE = """\
airflow.pool.open_slots.default_pool:126|g
airflow.dag_processing.last_duration.training_dag:300|ms
airflow.dag_processing.last_run.seconds_ago.training_dag:12.5|g
airflow.triggers.running.ml-pipelines-triggerer-0:0|g
"""
_LOST = {2: "zombies_killed", 3: "task_instances_without_heartbeats_killed"}
_RESULTS = """\
airflow.ml_pipelines.result,dag_id=training_dag,task_id=train_model,figure=accuracy:0.82|g
airflow.ml_pipelines.result,dag_id=training_dag,task_id=gate_model,figure=baseline_accuracy:0.78|g
airflow.ml_pipelines.result,dag_id=inference_dag,task_id=load_model,figure=accuracy:0.81|g
airflow.ml_pipelines.result,dag_id=inference_dag,task_id=load_model,figure=promoted_seconds:\
1767225600.0|g
airflow.ml_pipelines.result,dag_id=inference_dag,task_id=run_inference,figure=rows:872.0|g
airflow.ml_pipelines.result,dag_id=inference_dag,task_id=run_inference,figure=drift.psi_words:0.31|g
"""
TASKS = [
    ("training_dag", "train_model", "success", 60_000),
    ("inference_dag", "load_model", "success", 8_000),
    ("inference_dag", "run_inference", "success", 20_000),
    ("churn.v1", "group.train", "failed", 5_000),
]
"""DAG, task, how it ended, and after how many milliseconds."""


def lines(major: int) -> list[str]:
    """Return what Airflow of a major version (2 or 3) sends while this goes on."""
    text = _PARTS.format(executor={2: "name", 3: "executor_class_name"}[major])
    for dag, task, state, milliseconds in TASKS:
        tags = [f"task_id={task}", f"dag_id={dag}"]
        known = {"dag": dag, "task": task, "state": state, "milliseconds": milliseconds}
        known["task_tags"] = ",".join(tags if major == 2 else tags[::-1])
        text += _TASK.format(**known)
        text += _TASK_TWICE.format(**known) if major == 2 else ""
    for dag, state in {dag: state for dag, _, state, _ in TASKS}.items():
        known = {"dag": dag, "state": state, "milliseconds": 90_000}
        text += _RUN.format(**known) + (_RUN_TWICE.format(**known) if major == 2 else "")
    text += _PARTS_TWICE if major == 2 else ""
    text += f"airflow.{_LOST[major]},dag_id=churn.v1,task_id=group.train:1|c\n"
    return (text + _RESULTS).splitlines()


def names(major: int) -> set[str]:
    """Return the names in those lines that have no ids in them, as Airflow's sources have them."""
    found = {line.removeprefix("airflow.").partition(":")[0].partition(",")[0] for line in lines(3)}
    ours = {"ml_pipelines.result"}
    return {_LOST[major] if name == _LOST[3] else name for name in found} - ours
