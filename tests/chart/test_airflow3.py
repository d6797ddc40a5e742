"""values/airflow3.yaml: Airflow 3 in place of 2.9.3, on top of the file of any environment."""

import base64
from configparser import RawConfigParser

import pytest
import yaml

from mlctl.base.paths import ROOT, VALUES
from tests.chart.test_production import made, mentioned
from tests.helpers.helm import KEPT, HelmError, render, rendered
from tests.helpers.pages import blocks

LOCAL, PRODUCTION = "local airflow3", "production airflow3"
KEYS = {
    "AIRFLOW__API__SECRET_KEY": "webserver-secret-key",
    "AIRFLOW__API_AUTH__JWT_SECRET": "jwt-secret",
}
# Of airflow-core 3.3.2, airflow/_shared/configuration/parser.py: a name of before is read, with a
# warning, where the new one is not given.
RENAMED = {
    ("scheduler", "dag_dir_list_interval"): ("dag_processor", "refresh_interval"),
    ("webserver", "base_url"): ("api", "base_url"),
    ("webserver", "workers"): ("api", "workers"),
    ("triggerer", "default_capacity"): ("triggerer", "capacity"),
}
# Gone, and what does the same.
REPLACED = {
    ("scheduler", "scheduler_zombie_task_threshold"): (
        "scheduler",
        "task_instance_heartbeat_timeout",
    ),
    ("scheduler", "local_task_job_heartbeat_sec"): ("workers", "max_failed_heartbeats"),
}


def config(manifests):
    (found,) = [o for o in manifests.of("ConfigMap") if "airflow.cfg" in o["data"]]
    parser = RawConfigParser()
    parser.read_string(found["data"]["airflow.cfg"])
    return parser


def container(manifests, name):
    (found,) = [c for c in manifests.containers() if c.spec["name"] == name]
    return found.spec


def secret_keys(spec):
    return {
        one["name"]: one["valueFrom"]["secretKeyRef"]["key"]
        for one in spec["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }


def test_the_dag_processor_is_the_one_more_part():
    more = rendered(LOCAL).names() ^ rendered("local").names()
    jobs = {name for name in more if name[0] == "Job"}
    assert more - jobs == {
        ("Deployment", "ml-pipelines-dag-processor"),
        ("ServiceAccount", "ml-pipelines-airflow-dag-processor"),
        # In place of this.
        ("PersistentVolumeClaim", "ml-pipelines-dags"),
    }


@pytest.mark.parametrize("environment", [LOCAL, PRODUCTION])
def test_all_parts_run_it(environment):
    images = {
        c.spec["image"] for c in rendered(environment).containers() if "apache/" in c.spec["image"]
    }
    assert images == {"apache/airflow:3.3.2"}
    assert "airflow api-server" in container(rendered(environment), "webserver")["args"][-1]


def test_what_took_another_name_is_given_by_it():
    found = config(rendered(LOCAL))
    for old, new in (RENAMED | REPLACED).items():
        assert found.has_option(*old), f"{old} is gone: leave it out here too"
        assert found.has_option(*new)
    assert "FabAuthManager" in found["core"]["auth_manager"]


@pytest.mark.parametrize(
    ("address", "path", "host"),
    [
        ("/", "", "localhost"),
        ("https://flow.example.com", "", "flow.example.com"),
        ("https://example.com:8443/ml/", "/ml", "example.com"),
    ],
)
def test_the_api_server_is_found_under_the_releases_names(address, path, host):
    manifests = render(
        {"airflow": {"config": {"api": {"base_url": address}}}},
        environment=LOCAL,
        release="team-a",
        namespace="ml",
    )
    url = f"http://team-a-webserver.ml:8080{path}"
    assert config(manifests)["core"]["execution_api_server_url"] == f"{url}/execution/"
    manifests.one("Service", "team-a-webserver")
    probes = container(manifests, "webserver")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        assert probes[probe]["httpGet"]["path"] == f"{path}/api/v2/monitor/health"
        assert probes[probe]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": host}]
    tested = {one["name"]: one["value"] for one in container(manifests, "test")["env"][:2]}
    assert tested == {"AIRFLOW": "3", "AIRFLOW_URL": f"http://team-a-webserver:8080{path}"}


def test_the_keys_come_from_one_secret():
    manifests = rendered(PRODUCTION)
    for name in ("webserver", "scheduler", "dag-processor", "triggerer", "admin-user"):
        keys = secret_keys(container(manifests, name))
        assert keys.items() >= KEYS.items(), name
        assert "AIRFLOW__WEBSERVER__SECRET_KEY" not in keys, name


def test_the_page_makes_the_secret_of_both_keys():
    name = "ml-pipelines-webserver-secret-key"
    (block,) = [one.text for one in blocks("docs/airflow3.md", "sh") if "secret" in one.text]
    assert made(block) == {name: mentioned(rendered(PRODUCTION))[name]} == {name: {*KEYS.values()}}


def test_workers_get_neither_keys_nor_the_database():
    clones = {"airflow": {"dags": {"persistence": {"enabled": False}}}}
    before = render(clones, environment="local").worker()["spec"]
    ours = rendered(LOCAL).worker()["spec"]
    assert secret_keys(ours["containers"][0]) == {}
    # For the rest they are what they are on Airflow 2.
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" in secret_keys(before["containers"][0])
    for pod in (ours, before):
        del pod["containers"][0]["env"], pod["containers"][0]["image"]
    assert ours == before


def keys_of_api(**options):
    manifests = render(environment=LOCAL, **options)
    data = manifests.one("Secret", "ml-pipelines-webserver-secret-key")["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_the_key_of_tokens_is_drawn_and_kept():
    drawn = keys_of_api()
    # HS512 wants 64 bytes.
    assert len(drawn["jwt-secret"]) == 64
    assert drawn["jwt-secret"] != drawn["webserver-secret-key"]
    there = {**KEPT, "ml-pipelines-webserver-secret-key": drawn}
    assert keys_of_api(cluster=there) == drawn
    # From Airflow 2 there is the other one.
    assert keys_of_api(cluster=KEPT)["webserver-secret-key"] == "kept-webserver-key"
    two = rendered("local").one("Secret", "ml-pipelines-webserver-secret-key")
    assert two["data"].keys() == {"webserver-secret-key"}


def test_dags_reach_the_dag_processor_and_not_the_scheduler():
    names = {c.where for c in rendered(LOCAL).containers() if c.spec["name"] == "git-sync"}
    assert names == {
        "Deployment/ml-pipelines-dag-processor/git-sync",
        "Deployment/ml-pipelines-triggerer/git-sync",
    }


@pytest.mark.parametrize(
    ("name", "job"), [("triggerer", "Triggerer"), ("dag-processor", "DagProcessor")]
)
def test_probes_ask_the_database_and_start_no_airflow(name, job):
    command = container(rendered(LOCAL), name)["livenessProbe"]["exec"]["command"]
    assert command[:2] == ["python", "-c"]
    assert f"job_type = '{job}Job'" in command[2]
    compile(command[2], name, "exec")


def test_the_dag_processor_ends_pods_of_workers_that_died():
    for namespace in ("ml-pipelines", "default"):
        (binding,) = [
            o
            for o in rendered(LOCAL).of("RoleBinding")
            if (o["metadata"]["name"], o["metadata"]["namespace"])
            == ("ml-pipelines-pod-ender", namespace)
        ]
        accounts = [subject["name"] for subject in binding["subjects"]]
        assert accounts == ["ml-pipelines-airflow-dag-processor"]


OVERLAY = yaml.safe_load((VALUES / "airflow3.yaml").read_text())["airflow"]
MIXED = {
    "Airflow 3 without its file": (
        None,
        {"airflowVersion": "3.3.2", "defaultAirflowTag": "3.3.2"},
        "airflow.airflowVersion is 3.3.2: Airflow 3 needs values/airflow3.yaml",
    ),
    "its file without Airflow 3": (
        LOCAL,
        {"airflowVersion": "2.9.3", "defaultAirflowTag": "2.9.3"},
        "airflow.airflowVersion is 2.9.3, but values of values/airflow3.yaml are there",
    ),
    "its file with an image of 2": (
        LOCAL,
        {"defaultAirflowTag": "2.9.3"},
        "airflow.airflowVersion is 3.3.2 but the image's tag is 2.9.3",
    ),
    "the address by its old name": (
        LOCAL,
        {"config": {"webserver": {"base_url": "https://flow.example.com"}}},
        "not as there: airflow.config.webserver.base_url (people's address is",
    ),
    "variables of one's own in place of the keys": (
        LOCAL,
        {"extraEnv": "- {name: A, value: b}"},
        "not as there: airflow.extraEnv",
    ),
    "tasks for a triggerer, with an image that cannot": (
        LOCAL,
        {},
        "pipelines.launch: triggerer needs the image of images/airflow3",
    ),
    "tasks for a triggerer that is not there": (
        LOCAL,
        {"defaultAirflowRepository": "registry.test/airflow3", "triggerer": {"enabled": False}},
        "pipelines.launch: triggerer, but airflow.triggerer.enabled is false",
    ),
    "logs in a bucket, without the provider": (
        LOCAL,
        {
            "defaultAirflowRepository": "registry.test/ml-pipelines/airflow3",
            "config": {"logging": {"remote_logging": "True"}},
        },
        "the image registry.test/ml-pipelines/airflow3 has no provider",
    ),
}


@pytest.mark.parametrize(
    ("environment", "airflow", "launch"),
    [
        (LOCAL, {}, "triggerer"),
        (LOCAL, {"triggerer": {"enabled": False}}, "worker"),
        (LOCAL, {"defaultAirflowRepository": "apache/airflow"}, "worker"),
        (LOCAL, {"defaultAirflowRepository": "registry.test/own/airflow3"}, "worker"),
        ("local", {}, "worker"),
    ],
)
def test_the_triggerer_runs_tasks_where_the_projects_image_of_airflow_3_does(
    environment, airflow, launch
):
    image = {"defaultAirflowRepository": "registry.test/ml-pipelines/airflow3"}
    settings = render({"airflow": image | airflow}, environment=environment).settings()
    assert settings["launch"] == launch


def test_workers_do_not_wait_for_tasks_on_airflow_3():
    with pytest.raises(HelmError, match="workerIdleSeconds is for Airflow 2"):
        render({"pipelines": {"workerIdleSeconds": 3}}, environment=LOCAL)


@pytest.mark.parametrize("case", MIXED)
def test_mixed_up_versions_are_refused(case):
    environment, values, message = MIXED[case]
    pipelines = {"launch": "triggerer" if "triggerer" in case else "worker"}
    with pytest.raises(HelmError) as error:
        render({"airflow": values, "pipelines": pipelines}, environment=environment)
    assert message in str(error.value)
    assert str(error.value).count("\n- ") == 1, "one fault, one message"


def test_the_address_is_asked_for_by_its_new_name():
    with pytest.raises(HelmError) as error:
        render({"airflow": {"config": {"api": {"base_url": "/"}}}}, environment=PRODUCTION)
    assert "airflow.config.api.base_url: give the address" in str(error.value)


def test_the_version_is_the_images():
    label = f"org.opencontainers.image.version={OVERLAY['airflowVersion']}"
    assert label in (ROOT / "images" / "airflow3" / "Containerfile").read_text()
