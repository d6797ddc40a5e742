"""Which images leave the node: those of no pod, no near revision and not of this checkout. Also
where tasks keep their files, and how much of a log is read."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phase
from mlctl.builder import build
from mlctl.clients.kube import Kube
from mlctl.release.release import Release
from mlctl.stack import LOG_BYTES, Stack, wanted_images

HELM = """#!{python}
import json, sys
words = sys.argv[1:]
if "history" in words:
    print(json.dumps({history}))
else:
    assert words[-5:-2] == ["get", "manifest", "ml-pipelines"], words
    print("image: localhost/ml-pipelines/airflow:" + words[-1])
    print("  settings.json: reference\\": \\"localhost/ml-pipelines/classic-example:" + words[-1])
"""


def image(name: str) -> str:
    return f"localhost/ml-pipelines/{name}"


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A release whose helm is played: revision -> status."""

    def make(revisions: dict[int, str]) -> Release:
        history = [{"revision": number, "status": status} for number, status in revisions.items()]
        script = tmp_path / "helm"
        script.write_text(HELM.format(python=sys.executable, history=history))
        script.chmod(0o755)
        monkeypatch.setenv("HELM", str(script))
        return Release(Kube(tmp_path / "kubeconfig", "ml-pipelines"), {}, "test")

    return make


class Cluster:
    """A node with some images."""

    def __init__(self, *names: str) -> None:
        self.there = {image(name) for name in names}

    def images(self) -> set[str]:
        return set(self.there)

    def remove_images(self, names: set[str]) -> None:
        assert names <= self.there
        self.there -= names


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stack on a node with images; pods run some, build/images.json names one."""
    lock = tmp_path / "images.json"
    entry = {"repository": image("airflow"), "tag": "9", "digest": "sha256:9", "layout": "/x"}
    lock.write_text(json.dumps({"airflow": entry}))
    monkeypatch.setattr(build, "IMAGES_LOCK", lock)

    def make(cluster: Cluster, *of_pods: str) -> Stack:
        made = Stack(cluster)
        pods = [{"spec": {"containers": [{"image": image(name)}]}} for name in of_pods]
        listing = SimpleNamespace(stdout=json.dumps({"items": pods}))
        made.kube = SimpleNamespace(run=lambda *words: listing)
        return made

    return make


@pytest.mark.parametrize(("major", "airflow"), [("2", "airflow"), ("3", "airflow3")])
def test_the_images_are_those_that_pods_run(monkeypatch, major: str, airflow: str) -> None:
    monkeypatch.setenv("AIRFLOW", major)
    beside = {"classic-example", "classic-example-environment", "git-sync", "postgres"}
    assert wanted_images() == {airflow} | beside


def test_newest_two_good_revisions_count(release) -> None:
    found = release({3: "superseded", 4: "superseded", 5: "failed", 6: "deployed"}).images()
    assert found == {
        image(f"{name}:{tag}") for name in ("airflow", "classic-example") for tag in (4, 6)
    }


def test_first_revision_counts_alone(release) -> None:
    assert release({1: "deployed"}).images() == {image("airflow:1"), image("classic-example:1")}


def test_helm_that_fails_is_an_error(release, monkeypatch: pytest.MonkeyPatch) -> None:
    one = release({})
    monkeypatch.setenv("HELM", "/bin/false")
    with pytest.raises(UserError, match=r"/bin/false .* history"):
        one.images()


def test_images_that_nothing_uses_leave_the_node(stack, release) -> None:
    cluster = Cluster(
        "airflow:1", "airflow:4", "airflow:6", "airflow:9", "git-sync:1", "postgres:1"
    )
    phase = Phase("release")
    made = stack(cluster, "postgres:1", "not-there:1")
    made.drop_old_images(release({4: "superseded", 6: "deployed"}), phase)
    assert cluster.there == {
        *(image(f"airflow:{tag}") for tag in (4, 6)),  # Revisions.
        image("airflow:9"),  # build/images.json.
        image("postgres:1"),  # A pod.
    }


def test_nobody_is_asked_while_the_node_has_the_current_images_only(stack) -> None:
    made = stack(Cluster("airflow:9"))
    made.kube = None
    made.drop_old_images(None, Phase("release"))
    assert made.cluster.there == {image("airflow:9")}


def test_claim_and_image_are_those_of_the_task_pods() -> None:
    stack = Stack(Cluster())
    stack.settings = json.loads((ROOT / "dags" / "ml_pipelines" / "document.json").read_text())
    assert stack.claim == "training-storage"
    assert stack.image == "ghcr.io/kyryl-opens-ml/classic-example:main"


class OnThisMachine(Kube):
    """Runs here what is meant for a container of the scheduler."""

    def command(self, *words: str) -> list[str]:
        assert words[:2] == ("exec", "deployment/ml-pipelines-scheduler")
        return ["env", f"AIRFLOW_HOME={self.kubeconfig}", *words[words.index("--") + 1 :]]


def test_of_a_long_log_the_end_is_read_and_what_the_scheduler_adds(tmp_path: Path) -> None:
    stack = Stack(Cluster())
    stack.kube = OnThisMachine(tmp_path, "ml-pipelines")
    directory = tmp_path / "logs" / "run_id=a+b 'c'"
    directory.mkdir(parents=True)
    with (directory / "attempt=1.log").open("w") as log:
        log.seek(
            1 << 40
        )  # A file of holes: reading all of it would take the memory of any machine.
        log.write("last line\n")
    (directory / "attempt=1.log.SchedulerJob.log").write_text("zombie\n")
    (directory / "attempt=10.log").write_text("another try\n")
    end = stack.end_of_log_file("run_id=a+b 'c'/attempt=1.log")
    assert end.endswith("last line\nzombie\n")
    assert len(end) == LOG_BYTES + len("zombie\n")
    assert stack.end_of_log_file("run_id=a+b 'c'/attempt=2.log") == ""


@pytest.mark.parametrize(
    ("deployments", "where"),
    [
        ([], "deployment/ml-pipelines-scheduler"),
        (["ml-pipelines-dag-processor"], "deployment/ml-pipelines-dag-processor"),
    ],
)
def test_dags_are_read_where_airflow_reads_them(deployments: list[str], where: str) -> None:
    class Asked(Kube):
        def get(self, kind: str, name: str) -> dict[str, str] | None:
            return {} if kind == "deployment" and name in deployments else None

        def run(self, *words: str, **_: object) -> SimpleNamespace:
            return SimpleNamespace(stdout=" ".join(words))

    stack = Stack(Cluster())
    stack.kube = Asked(Path("/x"), "ml-pipelines")
    assert stack.in_dag_processor("ls").startswith(f"exec {where} --container")
