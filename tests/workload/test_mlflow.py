"""The MLflow registry against a real MLflow server on this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from classic_example.errors import WorkloadError
from classic_example.gate import gate, promote, rollback
from classic_example.registry.base import ModelRef, load_from_registry, upload_to_registry
from classic_example.registry.mlflow_registry import MlflowRegistry
from workload_helpers import (
    SERVER_VOLUME,
    Cli,
    Ended,
    environment,
    everything_below,
    fill,
    named_sentences,
    relabelled,
    sentences,
)

LIMIT = 30
# On a volume of its own: what is freed there, and what happens when it is full, can be seen.
ARTIFACTS = SERVER_VOLUME / "artifacts"
ROOT = Path(__file__).parents[2]
JANITOR, DOCS = ROOT / "charts" / "ml-pipelines" / "files" / "janitor.py", ROOT / "docs"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an MLflow server as the chart does; yield its address."""
    directory = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{directory}/mlflow.db"),
        *("--artifacts-destination", str(ARTIFACTS)),
        *("--allowed-hosts", f"127.0.0.1:{port}"),
    ]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment({"MLFLOW_DISABLE_TELEMETRY": "true"}),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{address}/health"):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(ARTIFACTS, ignore_errors=True)


@pytest.fixture(scope="module")
def client(server: str):
    import mlflow

    return mlflow.MlflowClient(server, server)


def variables(address: str, **more: str) -> dict[str, str]:
    return {"REGISTRY": "mlflow", "MLFLOW_TRACKING_URI": address, **more}


@pytest.fixture(scope="module")
def upload(cli: Cli, server: str, trained: tuple[Ended, Path]) -> Cli:
    """Upload the trained model from a run, under a name."""

    def upload(name: str, run_id: str, experiment: str, **more: str) -> Ended:
        where = {"MLFLOW_EXPERIMENT_NAME": experiment, "ML_PIPELINES_RUN_ID": run_id}
        image = {"ML_PIPELINES_TRAINING_IMAGE_DIGEST": "sha256:1a"}
        env = variables(server, **where, **image, **more)
        return cli("upload-to-registry", name, trained[1], env=env)

    return upload


@pytest.fixture(scope="module")
def load(cli: Cli, server: str) -> Cli:
    """Load a model by its reference into a directory."""
    return lambda reference, target, **more: cli(
        "load-from-registry", reference, target, env=variables(server, **more)
    )


@pytest.fixture(scope="module")
def uploaded(upload: Cli) -> list[Ended]:
    """Upload the same model twice, from two runs."""
    ended = [upload("airflow-pipeline", run_id, "tests") for run_id in ("run1", "run2")]
    for one in ended:
        assert one.status == 0, one.output
    return ended


def run_of(url: str) -> str:
    """The run whose page has this address."""
    return url.rpartition("/runs/")[2].partition("?")[0]


def test_each_upload_is_a_new_version(uploaded: list[Ended], server: str):
    assert [ended.result["version"] for ended in uploaded] == ["v1", "v2"]
    second = uploaded[1].result
    assert second["registry"] == "mlflow"
    assert second["name"] == "airflow-pipeline"
    assert second["uri"] == "models:/airflow-pipeline/2"
    assert second["run_url"].startswith(f"{server}/#/experiments/")
    assert second["note"] == "airflow-pipeline v2 in mlflow"


def test_pages_say_what_inference_loads_and_lead_back_to_airflow(
    uploaded: list[Ended], upload: Cli, client
):
    assert "the alias champion" in client.get_registered_model("airflow-pipeline").description
    client.create_registered_model("ours", description="by ann")
    page = "http://localhost:8080/dags/{dag_id}/grid?dag_run_id={run_id}"
    ended = upload("ours", "a+b", "pages", ML_PIPELINES_RUN_PAGE=page)
    assert ended.result["version"] == "v1"
    assert client.get_registered_model("ours").description == "by ann"
    version = client.get_model_version("ours", "1")
    link = "[training_dag, a+b](http://localhost:8080/dags/training_dag/grid?dag_run_id=a%2Bb)"
    assert version.description.endswith(f"; {link}")
    run = client.get_run(version.run_id)
    assert run.data.tags["mlflow.note.content"] == version.description


def test_upload_that_is_repeated_by_the_same_run_is_the_same_version(
    uploaded: list[Ended], upload: Cli, client
):
    before = client.search_model_versions("name='airflow-pipeline'")
    assert upload("airflow-pipeline", "run1", "tests").result == uploaded[0].result
    assert len(client.search_model_versions("name='airflow-pipeline'")) == len(before) == 2


def test_run_holds_metrics_curve_params_plots_and_files(
    uploaded: list[Ended], client, trained: tuple[Ended, Path]
):
    run = client.get_run(run_of(uploaded[1].result["run_url"]))
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "tests"
    metrics = json.loads((trained[1] / "metrics.json").read_text())
    for name, value in metrics.items():
        assert run.data.metrics[name] == pytest.approx(value), name
    curve = client.get_metric_history(run.info.run_id, "curve_loss")
    assert [point.step for point in curve] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert run.data.params["learning_rate"] == "0.005"
    plots = {one.path for one in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {"plots/confusion_matrix.png", "plots/training_curve.png"}


def test_model_is_one_that_mlflow_can_load_and_show(uploaded: list[Ended], server: str, client):
    import mlflow
    import torch
    import transformers

    mlflow.set_tracking_uri(server)
    version = client.get_model_version("airflow-pipeline", "2")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    run = client.get_run(version.run_id)
    assert model.source_run_id == run.info.run_id
    assert {one.key: one.value for one in model.metrics}["accuracy"] == run.data.metrics["accuracy"]
    info = mlflow.models.get_model_info(version.source)
    assert set(info.flavors) == {"python_function", "transformers"}
    assert info.signature.inputs.input_types() == [mlflow.types.DataType.string]
    assert info.signature.outputs.input_names() == ["label", "score"]
    assert info.saved_input_example_info
    path = Path(mlflow.artifacts.download_artifacts(version.source), "requirements.txt")
    requirements = path.read_text().splitlines()
    pinned = {one.__version__.partition("+")[0] for one in (torch, transformers)}
    assert {one.partition("==")[2] for one in requirements} == {*pinned, mlflow.__version__}
    # Else the page of the experiment opens on traces of language models.
    tags = client.get_experiment(run.info.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_model_loads_elsewhere_as_the_page_says(
    uploaded: list[Ended], client, server: str, trained: tuple[Ended, Path], tmp_path: Path
):
    client.set_registered_model_alias("airflow-pipeline", "champion", "1")
    page = (DOCS / "operations.md").read_text()
    section = page.partition("\n## Load a registered model elsewhere\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    checks = """
import importlib.util, json
assert importlib.util.find_spec("classic_example") is None
rows = json.loads(ROWS)
table = model.predict([row[0] for row in rows])
assert list(table["label"]) == [one["label"] for one in classify([row[0] for row in rows])]
right = sum(row[1] == (label == "positive") for row, label in zip(rows, table["label"]))
assert right / len(rows) > 0.9, right
assert len(model.predict(pandas.DataFrame({"text": ["warm " * 500]}))) == 1
"""
    rows = json.dumps(sentences(20, offset=700))
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(["import pandas", *blocks, f"ROWS = {rows!r}", checks])],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": server},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "positive" in ended.stdout


def test_version_and_run_say_what_made_the_model(uploaded: list[Ended], client):
    version = client.get_model_version("airflow-pipeline", "2")
    # The upload's own run counts, not the one that an older lineage file names.
    assert version.tags["run_id"] == "run2"
    assert version.tags["dag_id"] == "training_dag"
    assert version.tags["dags_commit"] == "c0ffee"
    assert version.tags["image"] == "registry.example/trainer:1"
    assert version.tags["image_digest"] == "sha256:1a"
    assert version.tags["parameters"] == '{"max_steps": 40}'
    assert len(version.tags["data_sha256"]) == len(version.tags["model_sha256"]) == 64
    assert re.fullmatch(
        r"held-out accuracy [01]\.\d{4} \(baseline [01]\.\d{4}\), trained on files .*val\.csv",
        version.description,
    )
    run = client.get_run(version.run_id)
    assert version.tags.items() <= run.data.tags.items()


@pytest.mark.parametrize(
    ("alias", "version"), [("latest", "v2"), ("v1", "v1"), ("1", "v1"), ("champion", "v1")]
)
def test_model_comes_back_as_it_was(
    uploaded: list[Ended],
    client,
    load: Cli,
    trained: tuple[Ended, Path],
    tmp_path: Path,
    server: str,
    alias: str,
    version: str,
):
    client.set_registered_model_alias("airflow-pipeline", "champion", "1")
    target = tmp_path / "results"
    ended = load(f"airflow-pipeline:{alias}", target)
    assert ended.result == {
        "registry": "mlflow",
        "name": "airflow-pipeline",
        "version": version,
        "version_url": f"{server}/#/models/airflow-pipeline/versions/{version[1:]}"
        "?workflowType=machine_learning",
        "path": str(target),
        "accuracy": trained[0].result["accuracy"],
        "note": f"airflow-pipeline {version}",
    }
    assert everything_below(target) == everything_below(trained[1]) | {"registry.json"}
    for path in trained[1].iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name
    mark = json.loads((target / "registry.json").read_text())
    assert (mark["name"], mark["version"]) == ("airflow-pipeline", version)
    assert mark["metrics"]["accuracy"] == trained[0].result["accuracy"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing:latest", "MLflow has no model 'nothing'; models there: airflow-pipeline"),
        (
            "airflow-pipeline:v9",
            "has no version or alias 'v9'; there are: champion, latest, v2, v1",
        ),
        ("airflow-pipeline:best", "has no version or alias 'best'; there are: champion, latest"),
    ],
)
def test_unknown_model_or_alias_lists_what_exists(
    uploaded: list[Ended], client, load: Cli, tmp_path: Path, reference: str, message: str
):
    client.set_registered_model_alias("airflow-pipeline", "champion", "1")
    ended = load(reference, tmp_path / "results")
    assert message in ended.error
    assert ended.seconds < LIMIT
    assert list(tmp_path.iterdir()) == []


def test_server_that_is_gone_is_reported_in_seconds(
    cli: Cli, trained: tuple[Ended, Path], tmp_path: Path
):
    address = f"http://127.0.0.1:{free_port()}"
    for arguments in (
        ("upload-to-registry", "m", trained[1]),
        ("load-from-registry", "m:latest", tmp_path / "results"),
    ):
        ended = cli(*arguments, env=variables(address))
        assert f"MLflow at {address}: " in ended.error
        assert "failed (Connection refused); check MLFLOW_TRACKING_URI" in ended.error
        assert ended.seconds < LIMIT
    assert list(tmp_path.iterdir()) == []


def test_server_that_hangs_is_given_up(cli: Cli, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://user:hidden@127.0.0.1:{listener.getsockname()[1]}"
        ended = cli("load-from-registry", "m:latest", tmp_path / "r", env=variables(address))
    assert "MLflow at http://***@127.0.0.1" in ended.error
    assert "hidden" not in ended.output
    assert ended.seconds < LIMIT


def test_refused_host_name_is_explained(cli: Cli, server: str, tmp_path: Path):
    # The server answers 403 to a Host header that --allowed-hosts does not name.
    address = server.replace("127.0.0.1", "localhost")
    ended = cli("load-from-registry", "m:latest", tmp_path / "r", env=variables(address))
    assert "failed with error code 403" in ended.error
    assert "--allowed-hosts" in ended.error


def test_upload_that_breaks_off_registers_nothing(
    uploaded: list[Ended],
    client,
    server: str,
    trained: tuple[Ended, Path],
    monkeypatch: pytest.MonkeyPatch,
):
    from mlflow.exceptions import MlflowException

    def break_off(self, model_id: str, path: str) -> None:
        raise MlflowException("the volume is full")

    monkeypatch.setattr("mlflow.MlflowClient.log_model_artifacts", break_off)
    with pytest.raises(WorkloadError, match=r"upload failed \(the volume is full\)"):
        upload_to_registry(MlflowRegistry(server, "broken"), "airflow-pipeline", trained[1])
    experiment = client.get_experiment_by_name("broken")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]
    versions = client.search_model_versions("name='airflow-pipeline'")
    assert {version.version for version in versions} == {"1", "2"}


# The protocol that other commands use


def registry(server: str, experiment: str = "protocol") -> MlflowRegistry:
    return MlflowRegistry(server, experiment)


def test_promotion_moves_the_alias_and_leaves_its_reason(uploaded: list[Ended], server: str):
    models = registry(server)
    for version in ("v1", "v2"):
        ref = ModelRef.parse(f"airflow-pipeline:{version}")
        models.mark(ref, {"promoted_by": "somebody", "reason": f"of {version}"}, "promoted")
        found = models.find(ModelRef.parse("models:/airflow-pipeline@promoted"))
        assert (found["version"], found["uri"]) == (
            version,
            f"models:/airflow-pipeline/{version[1]}",
        )
        assert found["tags"]["reason"] == f"of {version}"
        assert found["tags"]["run_id"] == f"run{version[1]}"
    assert found["run_url"] == uploaded[1].result["run_url"]
    models.mark(ModelRef.parse("airflow-pipeline:v1"), {"reason": "held back"})
    assert models.find(ModelRef.parse("airflow-pipeline:v1"))["tags"]["reason"] == "held back"
    assert models.find(ModelRef.parse("airflow-pipeline:promoted"))["version"] == "v2"
    with pytest.raises(WorkloadError, match=r"there are: .*promoted, v2, v1"):
        models.mark(ModelRef.parse("airflow-pipeline:v9"), {"reason": "none"}, "promoted")
    assert models.find(ModelRef.parse("airflow-pipeline:promoted"))["tags"]["reason"] == "of v2"


def test_training_is_shown_while_it_goes_on_and_the_upload_goes_on_in_its_run(
    server: str, client, cli: Cli, trained: tuple[Ended, Path], tmp_path: Path
):
    models = registry(server, "live")
    params, tags = {"max_steps": 2, "none": None}, {"dag_id": "training_dag", "run_id": "live1"}
    run_id = models.track(params, tags)
    times = [time.time()]
    for step in (1, 2):
        models.log(run_id, step, {"loss": 1 / step})
        times.append(time.time())
    assert client.get_run(run_id).info.status == "RUNNING"
    assert run_of(models.run_url(run_id)) == run_id
    points = client.get_metric_history(run_id, "curve_loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]
    for point, begin, end in zip(points, times, times[1:], strict=False):
        assert int(begin * 1000) <= point.timestamp <= end * 1000
    # The next try of a training that was killed, and another training of the same run.
    for _ in range(2):
        assert models.track(params, tags) == run_id
        assert client.get_run(run_id).info.status == "RUNNING"
        models.finish(run_id, "KILLED")
        assert client.get_run(run_id).info.status == "KILLED"
    other = models.track({**params, "max_steps": 3}, tags)
    assert other != run_id
    models.finish(other, "FAILED")
    assert client.get_run(other).info.status == "FAILED"
    models.finish(run_id, "FINISHED")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"max_steps": "2", "none": "None"}

    model = shutil.copytree(trained[1], tmp_path / "model")
    lineage = json.loads((model / "lineage.json").read_text())
    (model / "lineage.json").write_text(json.dumps({**lineage, "tracking_run": run_id}))
    env = variables(server, MLFLOW_EXPERIMENT_NAME="live", ML_PIPELINES_RUN_ID="live1")
    ended = cli("upload-to-registry", "live", model, env=env)
    assert run_of(ended.result["run_url"]) == run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == pytest.approx(trained[0].result["accuracy"], abs=1e-6)
    assert len(client.get_metric_history(run_id, "curve_loss")) == 2
    assert "tracking_run" not in client.get_model_version("live", "1").tags


def test_model_that_others_have_logged_is_loaded(
    server: str, load: Cli, trained: tuple[Ended, Path], tmp_path: Path
):
    import mlflow
    from transformers import pipeline

    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("others")
    mlflow.transformers.log_model(
        pipeline("text-classification", str(trained[1])),
        name="anything",
        registered_model_name="of-others",
        pip_requirements=[],
    )
    assert load("of-others", tmp_path / "m").result["version"] == "v1"
    there = {path.name for path in (tmp_path / "m").iterdir()}
    assert there >= {"config.json", "model.safetensors", "tokenizer.json", "registry.json"}
    assert "MLmodel" not in there
    weights = (trained[1] / "model.safetensors").read_bytes()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == weights


def test_weights_in_several_files_and_files_in_directories_come_back(
    server: str, cli: Cli, load: Cli, trained: tuple[Ended, Path], tmp_path: Path
):
    from transformers import AutoModelForSequenceClassification

    model = shutil.copytree(trained[1], tmp_path / "model")
    (model / "model.safetensors").unlink()
    weights = AutoModelForSequenceClassification.from_pretrained(trained[1])
    weights.save_pretrained(model, max_shard_size="100KB")
    assert len(list(model.glob("model-0*.safetensors"))) > 1
    (model / "onnx" / "deeper").mkdir(parents=True)
    (model / "onnx" / "deeper" / "model.onnx").write_text("x")
    ended = cli("upload-to-registry", "sharded", model, env=variables(server))
    assert ended.result["version"] == "v1"
    assert load("sharded", tmp_path / "m").status == 0
    assert everything_below(tmp_path / "m") == everything_below(model) | {"registry.json"}


def test_files_that_the_server_does_not_serve_need_a_client(
    server: str, client, cli: Cli, trained: tuple[Ended, Path]
):
    # As with --no-serve-artifacts.
    client.create_experiment("elsewhere", artifact_location="s3://bucket/models")
    env = variables(server, MLFLOW_EXPERIMENT_NAME="elsewhere")
    ended = cli("upload-to-registry", "elsewhere", trained[1], env=env)
    assert "(--no-serve-artifacts), and this image lacks" in ended.error
    assert "boto3" in ended.error


def test_limits_that_the_user_has_set_stay(server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    registry(server)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


# What the chart's janitor removes, and a volume of the server that is full


def used() -> int:
    """Return the bytes that are taken on the server's volume."""
    found = os.statvfs(SERVER_VOLUME)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def janitor(server: str, storage: Path, *, keep: int = 0, hours: float = 48) -> str:
    """Run the janitor on an empty storage and the model `kept`; return what it printed."""
    registry = [f"--mlflow-url={server}", "--model=kept", "--experiment=retention"]
    words = [
        f"--storage={storage}",
        f"--leftovers-max-age-hours={hours}",
        f"--keep-versions={keep}",
    ]
    command = [sys.executable, str(JANITOR), *registry, *words]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment({}))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_gate_and_people_move_the_champion(
    server: str,
    client,
    trained: tuple[Ended, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, offset in (("train", 0), ("gold", 400)):
        named_sentences(tmp_path / f"{name}.csv", offset)
    models, loaded = registry(server, "gate"), tmp_path / "loaded"
    good = relabelled(trained[1], tmp_path / "good", "negative", "positive")
    bad = relabelled(trained[1], tmp_path / "bad", "positive", "negative")
    # The words are easy for the baseline too.
    monkeypatch.setenv("GATE", '{"margin": -1}')
    with pytest.raises(WorkloadError, match="no model 'gated'"):
        load_from_registry(models, "gated:champion", loaded)
    for model in (good, bad):
        monkeypatch.setenv("ML_PIPELINES_RUN_ID", model.name)
        upload_to_registry(models, "gated", model)
    with pytest.raises(WorkloadError, match="`make promote V=N`"):
        load_from_registry(models, "gated:champion", loaded)

    def champion() -> dict[str, str]:
        return client.get_model_version_by_alias("gated", "champion").tags

    assert gate(models, "gated:v1", good, tmp_path)["decision"] == "promoted"
    assert champion()["gate_accuracy"].startswith("1.0000 ")
    refused = gate(models, "gated:v2", bad, tmp_path)
    assert (refused["decision"], refused["champion_version"]) == ("refused", "v1")
    assert client.get_model_version("gated", "2").tags["gate_reason"] == refused["reason"]
    assert champion()["run_id"] == "good"

    promote(models, "gated:v2", "", "ann", "a try")
    audit = {"promoted_over": "v1", "promoted_by": "ann", "run_id": "bad"}
    assert champion().items() >= audit.items()
    back = rollback(models, "gated", "", "", "")
    assert (back["version"], back["before"]) == ("v1", "v2")
    assert champion()["promotion_reason"] == "rollback from v2"
    assert load_from_registry(models, "gated:champion", loaded)["version"] == "v1"


@pytest.fixture(scope="module")
def kept(server: str, client, trained: tuple[Ended, Path]) -> list[str]:
    """Upload a model three times, name the first version, and return the runs."""
    runs = []
    for number in range(3):
        with pytest.MonkeyPatch.context() as patch:
            # A run registers a model once.
            patch.setenv("ML_PIPELINES_RUN_ID", f"kept{number}")
            result = upload_to_registry(registry(server, "retention"), "kept", trained[1])
        runs.append(run_of(result["run_url"]))
    client.set_registered_model_alias("kept", "champion", "1")
    return runs


def test_janitor_frees_the_space_of_versions_that_are_too_many(
    kept: list[str], load: Cli, server: str, client, trained: tuple[Ended, Path], tmp_path: Path
):
    before = used()
    assert "0 removed, 0 bytes" in janitor(server, tmp_path)
    assert used() == before
    printed = janitor(server, tmp_path, keep=1)
    assert "removed kept version 2 (0 bytes)" in printed
    told = re.search(rf"removed models of MLflow run {kept[1]} \(([\d,]+) bytes\)", printed)
    size = int(told[1].replace(",", ""))
    assert before - used() >= size >= sum(path.stat().st_size for path in trained[1].iterdir())
    experiment = client.get_experiment_by_name("retention").experiment_id
    models = client.search_logged_models([experiment])
    assert {model.source_run_id for model in models} == {kept[0], kept[2]}
    assert {one.version for one in client.search_model_versions("name='kept'")} == {"1", "3"}
    for reference in ("kept:latest", "kept:champion"):
        assert load(reference, tmp_path / "m").result["name"] == "kept"
    # What compares it with others stays.
    run = client.get_run(kept[1])
    assert run.data.metrics["accuracy"] == trained[0].result["accuracy"]
    assert run.data.tags["ml_pipelines.model_files"] == "deleted by the janitor"
    assert [one.path for one in client.list_artifacts(kept[1])] == ["plots"]
    assert "0 removed, 0 bytes" in janitor(server, tmp_path, keep=1)


def test_janitor_removes_what_a_broken_upload_has_left(
    kept: list[str], server: str, client, trained: tuple[Ended, Path], tmp_path: Path
):
    experiment = client.get_experiment_by_name("retention").experiment_id
    run_id = client.create_run(experiment, tags={"model_name": "kept"}).info.run_id
    model = client.create_logged_model(experiment, source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(trained[1]))
    before = used()
    assert "0 removed, 0 bytes" in janitor(server, tmp_path)
    printed = janitor(server, tmp_path, hours=1e-6)
    assert f"models of MLflow run {run_id}" in printed
    assert "1 removed" in printed
    assert before - used() >= (trained[1] / "model.safetensors").stat().st_size
    assert client.get_run(run_id).info.status == "KILLED"
    assert "0 removed, 0 bytes" in janitor(server, tmp_path, hours=1e-6)


def test_full_volume_of_the_server_fails_the_upload_and_no_version(
    kept: list[str], upload: Cli, load: Cli, client, tmp_path: Path
):
    versions = {one.version for one in client.search_model_versions("name='kept'")}
    fill(SERVER_VOLUME, free=1_000_000)
    try:
        ended = upload("kept", "full", "retention")
    finally:
        (SERVER_VOLUME / "filler").unlink()
    assert "upload failed" in ended.error
    assert "is the volume of the server full?" in ended.error
    assert {one.version for one in client.search_model_versions("name='kept'")} == versions
    assert load("kept:latest", tmp_path / "m").result["name"] == "kept"


def test_model_that_does_not_fit_is_not_fetched(
    kept: list[str], load: Cli, trained: tuple[Ended, Path]
):
    fill(SERVER_VOLUME, free=2_000_000)
    try:
        ended = load("kept:latest", SERVER_VOLUME / "m", MIN_FREE_BYTES="0")
    finally:
        (SERVER_VOLUME / "filler").unlink()
    assert f"not enough space on the volume of {SERVER_VOLUME}: " in ended.error
    needed = int(re.search(r" ([\d,]+) are needed", ended.error)[1].replace(",", ""))
    assert needed >= sum(path.stat().st_size for path in trained[1].iterdir())
    assert [path.name for path in SERVER_VOLUME.iterdir()] == ["artifacts"]


def test_volume_that_fills_up_while_a_model_is_fetched_is_named(
    kept: list[str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from classic_example.errors import WorkloadError
    from classic_example.registry import base, mlflow_registry

    for module in (base, mlflow_registry):
        monkeypatch.setattr(module, "require_space", lambda sizes: None)
    target = SERVER_VOLUME / "m"
    fill(SERVER_VOLUME, free=2_000_000)
    try:
        with pytest.raises(WorkloadError, match=f"cannot write {target}: .*No space left") as error:
            base.load_from_registry(mlflow_registry.MlflowRegistry(server, "x"), "kept", target)
    finally:
        (SERVER_VOLUME / "filler").unlink()
    assert "(storage.size)" in str(error.value)
    assert [path.name for path in SERVER_VOLUME.iterdir()] == ["artifacts"]
