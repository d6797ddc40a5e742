"""What Prometheus and Grafana get is valid for them, and the alerts fire when they should.

tests/images/test_statsd_exporter.py asks a real Prometheus every query.
"""

import re
import subprocess

import jsonschema
import pytest
import yaml

from mlctl.base.packages import ensure_packages
from mlctl.base.paths import ROOT
from tests.helpers.helm import AIRFLOW_3, HelmError, render, rendered
from tests.helpers.metrics import (
    JOB,
    dashboard,
    mappings,
    metered,
    operator_crd,
    panels,
    picture_text,
    rules,
)

RUNS = ("airflow_dagrun_duration_count", {"dag_id": "a_dag", "state": "failed"})
LOST = {"dag_id": "a_dag", "task_id": "a_task"}
MODEL = {"dag_id": "inference_dag", "task_id": "load_model", "figure": "promoted_seconds"}
DRIFT = {"dag_id": "inference_dag", "task_id": "run_inference", "figure": "drift.psi_words"}
# Alert, metric, labels of it, its value each minute, labels of the alert, and the minutes at which
# it is quiet and fires.
ALERTS = [
    ("AirflowMetricsMissing", "up", {}, "1x20 0x20", {}, {24: False, 27: True}),
    *(
        (f"Airflow{part.title()}Silent", f"airflow_{part}_heartbeat", {}, values, {}, when)
        for part in ("scheduler", "triggerer")
        for values, when in (
            ("0+12x20 240x20", {28: False, 31: True}),
            # It has never told anything.
            ("", {4: False, 6: True}),
        )
    ),
    (
        *("AirflowDagFilesBroken", "airflow_dag_processing_import_errors", {}, "0x20 1x20"),
        *({}, {29: False, 32: True}),
    ),
    # A counter is not there before it counts for the first time.
    ("AirflowRunFailed", *RUNS, "_x20 1x40", {"dag_id": "a_dag"}, {19: False, 22: True, 50: False}),
    ("AirflowRunFailed", *RUNS, "1x20 2x40", {"dag_id": "a_dag"}, {19: False, 23: True, 50: False}),
    (
        *("AirflowTasksWithoutSlot", "airflow_scheduler_tasks_starving", {}, "0x20 3x80"),
        *({}, {79: False, 83: True}),
    ),
    *(
        ("AirflowTasksLost", metric, LOST, "_x20 1x40", {"dag_id": "a_dag"}, {19: False, 22: True})
        for metric in (
            "airflow_zombies_killed",
            "airflow_task_instances_without_heartbeats_killed",
        )
    ),
    # Promoted at the epoch, at which the clock of these tests begins.
    ("MlPipelinesModelOld", "ml_pipelines_result", MODEL, "0x60", {}, {14: False, 16: True}),
    (
        *("MlPipelinesDrift", "ml_pipelines_result", DRIFT, "0.2x20 0.3x20"),
        *({"figure": "drift.psi_words"}, {19: False, 22: True}),
    ),
]
QUARTER_OF_AN_HOUR = 0.0104  # days


@pytest.fixture(scope="module")
def manifests():
    return metered()


def series(metric, labels):
    return f"{metric}{{{','.join(f'{key}={text!r}' for key, text in labels.items())}}}"


def promtool(*words):
    ensure_packages("tests of metrics", ["prometheus"])
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def schemas():
    """Kind -> schema, by the Prometheus Operator's own definitions."""
    found = {}
    for name in ("servicemonitors", "prometheusrules"):
        definition = yaml.load(operator_crd(name).read_text(), yaml.CSafeLoader)["spec"]
        (version,) = [one for one in definition["versions"] if one["name"] == "v1"]
        found[definition["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema):
    """As the API server has it with strict validation: what a schema does not name is refused."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    more = {"additionalProperties": False} if "properties" in schema else {}
    if isinstance(pattern := schema.get("pattern"), str):
        # Go takes a flag anywhere, Python at the beginning.
        schema = schema | {"pattern": re.sub(r"(.+)(\(\?i\))", r"\2\1", pattern)}
    return more | {key: closed(one) for key, one in schema.items()}


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PrometheusRule"])
def test_objects_are_valid_for_the_prometheus_operator(manifests, schemas, kind):
    (found,) = manifests.of(kind)
    schema = schemas[kind]
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(found, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found | {"spec": found["spec"] | {"endpoint": []}}, schema)


def test_the_monitor_finds_the_exporter(manifests):
    (monitor,) = manifests.of("ServiceMonitor")
    service = manifests.one("Service", JOB["job"])
    chosen = monitor["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert ports[endpoint["port"]] == 9102


def test_labels_by_which_they_are_found_are_values():
    own = {"labels": {"release": "prometheus"}}
    found = metered({"metrics": {"serviceMonitor": own, "rules": own, "dashboard": own}})
    for kind, name in (
        ("ServiceMonitor", "ml-pipelines"),
        ("PrometheusRule", "ml-pipelines"),
        ("ConfigMap", "ml-pipelines-dashboard"),
    ):
        assert found.one(kind, name)["metadata"]["labels"]["release"] == "prometheus"


def test_all_of_it_is_off_by_default():
    kinds = {"ServiceMonitor", "PrometheusRule"}
    for manifests in (render(), rendered("production")):
        assert not kinds & {kind for kind, _ in manifests.names()}
        assert ("ConfigMap", "ml-pipelines-dashboard") not in manifests.names()


def test_figures_without_an_exporter_are_refused():
    with pytest.raises(HelmError) as refused:
        metered({"airflow": {"statsd": {"enabled": False}}})
    for part in ("serviceMonitor", "rules", "dashboard"):
        assert f"metrics.{part}.enabled: airflow.statsd.enabled is false" in str(refused.value)


def test_rules_that_are_not_wanted_are_left_out():
    values = {"metrics": {"rules": {"modelMaxAgeDays": 0, "driftAbove": 0}}}
    no_triggerer = {"airflow": {"triggerer": {"enabled": False}}}
    names = {rule["alert"] for rule in rules(metered(values, no_triggerer))["groups"][0]["rules"]}
    assert {name for name, *_ in ALERTS} - names == {
        "AirflowTriggererSilent",
        "MlPipelinesModelOld",
        "MlPipelinesDrift",
    }


def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    told = rules(metered({"metrics": {"rules": {"modelMaxAgeDays": QUARTER_OF_AN_HOUR}}}))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(told))
    promtool("check", "rules", tmp_path / "rules.yaml")
    severities = {}
    for rule in told["groups"][0]["rules"]:
        severities[rule["alert"]] = rule["labels"]
        del rule["annotations"]
    assert severities.keys() == {name for name, *_ in ALERTS}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(told))
    tests = []
    for name, metric, labels, values, of_alert, when in ALERTS:
        expected = {"exp_labels": severities[name] | of_alert}
        # Another release of the same cluster is none of ours.
        given = {series(metric, {**JOB, "namespace": "other"} | labels): "1+1x100"}
        given |= {series(metric, JOB | labels): values} if values else {}
        at = [
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": [expected] * fires}
            for minute, fires in when.items()
        ]
        inputs = [{"series": one, "values": each} for one, each in given.items()]
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": at})
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(file))
    promtool("test", "rules", tmp_path / "tests.yaml")


@pytest.fixture(scope="module")
def shown(manifests):
    return dashboard(manifests.one("ConfigMap", "ml-pipelines-dashboard"))


def test_the_dashboard_has_no_panel_without_a_query(shown):
    found = panels(shown)
    assert len(found) == 12
    for queries in found.values():
        for query in queries.values():
            assert "RELEASE" not in query
            assert 'namespace="ml-pipelines",job="ml-pipelines-statsd"' in query


def test_the_picture_in_the_docs_is_of_these_panels(shown):
    """Else `make test-production` draws it anew."""
    text = picture_text(shown).encode()
    # A PNG keeps texts as they are.
    assert text in (ROOT / "docs" / "pictures" / "dashboard.png").read_bytes()


def test_ids_are_labels_on_both_airflows():
    for environment in ("local", f"local {AIRFLOW_3}"):
        found = metered(environment=environment)
        config = found.one("ConfigMap", "ml-pipelines-config")["data"]["airflow.cfg"]
        assert "statsd_influxdb_enabled = True" in config
        assert ("legacy_names_on = False" in config) is (AIRFLOW_3 in environment)
        assert "said_twice" in mappings(found)
