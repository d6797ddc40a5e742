"""The settings file: what reaches which task, and what is told when it cannot be read."""

from __future__ import annotations

import locale
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ml_pipelines import settings
from ml_pipelines.settings import SettingsError, load, merge, of_task


def test_a_task_takes_every_layer_and_the_nearest_wins(settings_file) -> None:
    settings_file(
        {
            "operator": {"retries": 1, "queue": "all", "pool": "all", "owner": "all"},
            "presets": {"gpu": {"operator": {"retries": 2, "queue": "gpu", "pool": "gpu"}}},
            "tasks": {
                "train": {"operator": {"retries": 3, "queue": "train"}},
                "a_dag.train": {"operator": {"retries": 4}},
                "train_again": {"operator": {"retries": 5}},
            },
        }
    )
    every = {"retries": 1, "queue": "all", "pool": "all", "owner": "all"}
    assert of_task("a_dag", "load")[0] == every
    assert of_task("a_dag", "load", ["gpu"])[0] == every | {
        "retries": 2,
        "queue": "gpu",
        "pool": "gpu",
    }
    assert of_task("another", "train")[0] == every | {"retries": 3, "queue": "train"}
    of_one = every | {"retries": 4, "queue": "train"}
    assert of_task("a_dag", "train")[0] == of_one
    assert of_task("a_dag", "train", ["gpu"])[0] == of_one | {"pool": "gpu"}


def test_presets_are_laid_over_each_other_in_their_order(settings_file) -> None:
    presets = {name: {"operator": {"queue": name}} for name in ("one", "two")}
    settings_file({"presets": presets})
    assert of_task("d", "t", ["one", "two"])[0] == {"queue": "two"}
    assert of_task("d", "t", ["two", "one"])[0] == {"queue": "one"}


def test_a_preset_that_is_not_there_is_named(settings_file) -> None:
    settings_file({"presets": {"registry": {}, "gpu": {}}})
    with pytest.raises(
        SettingsError, match=r"^no preset a, b in the values; there: gpu, registry$"
    ):
        of_task("d", "t", ["b", "gpu", "a"])
    settings_file({})
    with pytest.raises(SettingsError, match=r"there: none$"):
        of_task("d", "t", ["cpu"])


def test_times_are_seconds_and_large_numbers_stay_whole(settings_file) -> None:
    # Helm reads a large number as 1e+06.
    settings_file(
        {
            "operator": {
                "retry_delay": 10,
                "max_retry_delay": 60,
                "execution_timeout": 1e6,
                "priority_weight": 2e6,
                "startup_check_interval_seconds": 0.5,
            }
        }
    )
    arguments, _ = of_task("d", "t")
    assert arguments == {
        "retry_delay": timedelta(seconds=10),
        "max_retry_delay": timedelta(minutes=1),
        "execution_timeout": timedelta(seconds=1_000_000),
        "priority_weight": 2_000_000,
        "startup_check_interval_seconds": 0.5,
    }
    assert isinstance(arguments["priority_weight"], int)


@pytest.mark.parametrize("layer", [{"pod": None, "operator": None}, {}])
def test_a_layer_may_be_empty(settings_file, layer: dict[str, Any]) -> None:
    settings_file({**layer, "tasks": {"t": layer}, "presets": {"p": layer}})
    assert of_task("d", "t", ["p"]) == ({}, {})


@pytest.mark.parametrize("key", ["tasks", "presets"])
def test_no_tasks_and_no_presets(settings_file, key: str) -> None:
    settings_file({key: None})
    assert of_task("d", "t") == ({}, {})


CONTAINER = {"name": "base", "image": "a:1", "env": [{"name": "A", "value": "1"}]}


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        ({"a": 1, "b": {"c": 1}}, {"b": {"d": 2}}, {"a": 1, "b": {"c": 1, "d": 2}}),
        ({"a": 1, "b": {"c": 1}}, {"a": None, "b": {"c": None}}, {"b": {}}),
        ({}, {"a": {"b": None, "c": 1}}, {"a": {"c": 1}}),
        ({"a": {"b": 1}}, {"a": "text"}, {"a": "text"}),
        ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": []}, {"tolerations": []}),
        ({"a": False}, {"a": True}, {"a": True}),
        ({"a": True}, {"a": False}, {"a": False}),
        # Containers by name, merged; a variable has one source, a volume is of one kind.
        (
            {"containers": [CONTAINER, {"name": "second"}]},
            {
                "containers": [
                    {"name": "third"},
                    {"name": "base", "image": "b:1", "env": [{"name": "B", "value": "2"}]},
                ]
            },
            {
                "containers": [
                    CONTAINER
                    | {
                        "image": "b:1",
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                    },
                    {"name": "second"},
                    {"name": "third"},
                ]
            },
        ),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]},
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
            {
                "env": [
                    {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}},
                    {"name": "B", "value": "1"},
                ]
            },
        ),
        (
            {"volumes": [{"name": "v", "emptyDir": {}}]},
            {"volumes": [{"name": "v", "configMap": {"name": "m"}}]},
            {"volumes": [{"name": "v", "configMap": {"name": "m"}}]},
        ),
        (
            {
                "volumeMounts": [
                    {"name": "a", "mountPath": "/tmp"},
                    {"name": "a", "mountPath": "/a"},
                ]
            },
            {
                "volumeMounts": [
                    {"name": "b", "mountPath": "/tmp"},
                    {"name": "b", "mountPath": "/x"},
                ]
            },
            {
                "volumeMounts": [
                    {"name": "b", "mountPath": "/tmp"},
                    {"name": "a", "mountPath": "/a"},
                    {"name": "b", "mountPath": "/x"},
                ]
            },
        ),
        (
            {"volumeDevices": [{"name": "a", "devicePath": "/dev/a"}]},
            {"volumeDevices": [{"name": "a", "devicePath": "/dev/b"}]},
            {
                "volumeDevices": [
                    {"name": "a", "devicePath": "/dev/a"},
                    {"name": "a", "devicePath": "/dev/b"},
                ]
            },
        ),
        (
            {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}]},
            {"hostAliases": [{"ip": "10.0.0.2", "hostnames": ["a"]}]},
            {
                "hostAliases": [
                    {"ip": "10.0.0.1", "hostnames": ["a"]},
                    {"ip": "10.0.0.2", "hostnames": ["a"]},
                ]
            },
        ),
        # A list of one kind above a list of another.
        ({"a": [{"name": "n"}]}, {"a": ["name"]}, {"a": ["name"]}),
        ({"a": ["name"]}, {"a": [{"name": "n"}]}, {"a": [{"name": "n"}]}),
        ({"a": "text"}, {"a": [{"name": "n"}]}, {"a": [{"name": "n"}]}),
        (
            {"ephemeralContainers": [{"name": "e", "image": "a"}]},
            {"ephemeralContainers": [{"name": "e", "args": ["x"]}]},
            {"ephemeralContainers": [{"name": "e", "image": "a", "args": ["x"]}]},
        ),
        (
            {"initContainers": [{"name": "i", "image": "a"}]},
            {"initContainers": [{"name": "i", "args": ["x"]}]},
            {"initContainers": [{"name": "i", "image": "a", "args": ["x"]}]},
        ),
    ],
)
def test_merge_is_a_strategic_merge_patch(below: Any, above: Any, merged: Any) -> None:
    assert merge(below, above) == merged


def test_merge_leaves_what_it_is_given() -> None:
    below, above = {"containers": [CONTAINER]}, {"containers": [{"name": "base", "image": "b"}]}
    merge(below, above)
    assert below == {"containers": [CONTAINER]}
    assert CONTAINER["image"] == "a:1"


def test_without_a_file_the_settings_are_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEFAULT_PATH", "/nowhere/settings.json")
    _, pod = of_task("training_dag", "upload_model", ["registry"])
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "ghcr.io/kyryl-opens-ml/classic-example:main"
    assert container["imagePullPolicy"] == "Always"
    (volume,) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "training-storage"}
    assert {"name": "REGISTRY", "value": "wandb"} in container["env"]


def test_without_a_variable_the_file_is_the_charts(settings_file, monkeypatch) -> None:
    path = settings_file({"operator": {"queue": "chart's"}})
    monkeypatch.delenv("ML_PIPELINES_SETTINGS")
    monkeypatch.setattr(settings, "DEFAULT_PATH", str(path))
    assert of_task("d", "t")[0] == {"queue": "chart's"}


def test_the_file_is_utf_8_in_any_locale(settings_file) -> None:
    settings_file('{"operator": {"queue": "поезд"}}')
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        assert of_task("d", "t")[0] == {"queue": "поезд"}
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def test_keys_of_a_newer_chart_stop_no_pipeline(load_dag, settings_file) -> None:
    newer = {"cache_seconds": 5, "retries": 1}
    settings_file(
        {
            "operator": newer,
            "tasks": {"evaluate": {"operator": newer}},
            "presets": {"registry": {"image": "a:1"}},
            "metrics": {"a": 1},
        }
    )
    assert load_dag("training_dag").get_task("train_model").retries == 1


@pytest.mark.parametrize(
    ("content", "told"), [("namespace: x", "cannot be read: "), ("[]", "not a JSON object")]
)
@pytest.mark.parametrize("name", ["training_dag", "inference_dag"])
def test_a_file_that_is_not_one_is_an_import_error(
    load_dag, settings_file, name: str, content: str, told: str
) -> None:
    path = settings_file(content)
    with pytest.raises(SettingsError, match=told) as error:
        load_dag(name)
    assert str(path) in str(error.value)


def test_a_file_that_is_named_but_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ML_PIPELINES_SETTINGS", str(tmp_path / "settings.json"))
    with pytest.raises(SettingsError, match=r"cannot be read: .*No such file"):
        load()


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ML_PIPELINES_SETTINGS", str(tmp_path))
    with pytest.raises(SettingsError, match="cannot be read"):
        load()
