"""Plain Airflow: TaskFlow, mapped tasks, @task.kubernetes, the stock operator in all its ways."""

from datetime import UTC, datetime
from pathlib import Path

import yaml
from airflow import DAG
from airflow.decorators import task
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

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
    # 100 MB of shared memory, where a container has 64 by default.
    shared_memory = k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit="200Mi")
    with_file = KubernetesPodOperator(
        task_id="with_file",
        pod_template_file=str(POD),
        volumes=[k8s.V1Volume(name="shm", empty_dir=shared_memory)],
        volume_mounts=[k8s.V1VolumeMount(name="shm", mount_path="/dev/shm")],
        cmds=["sh", "-ceu", "head -c 100000000 /dev/zero > /dev/shm/zeros; echo 3 > /tmp/rows"],
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
