"""What the chart has every Airflow process run at its start (airflow.airflowLocalSettings)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from airflow import settings
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from tests.dags.conftest import DAGS
from tests.helpers.labels import LABELS

# What Kubernetes takes as the value of a label, and as the name of a pod.
LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
NAME = r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?"
# Ids that Airflow takes, and one of which no script is transliterated.
IDS = ["training_dag", "поезд", "モデル", "_", "..", "a.b-c_d", "ꯃꯅꯤꯄꯨꯔ", "x" * 250, "ж" * 120]
PROVIDER = "airflow.providers.cncf.kubernetes"


def test_a_forked_process_leaves_its_parents_connections_alone(
    run_local_settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/pool.db", poolclass=QueuePool)
    engine.connect().close()
    assert engine.pool.checkedin() == 1
    monkeypatch.setattr(settings, "engine", engine, raising=False)
    run_local_settings()

    child = os.fork()
    if child == 0:
        os._exit(engine.pool.checkedin())
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert engine.pool.checkedin() == 1


def test_one_name_is_added_to_airflows_own_settings(run_local_settings) -> None:
    # Airflow copies the names of the module into its own, and takes hooks for a team's.
    assert set(run_local_settings()) == {"__builtins__", "_NoAuthManager"}


def run(local_settings: str, directory: Path, code: str) -> dict[str, object]:
    """Start an Airflow with these settings, run code in it, and return what it prints last."""
    (directory / "airflow_local_settings.py").write_text(local_settings, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


START = "import json, sys\nfrom airflow import settings"


if hasattr(settings, "POLICY_PLUGIN_MANAGER"):  # Airflow 2: workers of 3 have no such command

    @pytest.mark.parametrize("words", [["tasks", "run"], ["scheduler"]])
    def test_a_worker_alone_does_without_the_auth_manager_and_flask(
        local_settings: str, tmp_path: Path, words: list[str]
    ) -> None:
        code = f"""import json, sys
sys.argv = ["airflow", *{words}]
from airflow.cli.cli_parser import get_parser
known = get_parser()._subparsers._group_actions[0].choices
print(json.dumps(["users" in known, "tasks" in known, "flask" in sys.modules]))"""
        is_worker = words == ["tasks", "run"]
        assert run(local_settings, tmp_path, code) == [not is_worker, True, not is_worker]

    @pytest.mark.parametrize("seconds", [290, 310])
    @pytest.mark.parametrize("words", [["tasks", "run"], ["scheduler"]])
    def test_a_worker_alone_waits_for_the_database(
        local_settings: str, tmp_path: Path, words: list[str], seconds: int
    ) -> None:
        """The database is a file in a directory that is made `seconds` later."""
        code = f"""import json, pathlib, sys, time
sys.argv = ["airflow", *{words}]
from airflow import settings
import sqlalchemy
place = pathlib.Path({str(tmp_path / "late")!r})
clock = 0.0
def sleep(seconds):
    global clock
    clock += seconds
    if clock >= {seconds}:
        place.mkdir(exist_ok=True)
time.sleep, time.monotonic = sleep, lambda: clock
try:
    sqlalchemy.create_engine(f"sqlite:///{{place}}/one.db").connect()
except sqlalchemy.exc.OperationalError as error:
    print(json.dumps([clock, "unable to open" in str(error)]))
else:
    print(json.dumps([clock, False]))"""
        waits = words == ["tasks", "run"]
        expected = [290, False] if waits and seconds < 300 else [300 if waits else 0, True]
        assert run(local_settings, tmp_path, code) == expected


def test_they_import_nothing_that_takes_time(local_settings: str, tmp_path: Path) -> None:
    code = f"{START}\nprint(json.dumps(sorted(sys.modules)))"
    assert run(local_settings, tmp_path, code) == run("", tmp_path, code)


def test_who_reads_dags_has_imported_the_operator(local_settings: str, tmp_path: Path) -> None:
    code = f"""{START}
from importlib import import_module
there = []
for name in ("jobs.job", "dag_processing.manager"):
    import_module(f"airflow.{{name}}")
    there.append("airflow.providers.cncf.kubernetes.operators.pod" in sys.modules)
print(json.dumps(there))"""
    assert run(local_settings, tmp_path, code) == [False, True]


def test_labels_and_names_of_pods_are_valid(local_settings: str, tmp_path: Path) -> None:
    code = f"""{START}
from {PROVIDER} import pod_generator
from {PROVIDER}.executors import kubernetes_executor_utils as executor
from {PROVIDER}.operators import pod
ids = {IDS!r}
labels = [pod_generator.make_safe_label_value(one) for one in ids]
workers = pod_generator.PodGenerator.build_labels_for_k8s_executor_pod(
    dag_id="поезд", task_id="задача", try_number=1, run_id="ручной"
)
names = [executor.create_unique_id(one, one) for one in ids]
tasks = [pod.create_unique_id(task_id=one) for one in ids]
print(json.dumps([labels, workers, names, tasks]))
"""
    labels, workers, names, tasks = run(local_settings, tmp_path, code)
    assert [one for one in labels if not re.fullmatch(LABEL, one)] == []
    assert [one for one in names if not re.fullmatch(NAME, one)] == []
    assert [one for one in tasks if not re.fullmatch(NAME, one)] == []
    # The others are Airflow's own.
    assert labels[IDS.index("training_dag")] == "training_dag"
    assert labels[IDS.index("a.b-c_d")] == "a.b-c_d"
    assert re.fullmatch(r"x{53}-[0-9a-f]{9}", labels[IDS.index("x" * 250)])
    # What only a hash is left of is told apart by it.
    assert re.fullmatch(r"[0-9a-f]{9}", labels[IDS.index("поезд")])
    assert labels[IDS.index("モデル")] != labels[IDS.index("поезд")]
    assert workers["dag_id"] == labels[IDS.index("поезд")]
    assert [key for key in ("dag_id", "task_id", "run_id") if workers[key].startswith("-")] == []


def test_an_operators_labels_are_those_that_others_compute(
    local_settings: str, tmp_path: Path
) -> None:
    """A run's directory is made of them."""
    code = f"""{START}
from types import SimpleNamespace
from {PROVIDER}.operators.pod import KubernetesPodOperator
dag = SimpleNamespace(parent_dag=None)
labels = []
for one in {[given for given, _ in LABELS]!r}:
    ti = SimpleNamespace(dag_id=one, task_id="t", map_index=-1, try_number=1)
    found = KubernetesPodOperator._get_ti_pod_labels({{"dag": dag, "run_id": one, "ti": ti}})
    labels.append([found["dag_id"], found["run_id"]])
print(json.dumps(labels))
"""
    assert run(local_settings, tmp_path, code) == [[label, label] for _, label in LABELS]


def test_a_worker_is_found_again_by_its_pod(local_settings: str, tmp_path: Path) -> None:
    """The executor maps a pod to its task by annotations, which hold the ids as they are."""
    code = f"""{START}
from {PROVIDER}.kubernetes_helper_functions import annotations_to_key
key = annotations_to_key(
    {{"dag_id": "поезд", "task_id": "задача", "run_id": "ручной", "try_number": "1"}}
)
print(json.dumps([key.dag_id, key.task_id, key.run_id]))
"""
    assert run(local_settings, tmp_path, code) == ["поезд", "задача", "ручной"]


def test_a_long_log_is_read_in_part(local_settings: str, tmp_path: Path) -> None:
    """Airflow 2.9 would hold it several times; 3 reads line by line."""
    code = f"""{START}
from pathlib import Path
from airflow.utils.log.file_task_handler import FileTaskHandler
read = vars(FileTaskHandler)["_read_from_local"]
if not isinstance(read, staticmethod):
    print(json.dumps(None))
    sys.exit()
short, long = Path("{tmp_path}/attempt=1.log"), Path("{tmp_path}/attempt=2.log")
short.write_text("one line")
with long.open("w") as file:
    for number in range(20_000):
        file.write(f"line {{number}} {{'ü' * 500}}\\n")
_, (text,) = read(long)
print(json.dumps([read(short), read(Path("{tmp_path}/attempt=3.log")), len(text), text]))
"""
    found = run(local_settings, tmp_path, code)
    if found is None:
        return
    short, none, length, text = found
    assert short == [["Found local files:", f"  * {tmp_path}/attempt=1.log"], ["one line"]]
    assert none == [[], []]
    assert length < 9_000_000
    lines = text.splitlines()
    whole = [line for line in lines if re.fullmatch(r"line \d+ ü{500}", line)]
    assert (whole[0][:7], whole[-1][:11]) == ("line 0 ", "line 19999 ")
    (note,) = set(lines) - set(whole)
    assert re.fullmatch(
        r"\.\.\. 12 MB are left out here; they are in .*/attempt=2\.log \.\.\.", note
    )


def test_the_sidecar_of_xcoms_is_admitted_by_the_profile_restricted(
    local_settings: str, tmp_path: Path
) -> None:
    code = f"""{START}
from kubernetes.client import ApiClient, V1Container, V1Pod, V1PodSpec
from {PROVIDER}.utils.xcom_sidecar import add_xcom_sidecar
pod = V1Pod(spec=V1PodSpec(containers=[V1Container(name="base")]))
pod = add_xcom_sidecar(pod, sidecar_container_image="image")
print(json.dumps(ApiClient().sanitize_for_serialization(pod.spec.containers[1])))
"""
    sidecar = run(local_settings, tmp_path, code)
    assert sidecar["image"] == "image"
    assert sidecar["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert sidecar["resources"] == {
        "requests": {"cpu": "1m", "memory": "10Mi"},
        "limits": {"memory": "64Mi"},
    }


FORBIDDEN = (
    'pods is forbidden: User "system:serviceaccount:ml-pipelines:ml-pipelines-worker" cannot list '
    'resource "pods" in API group "" in the namespace "team-b"'
)


@pytest.mark.parametrize("operator", ["ml_pipelines.PodOperator", f"{PROVIDER}.operators.pod."])
def test_a_namespace_that_is_not_listed_is_told_in_one_line(
    local_settings: str, tmp_path: Path, operator: str
) -> None:
    module, name = operator.rsplit(".", 1)
    code = f"""{START}
from importlib import import_module
from types import SimpleNamespace
from airflow import DAG
from datetime import datetime
sys.path.insert(0, {str(DAGS)!r})
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
Operator = getattr(import_module({module!r}), {name or "KubernetesPodOperator"!r})
def refuse(*_, **__):
    error = ApiException(status=403, reason="Forbidden")
    error.body = json.dumps({{"message": {FORBIDDEN!r}}})
    raise error
client = SimpleNamespace(list_namespaced_pod=refuse, api_client=ApiClient())
with DAG("d", schedule=None, start_date=datetime(2024, 1, 1)) as dag:
    task = Operator(task_id="t", image="i", namespace="team-b")
vars(task)["client"] = client
vars(task)["hook"] = SimpleNamespace(core_v1_client=client, is_in_cluster=True)
ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1, try_number=1)
try:
    task.find_pod("team-b", context={{"ti": ti, "dag": dag, "run_id": "r"}})
except ApiException as error:
    said = str(error)
print(json.dumps([said, str(ApiException(status=403, reason="Forbidden"))]))
"""
    said, other = run(local_settings, tmp_path, code)
    hint = "(list the namespace in pipelines.namespaces of the chart's values)"
    assert said == f"{FORBIDDEN} {hint}"
    assert "pipelines.namespaces" not in other


def test_a_hook_below_them_has_the_last_word(local_settings: str, tmp_path: Path) -> None:
    own = "def pod_mutation_hook(pod):\n    pod.metadata.labels = {'team': 'a'}\n"
    code = f"""{START}
from kubernetes.client import V1ObjectMeta, V1Pod
pod = V1Pod(metadata=V1ObjectMeta())
settings.pod_mutation_hook(pod)
print(json.dumps(pod.metadata.labels))
"""
    assert run(f"{local_settings}\n\n{own}", tmp_path, code) == {"team": "a"}


def test_a_policy_below_them_has_the_last_word(
    local_settings: str, tmp_path: Path, settings_file
) -> None:
    settings_file({"dags": {"anybodys": {"max_active_runs": 2, "max_active_tasks": 3}}})
    own = "def dag_policy(dag):\n    dag.max_active_runs *= 10\n"
    code = f"""{START}
from airflow import DAG
dag = DAG("anybodys", schedule=None)
settings.dag_policy(dag)
print(json.dumps([dag.max_active_runs, dag.max_active_tasks]))
"""
    assert run(f"{local_settings}\n\n{own}", tmp_path, code) == [20, 3]
