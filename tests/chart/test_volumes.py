"""The Jobs that bind the claims at the install, and try whether the pods can write there."""

import re

import check_volume
import pytest

from mlctl.base.paths import CHART
from tests.helpers.helm import render, rendered


def checks(manifests):
    """(namespace, claim) -> spec of the pod."""
    return {
        (job["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"]): pod
        for job in manifests.of("Job")
        for pod in [job["spec"]["template"]["spec"]]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }


@pytest.mark.parametrize("environment", ["local", "production"])
def test_every_claim_has_a_consumer_at_the_install(environment):
    """Else it stays Pending on a class that waits for one, and `helm --wait` with it."""
    manifests = rendered(environment)
    consumers = {
        (found["metadata"].get("namespace", "ml-pipelines"), claim["claimName"])
        for found in manifests.of("Deployment", "StatefulSet", "Job")
        for volume in found["spec"]["template"]["spec"].get("volumes") or []
        if (claim := volume.get("persistentVolumeClaim"))
    }
    claims = {
        (claim["metadata"].get("namespace", "ml-pipelines"), claim["metadata"]["name"])
        for claim in manifests.of("PersistentVolumeClaim")
        # One with a volume of its own is bound without.
        if "volumeName" not in claim["spec"]
    }
    assert claims - consumers == set()


def test_they_write_as_those_who_will():
    manifests = render({"pipelines": {"namespaces": ["team-b"]}}, environment="production")
    found = checks(manifests)
    tasks, airflow = (10001, 10001), (50000, 0)
    users = {
        where: (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"])
        for where, pod in found.items()
    }
    assert users == {
        ("ml-pipelines", "training-storage"): tasks,
        ("team-b", "training-storage"): tasks,
        ("ml-pipelines", "ml-pipelines-logs"): airflow,
    }
    context = manifests.settings()["pod"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["fsGroup"]) == tasks
    scheduler = manifests.one("Deployment", "ml-pipelines-scheduler")["spec"]["template"]["spec"]
    context = scheduler["securityContext"]
    assert (context["runAsUser"], context["fsGroup"]) == airflow


def test_tasks_write_in_a_directory_that_the_kubelet_makes():
    pod = checks(rendered("production"))["ml-pipelines", "training-storage"]
    (container,) = pod["containers"]
    paths = {mount["mountPath"]: mount.get("subPath") for mount in container["volumeMounts"]}
    assert paths == {"/volume": None, "/directory": "_check"}
    assert container["args"][1:] == ["/directory", "/volume"]


def test_logs_elsewhere_need_no_volume():
    off = {
        "logs": {"create": False},
        "airflow": {"logs": {"persistence": {"enabled": False, "existingClaim": ""}}},
    }
    assert set(checks(render(off, environment="production"))) == {
        ("ml-pipelines", "training-storage")
    }


def test_pods_that_outlive_the_release_can_be_found():
    """Those of tasks and of `helm test`: a claim stays as long as a pod that mounts it."""
    selector = r"delete pod --selector (\S+)=(\S+)"
    key, value = re.findall(selector, (CHART / "README.md").read_text())[0]
    manifests = rendered("production")
    for pod in (manifests.settings()["pod"], manifests.one("Pod", "ml-pipelines-test")):
        assert pod["metadata"]["labels"][key] == value


def test_nothing_is_left_behind(tmp_path, capsys):
    directory = tmp_path / "_check"
    directory.mkdir()
    check_volume.main(directory, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "can write on the volume, whose root belongs to" in capsys.readouterr().out


def test_a_volume_that_takes_nothing_is_described(tmp_path, monkeypatch):
    def refuse(*, prefix, dir):
        raise PermissionError(13, "Permission denied", dir)

    monkeypatch.setattr(check_volume.tempfile, "NamedTemporaryFile", refuse)
    directory = tmp_path / "_check"
    directory.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(SystemExit) as error:
        check_volume.main(directory, tmp_path)
    text = str(error.value)
    assert text.startswith("ERROR: Permission denied: the volume's root belongs to ")
    assert text.count("with mode 0755") == 2
    assert "must be able to write" in text
    # It has the mode of a root that is not mended yet: the next try must not find it.
    assert not directory.exists()
