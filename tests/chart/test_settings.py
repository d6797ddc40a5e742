"""The settings file that the chart writes is the one that the DAGs read, and its Pods are Pods."""

import copy
import json

import kubernetes_validate
import pytest
import yaml

from ml_pipelines import settings as reader
from mlctl.base.paths import CHART, ROOT, VALUES
from tests.helpers.helm import ENVIRONMENTS, HelmError, render, rendered
from tests.helpers.pages import blocks

NEWEST_KUBERNETES = ".".join(kubernetes_validate.latest_version().split(".")[:2])
LABELS = {"app.kubernetes.io/name": "ml-pipelines", "app.kubernetes.io/component": "task"}
CHART_DATA = {
    "source": "bundled",
    "textColumn": "sentence",
    "labelColumn": "label",
    "onBadRow": "fail",
}
RUN = "/dags/{dag_id}/grid?dag_run_id={run_id}"


def registry(manifests):
    """What the preset adds to the environment, by name: a text, or where it comes from."""
    (container,) = manifests.settings()["presets"]["registry"]["pod"]["spec"]["containers"]
    assert container["name"] == "base"
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.fixture
def of_task(tmp_path, monkeypatch):
    """What the DAGs make of a render: arguments and Pod of a task."""

    def read(manifests, *task, presets=()):
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(manifests.settings()))
        monkeypatch.setenv(reader.PATH_VARIABLE, str(path))
        return reader.of_task(*(task or ("any_dag", "any_task")), presets)

    return read


def base(pod):
    (container,) = [one for one in pod["spec"]["containers"] if one["name"] == "base"]
    return container


def test_the_dags_are_tested_with_what_the_chart_writes():
    values = {
        "imagePullSecrets": [{"name": "registry-login"}],
        "images": {
            "classicExample": {"repository": "registry.example/classic-example", "tag": "1"}
        },
        "pipelines": {
            "defaults": {"operator": {"namespace": "ml-pipelines"}},
            "tasks": {"inference_dag.load_data": {"nodeSelector": {"pool": "inference"}}},
        },
        "wandb": {
            "enabled": True,
            "project": "visible-project",
            "existingSecret": "ml-pipelines-wandb",
        },
    }
    expected = (ROOT / "tests" / "helpers" / "chart_settings.json").read_text()
    assert render(values).settings() == json.loads(expected)


def test_what_else_the_dags_are_told():
    found = rendered("local").settings()
    assert found["dags"] == {}
    assert found["triggerer"] is True
    assert found["inferenceOnNewModel"] is False
    assert found["model"] == {
        "name": "airflow-pipeline",
        "alias": "champion",
        "gate": {"margin": 0.01, "tolerance": 0.01, "significance": 0.05, "data": "same"},
        "approval": False,
    }
    # What is loaded depends on the network on a laptop only.
    assert found["data"]["source"] == "auto"
    for other in ("staging", "production"):
        assert rendered(other).settings()["data"] == CHART_DATA
    # A task that nothing is said about has no entry.
    assert set(found["tasks"]) == {"clean_storage_before_start", "train_model", "clean_up"}
    assert set(found["presets"]) == {"registry"}
    dags = {
        "churn": {
            "schedule": "@daily",
            "maxActiveRuns": 1,
            "maxActiveTasks": 4,
            "runTimeoutSeconds": 7200,
        },
        "training_dag": {"schedule": ""},
    }
    other = {"dags": dags, "model": {"name": "my-model"}, "inferenceOnNewModel": True}
    off = {"airflow": {"triggerer": {"enabled": False}}}
    found = render({"pipelines": other}, off).settings()
    assert found["dags"] == {
        "churn": {
            "schedule": "@daily",
            "max_active_runs": 1,
            "max_active_tasks": 4,
            "dagrun_timeout": 7200,
        },
        "training_dag": {"schedule": None},
    }
    assert found["triggerer"] is False
    assert (found["model"]["name"], found["inferenceOnNewModel"]) == ("my-model", True)
    found = render({"pipelines": {"data": {"source": "s3://bucket/{{ ds }}/*.csv"}}}).settings()
    assert found["data"] == CHART_DATA | {"source": "s3://bucket/{{ ds }}/*.csv"}


def test_the_training_tasks_get_what_they_need(of_task):
    arguments, pod = of_task(rendered("production"), "training_dag", "train_model")
    assert arguments["execution_timeout"].total_seconds() == 7200
    assert arguments["retries"] == 2
    assert base(pod)["resources"] == {
        "requests": {"cpu": "200m", "memory": "1Gi"},
        "limits": {"memory": "4Gi"},
    }
    # The cleaning says nothing of the CPU.
    _, pod = of_task(rendered("production"), "training_dag", "clean_up")
    assert base(pod)["resources"]["requests"] == {"cpu": "50m", "memory": "32Mi"}


def test_mlflow_is_the_registry():
    assert registry(rendered("local")) == {
        "REGISTRY": "mlflow",
        "ML_PIPELINES_RUN_PAGE": f"http://localhost:8080{RUN}",
        "MLFLOW_TRACKING_URI": "http://ml-pipelines-mlflow.ml-pipelines:5000",
        "MLFLOW_EXPERIMENT_NAME": "ml-pipelines",
    }
    elsewhere = {"enabled": False, "trackingUri": "https://mlflow.example.com"}
    found = registry(render({"mlflow": elsewhere}))
    assert found["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"


PAGES = {
    "local": ({}, "http://ml-pipelines-mlflow.ml-pipelines:5000", "http://localhost:5000"),
    "own": (
        {"pageUrl": "https://models.example.com"},
        "http://ml-pipelines-mlflow.ml-pipelines:5000",
        "https://models.example.com",
    ),
    "elsewhere": (
        {"enabled": False, "trackingUri": "https://mlflow.example.com/"},
        "https://mlflow.example.com",
        "https://mlflow.example.com/",
    ),
}


@pytest.mark.parametrize("case", PAGES)
def test_links_of_airflow_lead_to_mlflow_as_people_open_it(case):
    values, inside, outside = PAGES[case]
    variables = render({"mlflow": values}).one("ConfigMap", "ml-pipelines-environment")["data"]
    assert json.loads(variables["ML_PIPELINES_PAGES"]) == {inside: outside}


@pytest.mark.parametrize("wandb", [False, True])
def test_links_of_airflow_lead_to_storages_and_pods(wandb: bool):
    storage = {"s3://predictions": "https://s3.example.com/ui"}
    pod = "https://console.example.com/{namespace}/{pod}"
    values = {
        "pipelines": {"pages": {"pod": pod, "storage": storage}},
        "wandb": {"enabled": wandb, **({"existingSecret": "my-key"} if wandb else {})},
    }
    variables = render(values).one("ConfigMap", "ml-pipelines-environment")["data"]
    _, inside, outside = PAGES["local"]
    of_mlflow = {} if wandb else {inside: outside}
    assert json.loads(variables["ML_PIPELINES_PAGES"]) == storage | of_mlflow
    assert variables["ML_PIPELINES_POD_PAGE"] == pod


def test_a_page_of_pods_has_to_name_the_pod():
    with pytest.raises(HelmError, match="pod"):
        render({"pipelines": {"pages": {"pod": "https://console.example.com"}}})


def test_wandb_is_the_registry_when_enabled():
    wandb = {
        "enabled": True,
        "existingSecret": "my-key",
        "secretKey": "k",
        "project": "p",
        "registry": "models",
        "baseUrl": "https://wandb.example.com",
    }
    page = {"airflow": {"config": {"webserver": {"base_url": "https://example.com/airflow"}}}}
    assert registry(render({"wandb": wandb, **page})) == {
        "REGISTRY": "wandb",
        "ML_PIPELINES_RUN_PAGE": f"https://example.com/airflow{RUN}",
        "WANDB_PROJECT": "p",
        "WANDB_REGISTRY": "models",
        # An empty entity is left out: the SDK would take it for a name.
        "WANDB_BASE_URL": "https://wandb.example.com",
        # The pod starts without it too, and says what is missing.
        "WANDB_API_KEY": {"secretKeyRef": {"name": "my-key", "key": "k", "optional": True}},
    }


def test_the_registry_preset_can_be_added_to(of_task):
    own = {
        "env": {"MLFLOW_EXPERIMENT_NAME": "mine", "MORE": "1"},
        "operator": {"pool": "registry"},
        "pod": {"metadata": {"labels": {"egress": "registry"}}},
    }
    manifests = render({"pipelines": {"presets": {"registry": own}}})
    arguments, pod = of_task(manifests, presets=["registry"])
    assert arguments["pool"] == "registry"
    assert pod["metadata"]["labels"] == {**LABELS, "egress": "registry"}
    env = {one["name"]: one.get("value") for one in base(pod)["env"]}
    assert env["MLFLOW_EXPERIMENT_NAME"] == "mine"
    assert (env["MORE"], env["REGISTRY"]) == ("1", "mlflow")
    # Nobody else gets any of it.
    arguments, pod = of_task(manifests)
    assert "pool" not in arguments
    assert "REGISTRY" not in {one["name"] for one in base(pod)["env"]}


def test_without_a_janitor_no_pod_stays():
    found = render({"janitor": {"enabled": False}}).settings()
    assert found["operator"]["on_finish_action"] == "delete_pod"
    own = {"defaults": {"operator": {"on_finish_action": "keep_pod"}}}
    found = render({"janitor": {"enabled": False}, "pipelines": own}).settings()
    assert found["operator"]["on_finish_action"] == "keep_pod"
    assert "on_finish_action" not in rendered("local").settings()["operator"]


TASK = {
    "resources": {
        "requests": {"cpu": 0.5, "ephemeral-storage": 10000000000},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": 1, "hugepages-2Mi": "512Mi"},
    },
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "serviceAccountName": "reader",
    "labels": {"team": "a"},
    "annotations": {"note": "b"},
    "image": "registry.example.com/classic-example-gpu@sha256:abc",
    "retries": 0,
    "env": {
        "PLAIN": "text",
        "TOKEN": {"valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        "MODE": {"valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": True}}},
        "NODE": {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        "CPUS": {"valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    },
    "envFrom": [
        {"secretRef": {"name": "hub"}, "prefix": "HUB_"},
        {"configMapRef": {"name": "more", "optional": True}},
    ],
    "operator": {"pool": "gpu", "retries": 1, "node_selector": None},
}


@pytest.mark.parametrize("key", ["train_model", "training_dag.train_model"])
def test_one_task_can_differ(of_task, key):
    manifests = render({"pipelines": {"tasks": {key: TASK}}})
    arguments, pod = of_task(manifests, "training_dag", "train_model")
    # `operator` is nearer to the operator than the friendly keys.
    assert (arguments["pool"], arguments["retries"]) == ("gpu", 1)
    container, spec = base(pod), pod["spec"]
    assert container["resources"]["requests"] == {
        "cpu": "0.5",
        "ephemeral-storage": "10000000000",
        "memory": "1Gi",
    }
    assert container["resources"]["limits"] == {
        "memory": "16Gi",
        "nvidia.com/gpu": "1",
        "hugepages-2Mi": "512Mi",
    }
    for field in ("nodeSelector", "tolerations", "affinity", "runtimeClassName"):
        assert spec[field] == TASK[field]
    assert (spec["priorityClassName"], spec["serviceAccountName"]) == ("high", "reader")
    assert pod["metadata"]["labels"] == {**LABELS, "team": "a"}
    assert pod["metadata"]["annotations"] == {"note": "b"}
    assert (container["image"], container["envFrom"]) == (TASK["image"], TASK["envFrom"])
    env = {one.pop("name"): one for one in copy.deepcopy(container["env"])}
    assert env["PLAIN"] == {"value": "text"}
    assert {name: env[name] for name in TASK["env"] if name != "PLAIN"} == {
        name: value for name, value in TASK["env"].items() if name != "PLAIN"
    }


EXTRA = {
    "retries": 1,
    "env": {"A": "defaults", "B": "defaults"},
    "pod": {
        "metadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            # OpenShift: a uid of the namespace, or none at all.
            "securityContext": {"runAsUser": 1000680000, "runAsGroup": None, "fsGroup": None},
            "terminationGracePeriodSeconds": 60,
            "containers": [
                {
                    "name": "base",
                    "env": [{"name": "B", "value": "pod"}, {"name": "C", "value": "pod"}],
                    "resources": {"limits": {"memory": None, "cpu": "2"}},
                    "volumeMounts": [
                        {"name": "shm", "mountPath": "/dev/shm"},
                        {"name": "scratch", "mountPath": "/tmp"},
                    ],
                },
                {"name": "helper", "image": "busybox:1", "command": ["sleep", "1"]},
            ],
            "initContainers": [{"name": "fetch", "image": "busybox:1", "restartPolicy": "Always"}],
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
                {"name": "scratch", "emptyDir": {}},
            ],
        },
    },
}
GPU = {
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "nodeSelector": {"pool": "gpu"},
    "operator": {"pool": "gpu", "retries": None},
}
SHARED = {
    "pod": {
        "spec": {
            "nodeSelector": None,
            "containers": [{"name": "helper", "image": "busybox:2"}],
            "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db"]}],
        }
    }
}
ODD = {
    "nothing": {},
    "extra": {"defaults": EXTRA},
    "by name": {
        "defaults": EXTRA,
        "presets": {"gpu": GPU, "shared": SHARED, "registry": {"env": {"A": "preset"}}},
        "tasks": {"fetch": TASK, "churn.fetch": SHARED, "поезд": {"labels": {"a": "b"}}},
    },
    "account": {
        "defaults": {"serviceAccountName": "mine", "tolerations": [{"operator": "Exists"}]}
    },
}


def pods(settings):
    """Each Pod that tasks may get, by where it comes from."""
    layers = {**settings["presets"], **settings["tasks"]}
    yield "every task", settings["pod"]
    for name, layer in layers.items():
        yield name, reader.merge(settings["pod"], layer.get("pod", {}))


def is_pod(pod):
    frame = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {}}
    whole = reader.merge(frame, pod)
    kubernetes_validate.validate(whole, NEWEST_KUBERNETES, strict=True)
    names = [one["name"] for one in whole["spec"]["containers"]]
    assert names[0] == "base"
    volumes = [one["name"] for one in whole["spec"]["volumes"]]
    for once in (names, volumes, [m["mountPath"] for m in base(whole)["volumeMounts"]]):
        assert len(once) == len(set(once))
    assert {m["name"] for m in base(whole)["volumeMounts"]} <= set(volumes)


def settings_of(environment, odd, major):
    return render({"pipelines": ODD[odd]}, environment=environment, major=major)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_pods_are_pods(environment, odd):
    settings = settings_of(environment, odd, 4).settings()
    for _, pod in pods(settings):
        is_pod(pod)
    # Nothing that other tasks may want to take away is left in what holds for all.
    assert reader.merge({}, settings["pod"]) == settings["pod"]


def test_no_pod_would_be_noticed():
    pod = copy.deepcopy(rendered("local").settings()["pod"])
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        is_pod(pod)


@pytest.mark.parametrize("odd", ODD)
def test_the_whole_pod_is_there_for_a_stock_operator(odd):
    manifests = settings_of("local", odd, 4)
    data = manifests.one("ConfigMap", "ml-pipelines-settings")["data"]
    whole = yaml.safe_load(data["pod.yaml"])
    kubernetes_validate.validate(whole, NEWEST_KUBERNETES, strict=True)
    frame = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "task"},
        "spec": {"restartPolicy": "Never"},
    }
    assert whole == reader.merge(frame, manifests.settings()["pod"])


@pytest.mark.parametrize("major", [3, 4])
def test_layers_are_merged_as_the_dags_do_it(major):
    """A friendly key, then `pod`; Helm and the DAGs know one way to lay things over each other."""
    found = settings_of("local", "by name", major).settings()
    plain = settings_of("local", "nothing", major).settings()
    friendly = {"pod": {"spec": {"containers": [{"name": "base", "env": variables(EXTRA)}]}}}
    expected = reader.merge(plain["pod"], friendly["pod"])
    assert found["pod"] == reader.merge(expected, EXTRA["pod"])
    # The ones that were there keep their place; a new one comes last.
    assert [one["name"] for one in base(found["pod"])["env"]][-3:] == ["A", "B", "C"]
    assert {m["mountPath"]: m["name"] for m in base(found["pod"])["volumeMounts"]} == {
        "/tmp": "scratch",
        "/dev/shm": "shm",
    }
    assert found["pod"]["spec"]["securityContext"]["runAsUser"] == 1000680000
    assert "fsGroup" not in found["pod"]["spec"]["securityContext"]
    assert base(found["pod"])["resources"]["limits"] == {"cpu": "2"}


def variables(layer):
    return [{"name": name, "value": value} for name, value in layer["env"].items()]


@pytest.mark.parametrize("major", [3, 4])
def test_a_null_takes_away_what_a_layer_below_has_set(of_task, major):
    manifests = settings_of("local", "by name", major)
    arguments, pod = of_task(manifests, "churn", "fetch", presets=["gpu"])
    assert arguments["pool"] == "gpu"
    assert "nodeSelector" not in pod["spec"]
    assert [one["image"] for one in pod["spec"]["containers"][1:]] == ["busybox:2"]
    arguments, pod = of_task(manifests, "churn", "score", presets=["gpu"])
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    # Without a number of its own a task takes its DAG's.
    assert "retries" not in arguments


def test_task_ids_may_be_of_any_script(of_task):
    _, pod = of_task(settings_of("local", "by name", 4), "любой", "поезд")
    assert pod["metadata"]["labels"]["a"] == "b"


def examples():
    """The examples in the comments of values.yaml, by the key that they stand above."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if not line.strip().startswith("#") and number and "#" in lines[number - 1]:
            block, above = [], number - 1
            while above >= 0 and lines[above].strip().startswith("#   "):
                block.insert(0, lines[above].strip().removeprefix("#   "))
                above -= 1
            if block:
                yield line.strip().split(":")[0], "\n".join(block)


def test_the_examples_in_the_values_are_some(of_task):
    """Whoever takes the comment marks away gets what they say."""
    found = dict(examples())
    of_network = {name: yaml.safe_load(found[name]) for name in ("ingress", "scrapers")}
    assert set(found) == {"dags", "pod", "presets", "tasks", "airflowLocalSettings", *of_network}
    example = {key: yaml.safe_load(found[key]) for key in ("dags", "pod", "presets", "tasks")}
    pipelines = {
        "dags": example["dags"],
        "defaults": {"pod": example["pod"]},
        "presets": example["presets"],
        "tasks": example["tasks"],
    }
    on = {"enabled": True, **of_network}
    network = {"networkPolicies": on, "airflow": {"networkPolicies": {"enabled": True}}}
    manifests = render({"pipelines": pipelines}, network)
    assert manifests.one("NetworkPolicy", "ml-pipelines-webserver")["spec"]["ingress"]
    assert manifests.settings()["dags"]["inference_dag"]["dagrun_timeout"] == 7200
    arguments, pod = of_task(manifests, "training_dag", "train_model", presets=["gpu"])
    is_pod(pod)
    assert base(pod)["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert arguments["execution_timeout"].total_seconds() == 14400
    assert arguments["pool"] == "gpu"
    mounts = {one["mountPath"] for one in base(pod)["volumeMounts"]}
    assert mounts == {"/tmp", "/dev/shm", "/models"}


def documented():
    """The values in the pages for people."""
    names = ("operations", "add-a-pipeline", "bring-your-dags")
    pages = [*(f"docs/{name}.md" for name in names), "charts/ml-pipelines/README.md"]
    return [yaml.safe_load(block.text) for page in pages for block in blocks(page, "yaml")]


@pytest.mark.parametrize("values", documented(), ids=lambda values: next(iter(values)))
def test_documented_values_are_taken(values):
    for _, pod in pods(render(values).settings()):
        is_pod(pod)


@pytest.mark.parametrize("release", ["ml-pipelines", "team-a"])
def test_settings_are_mounted_where_the_dags_look(release):
    dags = {"persistence": {"enabled": False}}
    processor = {"airflow": {"dagProcessor": {"enabled": True}, "dags": dags}}
    manifests = render(processor, environment="local", release=release)
    prefix = release if release == "ml-pipelines" else f"{release}-ml-pipelines"
    assert manifests.settings(prefix)["pod"]["spec"]["serviceAccountName"] == f"{prefix}-task"
    containers = [
        (manifests.one("Deployment", f"{release}-{name}")["spec"]["template"], name)
        for name in ("scheduler", "triggerer", "dag-processor")
    ]
    for pod, name in (*containers, (manifests.worker(), "base")):
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "ml-pipelines-settings"]
        assert volume["configMap"]["name"] == f"{prefix}-settings"
        (container,) = [c for c in pod["spec"]["containers"] if c["name"] == name]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "ml-pipelines-settings"]
        # A whole directory: the kubelet never updates a file mounted by subPath.
        assert f"{mount['mountPath']}/settings.json" == reader.DEFAULT_PATH
        assert "subPath" not in mount


def test_environments_say_nothing_of_single_tasks():
    """The tests above hold for them too."""
    files = [yaml.safe_load((VALUES / f"{name}.yaml").read_text()) for name in ENVIRONMENTS]
    assert {key for values in files for key in values.get("pipelines", {})} <= {
        "dags",
        "data",
        "maxPods",
        "namespaces",
    }
