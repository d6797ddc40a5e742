"""Plain Airflow: TaskFlow, mapped tasks, @task.kubernetes, the stock operator in all its ways."""

from datetime import UTC, datetime
from pathlib import Path

import yaml
from airflow import DAG
from airflow.decorators import task
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

POD = Path("/opt/airflow/ml-pipelines/pod.yaml")
IMAGE = yaml.safe_load(POD.read_text())["spec"]["containers"][0]["image"]
WRITE = """mkdir -p /airflow/xcom; echo '{"rows": 3}' > /airflow/xcom/return.json"""

with DAG("plain", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:

    @task
    def numbers() -> list[int]:
        return [1, 2, 3]

    @task
    def double(number: int) -> int:
        return 2 * number

    @task
    def add(numbers: list[int]) -> int:
        return sum(numbers)

    total = add(double.expand(number=numbers()))

    @task.kubernetes(image=IMAGE)
    def in_a_pod() -> None:
        print("in a pod of its own")

    @task.kubernetes(image=IMAGE, do_xcom_push=True)
    def with_value() -> dict[str, int]:
        return {"rows": 5}

    in_a_pod()
    with_value()

    with_result = KubernetesPodOperator(
        task_id="with_result",
        pod_template_file=str(POD),
        cmds=["sh", "-ceu", WRITE],
        do_xcom_push=True,
    )
    with_file = KubernetesPodOperator(
        task_id="with_file", pod_template_file=str(POD), cmds=["sh", "-ceu", "echo 3 > /tmp/rows"]
    )
    same_file = KubernetesPodOperator(
        task_id="same_file", pod_template_file=str(POD), cmds=["grep", "3", "/tmp/rows"]
    )
    deferred = KubernetesPodOperator(
        task_id="deferred",
        pod_template_file=str(POD),
        cmds=["echo", "while nobody waits"],
        deferrable=True,
    )
    with_file >> same_file
