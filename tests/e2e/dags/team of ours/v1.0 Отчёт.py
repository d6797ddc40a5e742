"""A file, a DAG and a task with names in another script, in a folder of its own."""

from datetime import UTC, datetime

from airflow import DAG

from ml_pipelines import PodOperator

with DAG("поезд", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
    first = PodOperator(task_id="шаг_1", cmds=["sh", "-ceu", "echo готово > /tmp/результат"])
    second = PodOperator(
        task_id="数据", cmds=["cat", "/tmp/результат"], deferrable=True, poll_interval=1
    )
    first >> second
