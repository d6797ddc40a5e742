"""Values of the release: which files, and how the overlays are laid over each other."""

from pathlib import Path
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.base.paths import VALUES
from mlctl.base.progress import Phase
from mlctl.clients.kube import Kube
from mlctl.release import release as release_module
from mlctl.release.release import (
    Release,
    image_values,
    merge,
    project_images,
    values_files,
)
from tests.helpers.namespace import Namespace

IMAGES = {
    name: {"repository": f"localhost/ml-pipelines/{name}", "tag": f"1-{name}", "digest": "sha256:0"}
    for name in (
        "airflow",
        "airflow3",
        "classic-example",
        "classic-example-environment",
        "postgres",
        "git-sync",
        "pause",
    )
}


def test_merge_is_deep_and_the_later_wins() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    above = {"a": {"c": [3]}, "d": {"e": None}}
    assert merge(below, above) == {"a": {"b": 1, "c": [3]}, "d": {"e": None}}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_values_files_follow_the_variables(tmp_path: Path) -> None:
    assert values_files({}) == [VALUES / "local.yaml"]
    assert values_files({"ENV": ""}) == [VALUES / "local.yaml"]
    assert values_files({"ENV": "production"}) == [VALUES / "production.yaml"]
    own = tmp_path / "own.yaml"
    own.write_text("{}\n")
    assert values_files({"VALUES": str(own)}) == [VALUES / "local.yaml", own]


def test_airflow_3_goes_between_the_environment_and_ones_own_values(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("{}\n")
    three = values_files({"AIRFLOW": "3", "ENV": "production", "VALUES": str(own)})
    assert three == [VALUES / "production.yaml", VALUES / "airflow3.yaml", own]
    assert values_files({"AIRFLOW": "2"}) == values_files({"AIRFLOW": ""}) == values_files({})
    with pytest.raises(UserError, match="AIRFLOW=4 is not one of 2, 3"):
        values_files({"AIRFLOW": "4"})


@pytest.mark.parametrize("name", ["lokal", "airflow3"])
def test_unknown_values_files_are_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"ENV={name} is not one of local, production, staging"):
        values_files({"ENV": name})
    with pytest.raises(UserError, match=r"VALUES=nowhere\.yaml: no such file"):
        values_files({"VALUES": "nowhere.yaml"})


def test_every_image_of_the_lock_reaches_the_values() -> None:
    values = image_values(IMAGES)
    assert values["images"]["classicExample"]["tag"] == "1-classic-example"
    assert values["images"]["mlflow"]["tag"] == "1-classic-example-environment"
    assert values["images"]["postgres"]["repository"] == "localhost/ml-pipelines/postgres"
    assert values["airflow"]["defaultAirflowTag"] == "1-airflow"
    assert values["airflow"]["images"]["gitSync"]["tag"] == "1-git-sync"


def test_the_exporter_is_wanted_where_the_values_switch_it_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = IMAGES | {"statsd-exporter": IMAGES["git-sync"] | {"tag": "1-exporter"}}
    # Another command may have built it: that is not to change a release without it.
    assert image_values(built) == image_values(IMAGES)
    monkeypatch.setenv("VALUES", "values/parts/metrics.yaml")
    assert image_values(built)["airflow"]["images"]["statsd"]["tag"] == "1-exporter"


def test_the_image_of_airflow_is_the_one_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW", "3")
    assert image_values(IMAGES)["airflow"]["defaultAirflowTag"] == "1-airflow3"


def test_images_of_the_project_are_found_in_manifests() -> None:
    manifest = """
    image: "localhost/ml-pipelines/airflow:2.9.3-abc"
    image: localhost/ml-pipelines/git-sync:1-def
    settings.json: |-
      {"image": {"reference": "localhost/ml-pipelines/classic-example:1.0.0-123", "pullPolicy": 1}}
    image: ghcr.io/mlflow/mlflow:v3
    """
    assert project_images(manifest) == {
        "localhost/ml-pipelines/airflow:2.9.3-abc",
        "localhost/ml-pipelines/git-sync:1-def",
        "localhost/ml-pipelines/classic-example:1.0.0-123",
    }


def test_other_arguments_are_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else setting them back would find the release up to date, and change nothing."""
    monkeypatch.setenv("HELM", "/bin/helm")
    release = Release(Kube("config", "namespace"), {"a": 1}, "test")
    files = values_files({})
    assert release.inputs(files) == release.inputs(files)
    assert release.inputs(files, ("--set", "a=2")) != release.inputs(files)


def test_a_database_of_another_airflow_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "status": '{"info": {"status": "deployed"}, "version": 1}',
        "get values": '{"airflow": {"airflowVersion": "3.3.2"}}',
    }
    script = "".join(f"*'{words}'*) echo '{text}' ;;\n" for words, text in answers.items())
    helm = tmp_path / "helm"
    helm.write_text(f'#!/bin/sh\ncase "$*" in\n{script}*) exit 1 ;;\nesac\n')
    helm.chmod(0o755)
    monkeypatch.setenv("HELM", str(helm))
    release = Release(Namespace(), {}, "unit")
    release.kube.kubeconfig, release.kube.namespace = tmp_path / "config", "unit"
    release.overlay = tmp_path / "overlay.yaml"
    with pytest.raises(UserError, match=r"runs Airflow 3\.3\.2.*AIRFLOW=3 goes on with it"):
        release.deploy(Phase("release"))


def job(name: str, *, of_a_cron_job: bool = False, **status: int) -> dict[str, Any]:
    owners = {"ownerReferences": [{"kind": "CronJob"}]} if of_a_cron_job else {}
    return {"kind": "Job", "metadata": {"name": name, **owners}, "spec": {}, "status": status}


def test_a_release_is_ready_when_its_jobs_are_done() -> None:
    at_work = Release(Namespace(jobs=[job("setup", active=1)]), {}, "unit")
    with pytest.raises(UserError, match="after 0 s: not ready: job setup"):
        at_work.wait_ready(Phase("ready"), timeout=0)
    done = [job("setup", succeeded=1), job("janitor", of_a_cron_job=True, active=1)]
    Release(Namespace(jobs=done), {}, "unit").wait_ready(Phase("ready"), timeout=0)


def test_values_that_are_refused_are_told_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = "".join(f"- airflow.value{number}: set it\n" for number in range(20))
    helm = tmp_path / "helm"
    script = (
        "#!/bin/sh\necho warning >&2\nprintf 'Error: release: not found\\n\\n%s' \"$REFUSED\" >&2"
    )
    helm.write_text(f"{script}\nexit 1\n")
    helm.chmod(0o755)
    monkeypatch.setenv("HELM", str(helm))
    monkeypatch.setenv("REFUSED", refused)
    monkeypatch.setattr(release_module, "BUILD", tmp_path)
    namespace = Namespace()
    namespace.kubeconfig, namespace.namespace = tmp_path / "config", "unit"
    with pytest.raises(UserError) as error:
        Release(namespace, {}, "unit").deploy(Phase("release"))
    assert refused.strip() in str(error.value)
    assert "warning" not in str(error.value)
