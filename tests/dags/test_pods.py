"""The pods that the tasks of the two pipelines ask for: whole specifications, for a fixed run."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from example_parts import DATA_VARIABLES
from ml_pipelines import settings
from ml_pipelines.lineage import dags_commit
from tests.helpers.pipelines import CLI, COMMANDS, EVERY_TASK

RUN_ID = "manual__2026-11-23T09:00:00+00:00"
REGISTRY_TASKS = {"train_model", "upload_model", "load_model", "gate_model"}
GATE = [*CLI, "gate", "airflow-pipeline:v3", "/tmp/results", "/tmp/data"]
# What a task is told of one before it; nothing here, as nothing has run.
OF_BEFORE = {
    ("training_dag", "upload_model"): "ML_PIPELINES_TRAINING_IMAGE_DIGEST",
    ("inference_dag", "clean_up"): "ML_PIPELINES_INFERENCE_IMAGE_DIGEST",
}
EMPTY = ["sh", "-ceu", "find /tmp -mindepth 1 -print -delete"]


def expected_spec(chart: dict[str, Any], task: Any) -> dict[str, Any]:
    """The Pod of the values, and what operator and task add to it."""
    dag_id, task_id = task.dag_id, task.task_id
    commands = GATE if task_id == "gate_model" else COMMANDS.get((dag_id, task_id), EMPTY)
    # The document has no champion.
    commands = [word.replace(":latest", ":champion") for word in commands]
    if (dag_id, task_id) == ("inference_dag", "clean_up"):
        commands = task.cmds  # a script; it is run in test_cleaning.py
    spec = copy.deepcopy(chart["pod"]["spec"])
    (container,) = spec["containers"]
    container["env"][:0] = [
        {"name": "ML_PIPELINES_DAG_ID", "value": dag_id},
        {"name": "ML_PIPELINES_RUN_ID", "value": RUN_ID},
        {"name": "ML_PIPELINES_DAGS_COMMIT", "value": dags_commit()},
        {"name": "ML_PIPELINES_IMAGE", "value": "registry.example/classic-example:1"},
    ]
    if task_id in REGISTRY_TASKS:
        preset = chart["presets"]["registry"]["pod"]["spec"]
        container["env"] += preset["containers"][0]["env"]
    if of_before := OF_BEFORE.get((dag_id, task_id)):
        container["env"].append({"name": of_before, "value": ""})
    if task_id == "gate_model":
        model = chart["model"]
        rules = model["gate"] | {"alias": model["alias"], "approval": model["approval"]}
        container["env"].append({"name": "GATE", "value": json.dumps(rules)})
    if (dag_id, task_id) in COMMANDS or task_id == "gate_model":
        value = json.dumps(task.dag.params.dump(), sort_keys=True)
        container["env"].append({"name": "ML_PIPELINES_PARAMS", "value": value})
    if task_id == "load_data":
        data = [(name, chart["data"][key]) for key, name in DATA_VARIABLES.items()]
        container["env"] += [{"name": name, "value": text} for name, text in data]
    if task_id == "run_inference":
        bad_rows = {"name": "PREDICT_ON_BAD_ROW", "value": chart["inference"]["onBadRow"]}
        container["env"].insert(-1, bad_rows)
    container |= {
        "command": commands,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    seconds = 3600
    if task_id == "train_model":
        container["resources"] = resources("200m", "1Gi", "4Gi")
        seconds = 7200
    if task_id.startswith("clean_"):
        container["resources"] = resources("50m", "32Mi", "128Mi")
        seconds = 900
    if (dag_id, task_id) == ("inference_dag", "load_data"):
        spec["nodeSelector"] = {"pool": "inference"}
    return spec | {
        "activeDeadlineSeconds": seconds + 60,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
    }


def resources(cpu: str, memory: str, limit: str) -> dict[str, Any]:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": limit}}


def without_empty(value: object) -> object:
    """Providers differ in which empty fields they send; to the API server it is all the same."""
    if isinstance(value, dict):
        return {k: c for k, v in value.items() if (c := without_empty(v)) not in ({}, [], None)}
    if isinstance(value, list):
        return [without_empty(item) for item in value]
    return value


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_TASK)
def test_pod(load_dag, chart_settings, render_pod, dag_id: str, task_id: str) -> None:
    task = load_dag(dag_id).get_task(task_id)
    pod = render_pod(task, RUN_ID, {"upload_model": {"version": "v3"}})

    spec = without_empty(pod["spec"])
    spec.pop("hostNetwork", None)
    assert spec == without_empty(expected_spec(chart_settings, task))

    name, _, suffix = pod["metadata"]["name"].rpartition("-")
    assert (name, len(suffix)) == (task_id.replace("_", "-"), 8)
    assert pod["metadata"]["namespace"] == "ml-pipelines"
    labels = pod["metadata"]["labels"]
    assert labels["dag_id"] == dag_id
    assert labels["task_id"] == task_id
    assert labels["app.kubernetes.io/component"] == "task"
    assert labels["kubernetes_pod_operator"] == "True"  # the janitor looks for it


@pytest.mark.parametrize(
    ("dag_id", "task_id"), [one for one in EVERY_TASK if one[1] != "gate_model"]
)
def test_pod_holds_for_the_documents_settings(
    load_dag, render_pod, monkeypatch, dag_id: str, task_id: str
) -> None:
    """Without a settings file, as under `airflow standalone`."""
    monkeypatch.setattr(settings, "DEFAULT_PATH", "/nowhere/settings.json")
    pod = render_pod(load_dag(dag_id).get_task(task_id), RUN_ID)
    container = pod["spec"]["containers"][0]

    assert pod["metadata"]["namespace"] == "default"
    assert container["image"] == "ghcr.io/kyryl-opens-ml/classic-example:main"
    assert container["imagePullPolicy"] == "Always"
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "training-storage"}
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    if task_id in REGISTRY_TASKS:
        assert env["REGISTRY"] == "wandb"
        assert env["WANDB_API_KEY"] is None
    else:
        assert {name for name in env if not name.startswith("ML_PIPELINES_")} == set()


def test_the_values_win_over_what_the_operator_adds_and_the_task_over_both(
    make_task, settings_file, render_pod
) -> None:
    values = {"name": "base", "env": [{"name": "ML_PIPELINES_RUN_ID", "value": "values"}]}
    settings_file({"pod": {"spec": {"containers": [values], "activeDeadlineSeconds": 7}}})
    task = make_task(image="i:1", env_vars={"ML_PIPELINES_IMAGE": "task"})
    spec = render_pod(task, RUN_ID)["spec"]
    env = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
    assert env["ML_PIPELINES_RUN_ID"] == "values"
    assert env["ML_PIPELINES_IMAGE"] == "task"
    assert spec["activeDeadlineSeconds"] == 7


def test_a_pod_says_which_image_it_was_asked_to_run(make_task, settings_file, render_pod) -> None:
    settings_file({"pod": {"spec": {"containers": [{"name": "base", "image": "values:1"}]}}})
    for arguments, image in (({}, "values:1"), ({"image": "task:1"}, "task:1")):
        spec = render_pod(make_task(**arguments), RUN_ID)["spec"]
        env = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
        assert env["ML_PIPELINES_IMAGE"] == spec["containers"][0]["image"] == image


def test_text_of_the_values_is_no_template(make_task, settings_file, render_pod) -> None:
    env = [{"name": "PROMPT", "value": "Answer: {{ question }}"}]
    settings_file({"pod": {"spec": {"containers": [{"name": "base", "env": env}]}}})
    spec = render_pod(make_task(image="i"), RUN_ID)["spec"]
    assert spec["containers"][0]["env"][-1]["value"] == "Answer: {{ question }}"


def test_a_volume_of_the_task_takes_the_place_of_the_values(
    make_task, settings_file, render_pod
) -> None:
    mount = {"name": "storage", "mountPath": "/tmp/"}
    settings_file(
        {
            "pod": {
                "spec": {
                    "containers": [{"name": "base", "volumeMounts": [mount]}],
                    "volumes": [{"name": "storage", "emptyDir": {}}],
                }
            }
        }
    )
    from kubernetes.client import models as k8s

    memory = k8s.V1EmptyDirVolumeSource(medium="Memory")
    task = make_task(
        image="i",
        volumes=[k8s.V1Volume(name="storage", empty_dir=memory)],
        volume_mounts=[k8s.V1VolumeMount(name="storage", mount_path="/tmp", read_only=True)],
    )
    spec = render_pod(task, RUN_ID)["spec"]
    assert spec["volumes"] == [{"name": "storage", "emptyDir": {"medium": "Memory"}}]
    (mount,) = spec["containers"][0]["volumeMounts"]
    assert mount == {"name": "storage", "mountPath": "/tmp", "readOnly": True}


def test_a_container_of_another_name_is_the_base_of_the_values(
    make_task, settings_file, render_pod
) -> None:
    base = {"name": "base", "image": "values:1", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    settings_file({"pod": {"spec": {"containers": [base, {"name": "beside", "image": "b"}]}}})
    spec = render_pod(make_task(base_container_name="main"), RUN_ID)["spec"]
    assert [one["name"] for one in spec["containers"]] == ["main", "beside"]
    assert spec["containers"][0]["image"] == "values:1"
    assert spec["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
