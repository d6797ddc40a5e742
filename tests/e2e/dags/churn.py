"""A newcomer's pipeline: the release's own image, a mapped task, a result that is mapped over."""

from datetime import UTC, datetime

from airflow import DAG

from ml_pipelines import PodOperator

LIST = """echo '[["a"], ["b"]]' > /dev/termination-log; echo 7 > /tmp/rows"""
SCORE = """test "$(cat /tmp/rows)" = 7; echo "scored $0" """

with DAG(
    "churn", schedule="@daily", start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False
) as dag:
    fetch = PodOperator(task_id="fetch", cmds=["sh", "-ceu", LIST])
    score = PodOperator.partial(task_id="score", cmds=["sh", "-ceu", SCORE]).expand(
        arguments=fetch.output
    )
    nothing_new = PodOperator(
        task_id="nothing_new", cmds=["sh", "-c", "exit 99"], skip_on_exit_code=99
    )
    score >> nothing_new
