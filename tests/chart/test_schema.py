"""values.schema.json, values.yaml and the templates know the same keys."""

import json
import re

import pytest
import yaml

from mlctl.base.paths import CHART, VALUES
from mlctl.release.chart import read_archive
from tests.helpers.helm import HelmError, render
from tools.values_table import readme

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
OWN = {key: value for key, value in DEFAULTS.items() if key != "airflow"}


def leaves(values, path=()):
    """Yield (path, value) of everything that is no mapping with keys."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, values


def put(values, path, value):
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value


@pytest.fixture(scope="module")
def official_values(official_chart):
    return yaml.safe_load(read_archive(official_chart)["values.yaml"])


UNKNOWN = {
    "storrage": {},
    "storage": {"sise": "5Gi"},
    "wandb": {"apikey": "x"},
    "pipelines": {
        "defaults": {"tolerations": [{"keys": "a"}], "affinity": {"podAntiAfinity": {}}},
        "tasks": {"any_id": {"ressources": {}}, "any_dag.load_data": {"retrys": 1}},
        "presets": {"gpu": {"nodeselector": {}}},
        "namespace": [],
    },
    "postgres": {"resources": {"request": {}}},
    "images": {"mlflow": {"name": "x"}},
    "janitor": {"predictions": {"maxAgeHours": 1}},
}
IMPOSSIBLE = {
    "storage": {"size": "5GB", "accessModes": ["ReadWriteSometimes"]},
    "images": {"postgres": {"pullPolicy": "Sometimes", "digest": "sha256:abc"}},
    "mlflow": {"trackingUri": "mlflow:5000"},
    "wandb": {"registry": "wandb-registry-models/m"},
    "janitor": {"schedule": "daily", "leftovers": {"maxAgeHours": 0}},
    "pipelines": {
        "dags": {"inference_dag": {"schedule": "daily", "maxActiveRuns": 0}},
        "inferenceOnNewModel": "yes",
        "modelName": "my-model",
        "model": {"alias": "v3", "gate": {"margin": 2, "data": "all"}, "approval": "yes"},
        "inference": {
            "onBadRow": "ignore",
            "output": "http://host/p.csv",
            "retrainOnDrift": 0,
            "shards": 0,
        },
        "defaults": {"retries": -1, "env": {"WANDB_API_KEY": "x"}},
        "tasks": {
            "train_model": {
                "resources": {"limits": {"nvidia.com/gpu": "one"}},
                "env": {"NUMBER": 1, "TOKEN": {"valueFrom": {"secretKeyRef": {"name": "hub"}}}},
                "envFrom": [{"secretRef": {"name": "a"}, "configMapRef": {"name": "b"}}],
                "image": "an image",
            }
        },
    },
}


@pytest.mark.parametrize("major", [3, 4])
def test_unknown_keys_are_refused_by_name(major):
    with pytest.raises(HelmError) as error:
        render(UNKNOWN, major=major)
    # As Helm 3 says it, and as Helm 4 does.
    named = re.findall(r"property (\w+) is not|properties '(\w+)' not", str(error.value))
    assert {three or four for three, four in named} == {
        *("storrage", "sise", "apikey", "ressources", "retrys", "request", "name", "namespace"),
        *("maxAgeHours", "keys", "podAntiAfinity", "nodeselector"),
    }


@pytest.mark.parametrize("major", [3, 4])
def test_impossible_values_are_refused(major):
    with pytest.raises(HelmError) as error:
        render(IMPOSSIBLE, major=major)
    text = str(error.value).replace("/", ".")
    for expected in (
        "storage.size",
        "storage.accessModes.0",
        "images.postgres.pullPolicy",
        "images.postgres.digest",
        "mlflow.trackingUri",
        "wandb.registry",
        "janitor.schedule",
        "janitor.leftovers.maxAgeHours",
        "pipelines.dags.inference_dag.maxActiveRuns",
        "pipelines.dags.inference_dag.schedule",
        "pipelines.inferenceOnNewModel",
        # Of before; the message names what it has become.
        "pipelines.modelName",
        "see pipelines.model.name",
        "pipelines.model.alias",
        "pipelines.model.gate.margin",
        "pipelines.model.gate.data",
        "pipelines.model.approval",
        "pipelines.inference.onBadRow",
        "pipelines.inference.output",
        "pipelines.inference.retrainOnDrift",
        "pipelines.inference.shards",
        "pipelines.defaults.retries",
        "pipelines.tasks.train_model.resources.limits",
        "pipelines.tasks.train_model.env.NUMBER",
        "pipelines.tasks.train_model.env.TOKEN.valueFrom.secretKeyRef",
        "pipelines.tasks.train_model.envFrom.0",
        "pipelines.tasks.train_model.image",
        "WANDB_API_KEY",
    ):
        assert expected in text


@pytest.mark.parametrize("major", [3, 4])
def test_a_part_that_is_taken_away_is_named(major):
    """Null takes a key away, with all the defaults below it."""
    gone = {"storage": {"local": None}, "janitor": None, "images": {"mlflow": None}}
    with pytest.raises(HelmError) as error:
        render(gone, major=major)
    assert all(name in str(error.value) for name in ("local", "janitor", "mlflow"))


def test_the_official_way_to_say_none_is_answered():
    """A Secret's name that is null; the official values.yaml has it so."""
    names = {
        "fernetKeySecretName": None,
        "webserverSecretKeySecretName": None,
        "data": {"metadataSecretName": None},
    }
    with pytest.raises(HelmError) as error:
        render({"airflow": names})
    for name in ("fernetKeySecretName", "webserverSecretKeySecretName", "data.metadataSecretName"):
        assert f"airflow.{name}: must name" in str(error.value)


def test_every_own_key_is_described():
    def undescribed(entry, path):
        if not entry.get("description"):
            yield ".".join(path)
        for key, below in entry.get("properties", {}).items():
            yield from undescribed(below, (*path, key))

    top = SCHEMA["properties"]
    assert [bad for key in top for bad in undescribed(top[key], (key,))] == []


def test_schema_and_values_have_the_same_own_keys():
    def keys(schema, values, path=()):
        for key in {*schema["properties"], *values} - {"airflow"}:
            here = ".".join((*path, key))
            if key not in values or key not in schema["properties"]:
                yield here
            elif "properties" in schema["properties"][key]:
                yield from keys(schema["properties"][key], values[key], (*path, key))

    assert list(keys(SCHEMA, DEFAULTS)) == []


# Values that exclude each other; between them every leaf is set to something of its own.
VARIANTS = {
    "in cluster": {
        **{("images", name, "digest"): "" for name in OWN["images"]},
        **{("wandb", key): "" for key in ("apiKey", "existingSecret")},
        ("mlflow", "trackingUri"): "",
        ("admin", "existingSecret"): "",
        ("postgres", "existingSecret"): "",
        ("networkPolicies", "enabled"): True,
        ("airflow", "networkPolicies", "enabled"): True,
        ("airflow", "statsd", "enabled"): True,
        **{("metrics", key, "enabled"): True for key in OWN["metrics"]},
    },
    "elsewhere": {
        ("wandb", "enabled"): True,
        ("wandb", "apiKey"): "",
        ("mlflow", "enabled"): False,
        ("secrets", "metadata", "create"): False,
    },
    "models elsewhere": {
        **{("wandb", key): "" for key in ("apiKey", "existingSecret")},
        ("mlflow", "enabled"): False,
        ("postgres", "existingSecret"): "",
    },
    "key in values": {
        ("wandb", "enabled"): True,
        ("wandb", "existingSecret"): "",
        ("wandb", "apiKey"): "own-api-key",
        ("mlflow", "trackingUri"): "",
        ("admin", "existingSecret"): "",
        ("postgres", "existingSecret"): "",
    },
}


def marked(value, token):
    """A value of the same type that carries the token."""
    if isinstance(value, list):
        return [token]
    if isinstance(value, dict):
        return {token: token}
    return token


EMPTY = [("dags",), ("presets",), ("tasks",)]


def test_every_own_value_reaches_an_object():
    """A value that no template reads would be set in vain."""
    # Anything may stand anywhere: the schema is left out.
    tokens = {
        path: f"token{number:03}"
        for number, (path, value) in enumerate(leaves(OWN))
        # What stands in an empty preset or task is one of the keys that the defaults have; a
        # DAG's are in test_settings.py.
        if not isinstance(value, bool)
        and not (path[1:2] in EMPTY and value == {})
        # Decides what is refused, and how often a volume may be mounted.
        and path != ("profile",)
    }
    text = ""
    for overrides in VARIANTS.values():
        # Through JSON: YAML anchors are one object at two places.
        values = json.loads(json.dumps(OWN))
        for path, token in tokens.items():
            put(values, path, marked(dict(leaves(OWN))[path], token))
        values["profile"] = "local"
        # Some are for the project's own image.
        values["airflow"] = {"defaultAirflowRepository": "registry.test/airflow"}
        values["imagePullSecrets"] = [{"name": tokens[("imagePullSecrets",)]}]
        values["extraObjects"] = [{"kind": "Any", "name": tokens[("extraObjects",)]}]
        for path, value in overrides.items():
            put(values, path, value)
        text += render(values, options=("--skip-schema-validation",)).text
    unread = [".".join(path) for path, token in tokens.items() if token not in text]
    # In base64, in the variant that has it.
    assert "b3duLWFwaS1rZXk=" in text
    assert unread == ["wandb.apiKey"]


def test_every_value_that_a_template_reads_exists():
    used = {
        match
        for file in (CHART / "templates").rglob("*.*")
        # The official chart reads them, with its own values.
        if file.name
        not in (
            "_wait.tpl",
            "_environment.tpl",
            "_images.tpl",
            "_airflow3.tpl",
            "_webserver_config.tpl",
        )
        for match in re.findall(r"(?:\$v|\$?\.Values)\.([A-Za-z][\w.]*\w)", file.read_text())
    }

    def exists(path):
        values = DEFAULTS
        for key in path.split("."):
            if key not in values:
                return False
            values = values[key]
        return True

    own = {path for path in used if not path.startswith("airflow")}
    assert len(own) > 40
    assert {path for path in own if not exists(path)} == set()


def test_official_keys_are_the_official_charts(official_values):
    text = (CHART / "templates" / "_validate.tpl").read_text()
    (listed,) = re.findall(r'define "ml-pipelines.airflowKeys" -}}\n(.*)\n', text)
    assert listed.split() == sorted([*official_values, "global"])


def test_no_default_of_the_official_chart_is_repeated(official_values):
    repeated = [
        ".".join(path)
        for path, value in leaves(DEFAULTS["airflow"])
        if value == dict(leaves(official_values)).get(path, object())
    ]
    assert repeated == []


@pytest.mark.parametrize("environment", ["local", "staging", "production"])
def test_environment_holds_differences_only(environment):
    values = yaml.safe_load((VALUES / f"{environment}.yaml").read_text())
    defaults = dict(leaves(DEFAULTS))
    # What is empty is named there to be set.
    assert [".".join(p) for p, v in leaves(values) if v and defaults.get(p) == v] == []


def test_readme_lists_the_values():
    readme(check=True)
