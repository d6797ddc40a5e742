"""DAGs of test_one_pod.py, which publishes them."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from ml_pipelines import PodOperator

ONCE = {"schedule": None, "start_date": datetime(2024, 1, 1, tzinfo=UTC), "catchup": False}
ONCE["default_args"] = {"retries": 0}
TALK = "for i in $(seq 30); do echo line $i; sleep 1; done"
SECOND = """test {{ ti.try_number }} = 2; echo '{"said": "second"}' > /dev/termination-log"""


def shell(task_id: str, script: str, **more) -> PodOperator:
    return PodOperator(task_id=task_id, cmds=["sh", "-ceu", script], **more)


with DAG("one_pod_dag", description="one_pod_dag", **ONCE):
    soon = {"retries": 1, "retry_delay": timedelta(seconds=1)}
    shell("skipped", "exit 99", skip_on_exit_code=99)
    work = [
        shell("talks", TALK),
        shell("again", SECOND, **soon),
        shell("late", "sleep 600", execution_timeout=timedelta(seconds=10)),
        parts := shell("parts", """echo '[["a"], ["b"]]' > /dev/termination-log"""),
    ]
    each = PodOperator.partial(task_id="each", cmds=["echo"]).expand(arguments=parts.output)
    after = shell("after", "true")
    [*work, each] >> after >> shell("clean", "true").as_teardown(setups=work[1])

with DAG("held_dag", **ONCE):
    shell("sleeps", "sleep 3600")

with DAG("steady_dag", description="Four at once, each a line a second", **ONCE):
    for number in range(4):
        shell(f"talks_{number}", TALK)

with DAG("many_dag", **ONCE):
    for number in range(12):
        shell(f"one_{number}", "sleep 2")

with DAG("limited_dag", **ONCE):
    for number in range(2):
        shell(f"in_turn_{number}", "sleep 2", pool="narrow")
