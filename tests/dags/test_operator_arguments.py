"""Every argument means what it means in KubernetesPodOperator: the two run side by side."""

from __future__ import annotations

import inspect
import json
import re
from datetime import timedelta
from typing import Any

import pytest
import yaml
from airflow.providers.cncf.kubernetes.callbacks import KubernetesPodOperatorCallback
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
from kubernetes.client import models as k8s

from ml_pipelines import PodOperator
from ml_pipelines.pod_manager import POLL_SECONDS
from tests.dags.cluster import (
    ENDED_STATE,
    LABELS,
    RUNNING,
    RUNNING_STATE,
    STARTING,
    XCOM_SIDECAR,
    Cluster,
    Status,
    ended,
    terminated,
    until,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DOCUMENTED = set(inspect.signature(KubernetesPodOperator.__init__).parameters)
GOOD, BAD = ended(0, message='{"a": 1}'), ended(2, message="ERROR: bad")
SKIP = ended(99)
TEMPLATE = {
    "metadata": {"labels": {"of": "template"}, "annotations": {"a": "template"}},
    "spec": {
        "containers": [
            {
                "name": "base",
                "image": "template:1",
                "env": [{"name": "A", "value": "template"}],
                "resources": {"limits": {"memory": "1Gi"}},
            },
            {"name": "second", "image": "template:2"},
        ],
        "runtimeClassName": "nvidia",
        "terminationGracePeriodSeconds": 60,
        "automountServiceAccountToken": True,
        "volumes": [{"name": "v", "emptyDir": {}}],
    },
}
FULL_SPEC = k8s.V1Pod(
    metadata=k8s.V1ObjectMeta(annotations={"of": "spec"}),
    spec=k8s.V1PodSpec(
        containers=[
            k8s.V1Container(name="base", working_dir="/w"),
            k8s.V1Container(name="second", image="i"),
        ],
        host_ipc=True,
    ),
)
BESIDE = [(0, STARTING), (1, RUNNING), (20, Status(terminated(0), others={"second": ENDED_STATE}))]


class Calls(KubernetesPodOperatorCallback):
    """Notes which callbacks are called, and the lines that progress is told of."""

    made: list[str] = []


def without_stamp(line: str) -> str:
    return line.split(" ", 1)[-1]


def _note(name: str) -> Any:
    def note(*_: Any, line: str = "", **__: Any) -> None:
        Calls.made.append(f"{name} {without_stamp(line)}")

    return staticmethod(note)


for _name in vars(KubernetesPodOperatorCallback):
    if _name.startswith("on_") or _name == "progress_callback":
        setattr(Calls, _name, _note(_name))


def case(title: str, timeline: Any = None, /, **arguments: Any) -> Any:
    return pytest.param(timeline or until(20, GOOD), arguments, id=title)


ALL_CASES = [
    case("nothing"),
    case("a failure", until(20, BAD)),
    case("exit code that skips", until(20, SKIP), skip_on_exit_code=99),
    case("exit codes that skip", until(20, SKIP), skip_on_exit_code=[98, 99]),
    case("another exit code", until(20, BAD), skip_on_exit_code=99),
    case("success with codes to skip", skip_on_exit_code=99),
    *(
        case(f"{action} after {how}", until(20, status), on_finish_action=action)
        for action in ("keep_pod", "delete_pod", "delete_succeeded_pod")
        for how, status in (("success", GOOD), ("failure", BAD), ("skip", SKIP))
    ),
    case("delete_active_pod", until(20, BAD), on_finish_action="delete_active_pod")
    if "on_kill_action" in DOCUMENTED
    else case("delete_pod once more", on_finish_action="delete_pod"),
    case("deleted", until(20, BAD), is_delete_operator_pod=True),
    case("kept", until(20, BAD), is_delete_operator_pod=False),
    case("callbacks", callbacks=Calls),
    case("callbacks of a failure", until(20, BAD), callbacks=Calls),
    case("progress", progress_callback=lambda line: Calls.made.append(without_stamp(line))),
    case("without result", do_xcom_push=False),
    case("XCom sidecar", do_xcom_push=True),
    case("XCom sidecar of a failure", until(20, BAD), do_xcom_push=True),
    case("XCom sidecar that fails", until(20, Status(GOOD.base, "Failed")), do_xcom_push=True),
    case("name", name="my_Name"),
    case("fixed name", name="fixed", random_name_suffix=False),
    case("fixed name of the task", random_name_suffix=False),
    case("labels", labels={"team": "nlp"}, annotations={"note": "x"}),
    case("command", cmds=["python"], arguments=["-c", "{{ run_id }}"]),
    case("env", env_vars={"A": "{{ run_id }}"}, env_from=[k8s.V1EnvFromSource(prefix="P_")]),
    case(
        "env objects",
        env_vars=[k8s.V1EnvVar(name="A", value="1")],
        configmaps=["a-map"],
        pod_runtime_info_envs=[
            k8s.V1EnvVar(
                name="IP",
                value_from=k8s.V1EnvVarSource(
                    field_ref=k8s.V1ObjectFieldSelector(field_path="status.podIP")
                ),
            )
        ],
    ),
    case("secrets", secrets=[Secret("env", "A", "s", "k"), Secret("volume", "/s", "s", "k")]),
    case(
        "volumes",
        volumes=[k8s.V1Volume(name="v", empty_dir=k8s.V1EmptyDirVolumeSource(medium="Memory"))],
        volume_mounts=[k8s.V1VolumeMount(name="v", mount_path="/dev/shm")],
    ),
    case(
        "security",
        security_context={"runAsUser": 7},
        container_security_context={"readOnlyRootFilesystem": True},
    ),
    case("runtime class", runtime_class_name="nvidia"),
    case("token", automount_service_account_token=True),
    case("grace", termination_grace_period=7),
    case("deadline", active_deadline_seconds=77, execution_timeout=timedelta(hours=1)),
    case("container name", base_container_name="main"),
    case("all logs", BESIDE, container_logs=True, full_pod_spec=FULL_SPEC),
    case("a log", BESIDE, container_logs=["second"], full_pod_spec=FULL_SPEC),
    case("no log", get_logs=False),
    case("log formatter", log_formatter=lambda container, line: f"<{container}> {line}"),
    case("no prefix", container_name_log_prefix_enabled=False),
    case(
        "init container",
        [
            (0, STARTING),
            (5, Status(RUNNING_STATE, init={"i": ENDED_STATE})),
            (20, Status(GOOD.base, init={"i": ENDED_STATE})),
        ],
        init_containers=[k8s.V1Container(name="i", image="i")],
    ),
    case("pod spec", BESIDE, full_pod_spec=FULL_SPEC),
    case("template", BESIDE, pod_template_dict=TEMPLATE),
    case("template and spec", BESIDE, pod_template_dict=TEMPLATE, full_pod_spec=FULL_SPEC),
    case("template file", BESIDE, pod_template_file="{template}"),
    case("template over arguments", BESIDE, pod_template_dict=TEMPLATE, env_vars={"A": "task"}),
    case("spec in the log", until(20, BAD), log_pod_spec_on_failure=True),
    case("events", log_events_on_startup=True),
    case(
        "a place",
        node_selector={"pool": "gpu"},
        tolerations=[k8s.V1Toleration(key="gpu")],
        affinity={"nodeAffinity": {}},
        schedulername="s",
        priority_class_name="high",
        service_account_name="trainer",
        image_pull_secrets=[k8s.V1LocalObjectReference("p")],
        image_pull_policy="Always",
        termination_message_policy="File",
    ),
    case(
        "a network",
        hostnetwork=True,
        host_aliases=[k8s.V1HostAlias(ip="1.1.1.1", hostnames=["a"])],
        dnspolicy="None",
        dns_config=k8s.V1PodDNSConfig(nameservers=["1.1.1.1"]),
        hostname="h",
        subdomain="s",
        ports=[k8s.V1ContainerPort(name="http", container_port=80)],
    ),
    case("resources", container_resources=k8s.V1ResourceRequirements(limits={"cpu": "1"})),
    case("durable", durable=False),
    case("no start", [(0, STARTING)], startup_timeout_seconds=30),
    case("polling", get_logs=False, base_container_status_polling_interval=3),
    case("init container's log", init_container_logs=None),
    case("context", in_cluster=True, cluster_context="c", config_file=None),
    case("logging interval", logging_interval=60, poll_interval=5),
]
# What this provider does not have is compared with the one that has it.
CASES = [one for one in ALL_CASES if one.values[1].keys() <= DOCUMENTED | {"execution_timeout"}]
# Compared elsewhere: by name in another test here, or it is the same for every task.
ELSEWHERE = {
    "self", "kwargs", "image", "namespace", "kubernetes_conn_id", "reattach_on_restart",
    "deferrable", "startup_check_interval_seconds", "schedule_timeout_seconds",
    "log_events_on_failure", "on_kill_action", "trigger_kwargs",
    "xcom_sidecar_container_security_context",
}  # fmt: skip


def test_what_nobody_says_comes_from_the_house(make_task) -> None:
    task = make_task()
    assert task.on_finish_action == "delete_succeeded_pod"
    said = {
        "base_container_status_polling_interval": POLL_SECONDS,
        "log_events_on_startup": False,
        "log_events_on_failure": True,
    }
    for name in said.keys() & DOCUMENTED:  # of this provider
        assert getattr(task, name) == said[name], name


def test_a_mapped_task_can_be_made_outside_of_a_dag() -> None:
    mapped = PodOperator.partial(task_id="score", image="i", retries=4).expand(cmds=[["a"], ["b"]])
    assert mapped.partial_kwargs["image"] == "i"
    assert mapped.retries == 4
    assert mapped.dag is None


def test_every_documented_argument_is_compared() -> None:
    compared = {name for one in CASES for name in one.values[1]}
    assert compared - {"execution_timeout"} | ELSEWHERE >= DOCUMENTED


@pytest.fixture
def both(clock, make_task, run_task, settings_file, tmp_path, monkeypatch):
    """Run the stock operator and ours with the same arguments, on a cluster each."""
    settings_file({})
    template = tmp_path / "pod.yaml"
    template.write_text(yaml.safe_dump(TEMPLATE))
    read = []

    def told(manager: Any, pod: Any) -> str:
        read.append(pod)
        return '{"from": "sidecar"}'

    def kill(manager: Any, pod: Any) -> None:
        made = manager._client.made[pod.metadata.name]
        made.ended |= {XCOM_SIDECAR}

    monkeypatch.setattr(PodManager, "extract_xcom_json", told)
    monkeypatch.setattr(PodManager, "extract_xcom_kill", kill)

    def run(timeline: Any, event: Any = None, pods: Any = (), **arguments: Any) -> list[Any]:
        if arguments.get("pod_template_file"):
            arguments["pod_template_file"] = str(template)
        arguments = {"image": "i", "on_finish_action": "delete_pod"} | arguments
        outcomes = []
        for operator in (KubernetesPodOperator, PodOperator):
            Calls.made = []
            cluster = Cluster(clock, timeline)
            for name, states, labels in pods:
                cluster.add(name, states, **labels)
            task = make_task(operator, kubernetes_conn_id=None, **arguments)
            outcome = run_task(task, cluster, event, try_number=2)
            outcome.calls = Calls.made
            outcomes.append(outcome)
        return outcomes

    return run


def asked_for(outcome: Any) -> dict[str, Any]:
    """The pods that were made, without what ours carries besides."""
    pods = {}
    for number, name in enumerate(outcome.cluster.created):
        pod = outcome.cluster.pod(name)
        meta, spec = pod["metadata"], pod["spec"]
        for one in ("creationTimestamp", "uid"):
            meta.pop(one, None)
        meta["name"] = meta["name"] if not outcome.task.random_name_suffix else meta["name"][:-8]
        meta["labels"].pop("already_checked", None)
        (meta.get("annotations") or {}).pop("ml-pipelines/generation", None)
        for one in ("automountServiceAccountToken", "enableServiceLinks"):
            if spec.get(one) is False:
                del spec[one]
        base = spec["containers"][0]
        base["env"] = [
            one for one in base.get("env", []) if not one["name"].startswith("ML_PIPELINES_")
        ]
        if base["terminationMessagePolicy"] == "FallbackToLogsOnError":
            base["terminationMessagePolicy"] = "File"
        # The provider draws the name of a Secret's volume.
        text = re.sub(r"secretvol[0-9a-f-]+", "secretvol", json.dumps(without_empty(pod)))
        pods[number] = json.loads(text)
    return pods


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: c for k, v in value.items() if (c := without_empty(v)) not in ({}, [], None)}
    if isinstance(value, list):
        return [without_empty(item) for item in value]
    return value


def same_end(stock: Any, ours: Any) -> None:
    # Ours may say it more exactly: the stock operator's cleanup hides why a pod did not start.
    assert issubclass(type(ours.error), type(stock.error)), (ours.error, stock.error)
    assert len(ours.cluster.deleted) == len(stock.cluster.deleted)
    assert ours.cluster.graces == stock.cluster.graces
    assert ours.calls == stock.calls
    checked = [
        [pod.pod.metadata.labels.get("already_checked") for pod in one.cluster.made.values()]
        for one in (stock, ours)
    ]
    assert checked[0] == checked[1]


@pytest.mark.parametrize(("timeline", "arguments"), CASES)
def test_argument_means_what_it_means_in_the_parent(both, timeline, arguments) -> None:
    stock, ours = both(timeline, **arguments)
    assert asked_for(ours) == asked_for(stock)
    same_end(stock, ours)
    result = ours.result
    if "do_xcom_push" in arguments:
        # A result of ours carries the image, unless nobody wants one.
        assert result == stock.result
    elif ours.error is None:
        assert result["image"]
    lines = [line for _, line in stock.log.lines if "epoch 1" in line]
    assert [line for _, line in ours.log.lines if "epoch 1" in line] == lines
    if arguments.get("log_pod_spec_on_failure"):
        assert "remote_pod: " in ours.message


OTHER = LABELS | {"run_id": "manual__2"}


@pytest.mark.parametrize("reattach", [True, False])
@pytest.mark.parametrize("state", ["runs", "gone"])
def test_reattach_on_restart(both, reattach: bool, state: str) -> None:
    timeline = [(0, RUNNING), (90, GOOD)]
    pods = [("old", timeline, LABELS)] if state == "runs" else []
    stock, ours = both(until(20, GOOD), pods=pods, reattach_on_restart=reattach)
    for one in (stock, ours):
        assert one.error is None
        assert bool(one.cluster.created) is (not reattach or state == "gone")
    # The stock operator leaves it to run beside its successor.
    assert ours.cluster.there == []


def test_a_fixed_name_that_a_stranger_has(both) -> None:
    fixed = {"name": "fixed", "random_name_suffix": False}
    stock, ours = both(until(20, GOOD), pods=[("fixed", [(0, RUNNING)], OTHER)], **fixed)
    for one in (stock, ours):
        assert "already exists" in one.message
        assert one.cluster.deleted == one.cluster.created == []
        assert "return_value" not in one.xcoms


def test_deferrable_waits_in_the_triggerer(both) -> None:
    arguments = {
        "deferrable": True,
        "startup_timeout_seconds": 77,
        "startup_check_interval_seconds": 3,
        "poll_interval": 5,
        "logging_interval": 60,
    }
    stock, ours = both([(0, STARTING)], **arguments)
    assert type(ours.error).__name__ == type(stock.error).__name__ == "TaskDeferred"
    assert asked_for(ours) == asked_for(stock)
    triggers = [dict(one.error.trigger.serialize()[1]) for one in (stock, ours)]
    for one in triggers:
        for name in ("pod_name", "trigger_start_time", "log_events_on_startup"):
            one.pop(name, None)
    assert triggers[0] == triggers[1]
    assert ours.error.method_name == "trigger_reentry"
    assert ours.cluster.deleted == []


@pytest.mark.parametrize(
    ("status", "timeline"),
    [
        ("success", [(0, RUNNING), (30, GOOD)]),
        ("failed", [(0, RUNNING), (30, BAD)]),
        ("error", [(0, RUNNING), (30, BAD)]),
        ("timeout", [(0, STARTING)]),
    ],
)
@pytest.mark.parametrize("callbacks", [Calls, None], ids=["callbacks", ""])
def test_deferrable_goes_on_after_the_triggerer(both, status, timeline, callbacks) -> None:
    event = {"status": status, "name": "old", "namespace": "default", "message": "m"}
    pods = [("old", timeline, LABELS)]
    stock, ours = both(
        until(20, GOOD), event, pods=pods, deferrable=True, callbacks=callbacks, do_xcom_push=None
    )
    same_end(stock, ours)
    if status == "success":
        assert ours.result["a"] == 1
        assert ours.xcoms["return_value"] == ours.result
    else:
        assert "failed: " in ours.message
        assert "return_value" not in ours.xcoms
    assert ours.cluster.deleted == ["old"]


if "dry_run" in inspect.signature(KubernetesPodOperator.build_pod_request_obj).parameters:

    def test_a_dry_run_asks_no_cluster(make_task, capsys: pytest.CaptureFixture[str]) -> None:
        task = make_task()
        vars(task)["hook"] = None
        task.dry_run()
        assert "kind: Pod" in capsys.readouterr().out


ON_KILL = [{"on_kill_action": action} for action in ("delete_pod", "keep_pod")]


@pytest.mark.parametrize("grace", [{}, {"termination_grace_period": 7}], ids=["", "grace"])
@pytest.mark.parametrize("action", ON_KILL if "on_kill_action" in DOCUMENTED else [{}], ids=str)
def test_a_kill_does_as_it_is_told(clock, make_task, action, grace) -> None:
    from tests.dags.conftest import hook_of

    told = []
    for operator in (KubernetesPodOperator, PodOperator):
        cluster = Cluster(clock, [(0, RUNNING)])
        task = make_task(operator, image="i", **action, **grace)
        vars(task)["hook"] = hook_of(cluster)
        task.pod = cluster.add("old", [(0, RUNNING)], **LABELS)
        task.on_kill()
        told.append((cluster.deleted, cluster.graces))
    assert told[0] == told[1]


def test_dry_run_prints_the_pod(clock, make_task, settings_file, capsys) -> None:
    from tests.dags.conftest import hook_of

    settings_file({"pod": {"spec": {"serviceAccountName": "of-the-values"}}})
    task = make_task(image="i:1")
    vars(task)["hook"] = hook_of(Cluster(clock))
    task.dry_run()
    said = capsys.readouterr().out
    assert "image: i:1" in said
    assert "of-the-values" in said
