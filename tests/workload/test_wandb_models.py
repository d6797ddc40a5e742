"""Models in W&B: registry and commands with the real SDK, against the stand-in of tests/helpers."""

import base64
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
import wandb_server
from classic_example.errors import WorkloadError
from classic_example.registry.base import ModelRef, load_from_registry, upload_to_registry
from classic_example.registry.wandb_registry import WandbRegistry
from wandb_server import TEAM, Run, Server
from workload_helpers import Cli, Ended, everything_below, write_model

KEY = "5ecre7" + "0123456789" * 3 + "abcd"
PROJECT = "tests"
MODEL = "airflow-pipeline"
PAGE = "http://airflow.example/dags/{dag_id}/grid?dag_run_id={run_id}"

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server for all tests; each has models of its own there."""
    with wandb_server.serve(KEY) as server:
        yield server
        assert server.unknown == []


@pytest.fixture(scope="module")
def registry(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbRegistry]:
    """A registry with one child for all tests, in a run of the pipeline that is called loader."""
    with pytest.MonkeyPatch.context() as patch:
        # The registry sets some more for its child; that ends here too.
        for name in ("ENTITY", "MODE", "SILENT", "ERROR_REPORTING"):
            patch.setenv(f"WANDB_{name}", "")
        patch.setenv("WANDB_BASE_URL", server.address)
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_PROJECT", PROJECT)
        patch.setenv("WANDB_REGISTRY", wandb_server.REGISTRY)
        patch.setenv("WANDB_DIR", str(tmp_path_factory.mktemp("wandb")))
        patch.setenv("ML_PIPELINES_RUN_ID", "loader")
        patch.setenv("ML_PIPELINES_RUN_PAGE", PAGE)
        patch.setenv("MIN_FREE_BYTES", "0")
        registry = WandbRegistry()
        registry.child.submit(int).result()  # It starts here, in this environment.
        yield registry
        for child in multiprocessing.active_children():
            child.kill()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two models that differ in one file, in a directory."""
    place = tmp_path_factory.mktemp("models")
    first, second = (write_model(place / name) for name in ("first", "second"))
    (second / "more").mkdir()
    (second / "more" / "notes.txt").write_text("notes\n")
    return [first, second]


@pytest.fixture(scope="module")
def uploaded(registry: WandbRegistry, models: list[Path]) -> list[dict]:
    """Upload both models under one name, from two runs; return the results."""
    results = []
    for number, model in enumerate(models, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ML_PIPELINES_RUN_ID", f"run{number}")
            results.append(upload_to_registry(registry, MODEL, model))
    return results


def files_with(text: str, directory: Path) -> set[str]:
    """Return the files below a directory that hold a text, plain or as basic-auth base64."""
    needles = [text.encode(), base64.b64encode(f"api:{text}".encode()).rstrip(b"=")]
    return {
        name
        for name in everything_below(directory)
        if any(needle in (directory / name).read_bytes() for needle in needles)
    }


@pytest.fixture
def run(cli: Cli, server: Server, tmp_path: Path) -> Command:
    """Run a command; it leaves no process, and the key in no output and in no file."""
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)

    def run(*arguments: object, key: str = KEY, **more: str) -> Ended:
        env = {
            "REGISTRY": "wandb",
            "WANDB_BASE_URL": server.address,
            "WANDB_API_KEY": key,
            "WANDB_PROJECT": PROJECT,
            "WANDB_DIR": str(home / "wandb"),
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            **more,
        }
        # It ends when nobody holds its output any more: the child and the SDK's helper do.
        ended = cli(*arguments, env=env)
        assert KEY not in ended.output
        assert base64.b64encode(f"api:{KEY}".encode()).decode() not in ended.output
        assert files_with(KEY, home) == set()
        return ended

    return run


def test_the_stand_in_speaks_for_the_sdk_of_the_image():
    assert version("wandb") == wandb_server.SDK_VERSION


def test_a_key_in_a_file_would_be_found(tmp_path: Path):
    (tmp_path / "clean").write_text("nothing")
    (tmp_path / "plain").write_text(f"machine x password {KEY}")
    header = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
    (tmp_path / "header").write_text(f"Authorization: {header}")
    assert files_with(KEY, tmp_path) == {"plain", "header"}


def test_commands_with_a_key_from_a_file_with_a_line_feed(
    run: Command, server: Server, models: list[Path], tmp_path: Path
):
    up = run("upload-to-registry", "m", models[0], key=f"{KEY}\n")
    assert (up.result["registry"], up.result["version"]) == ("wandb", "v0")
    down = run("load-from-registry", "m", tmp_path / "results", key=f"{KEY}\n")
    assert down.result["version"] == "v0"
    assert up.stderr == down.stderr == ""
    assert server.refused == 0


def run_of(server: Server, url: str) -> Run:
    """Return the run at an address."""
    return server.runs[TEAM, PROJECT, url.removeprefix(f"{server.address}/{TEAM}/{PROJECT}/runs/")]


def test_each_changed_model_is_a_new_version_with_all_its_files(
    uploaded: list[dict], server: Server, models: list[Path]
):
    assert [one["version"] for one in uploaded] == ["v0", "v1"]
    assert (uploaded[1]["registry"], uploaded[1]["name"]) == ("wandb", MODEL)
    assert uploaded[1]["uri"] == f"{TEAM}/{PROJECT}/{MODEL}:v1"
    versions = server.versions(MODEL)
    assert [one.aliases for one in versions] == [set(), {"latest"}]
    for artifact, model in zip(versions, models, strict=True):
        assert set(artifact.files) == everything_below(model)
        for name, stored in artifact.files.items():
            assert stored == (model / name).read_bytes(), name


def test_a_repeated_upload_is_the_same_version(
    uploaded: list[dict], registry: WandbRegistry, server: Server, models: list[Path]
):
    assert upload_to_registry(registry, MODEL, models[1]) == uploaded[1]
    assert len(server.versions(MODEL)) == 2


def test_run_and_version_tell_of_the_training(
    uploaded: list[dict], server: Server, models: list[Path]
):
    run = run_of(server, uploaded[0]["run_url"])
    assert uploaded[0]["version_url"].endswith(f"/artifacts/model/{MODEL}/v0")
    assert (run.job_type, run.state) == ("upload-model", "finished")
    assert run.about["displayName"] == "run1"
    assert "held-out accuracy" in run.about["notes"]
    metrics = json.loads((models[0] / "metrics.json").read_text())
    assert {name: run.summary[name] for name in metrics} == pytest.approx(metrics)
    curve = [point["curve/step"] for point in run.history if "curve/loss" in point]
    assert curve == [5, 10, 15]
    config = wandb_server.plain(run.config)
    assert config["learning_rate"] == 0.005
    for plot in ("confusion_matrix", "training_curve"):
        sent = run.files[run.summary[plot]["path"]]
        assert sent == (models[0] / f"{plot}.png").read_bytes()
    artifact = server.versions(MODEL)[0]
    assert artifact.run == run.name
    assert artifact.metadata["metrics"] == metrics
    weights = sha256((models[0] / "model.safetensors").read_bytes()).hexdigest()
    for known in (artifact.metadata, config):
        assert (known["dag_id"], known["run_id"]) == ("training_dag", "run1")
        assert (known["data_sha256"], known["model_sha256"]) == ("d" * 64, weights)


def test_the_model_comes_back_as_it_was(
    uploaded: list[dict],
    registry: WandbRegistry,
    server: Server,
    models: list[Path],
    tmp_path: Path,
):
    for alias, number in (("latest", 1), ("v0", 0), ("1", 1)):
        target, reference = tmp_path / alias, f"{MODEL}:{alias}"
        result = load_from_registry(registry, reference, target)
        assert result["version"] == f"v{number}"
        assert everything_below(target) == everything_below(models[number]) | {"registry.json"}
        for name in everything_below(models[number]):
            assert (target / name).read_bytes() == (models[number] / name).read_bytes(), name
        known = json.loads((target / "registry.json").read_text())
        assert known["uri"] == f"{TEAM}/{PROJECT}/{MODEL}:v{number}"
        assert known["run_url"] == uploaded[number]["run_url"]
        assert known["tags"]["run_id"] == f"run{number + 1}"
        load = list(server.runs.values())[-1]
        assert (load.job_type, load.state) == ("load-model", "finished")
        assert load.used == [f"{MODEL}:v{number}"]
        config = wandb_server.plain(load.config)
        assert (config["model"], config["run_id"]) == (reference, "loader")


def test_what_is_not_there_is_named_with_what_is(
    uploaded: list[dict], registry: WandbRegistry, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(WorkloadError) as error:
        registry.mark(ModelRef(MODEL, "v7"), {"a": "b"}, "champion")
    told = "has no version or alias 'v7'; there are: latest, v1, v0"
    assert str(error.value) == f"model {MODEL!r} in W&B {told}"
    with pytest.raises(WorkloadError) as error:
        registry.find(ModelRef("nobody"))
    told = f"W&B project {TEAM}/{PROJECT} has no model 'nobody'; models there: "
    assert str(error.value).startswith(told)
    assert MODEL in str(error.value).removeprefix(told).split(", ")
    monkeypatch.setattr(registry, "project", "other")
    with pytest.raises(WorkloadError) as error:
        registry.find(ModelRef(MODEL))
    told = f"W&B project {TEAM}/other has no model {MODEL!r}; models there: none"
    assert str(error.value).startswith(told)


def test_upload_to_a_wrong_entity_names_it(run: Command, models: list[Path]):
    error = run("upload-to-registry", "m", models[0], WANDB_ENTITY="nobody").error
    told = f"project nobody/{PROJECT}: upload failed: entity nobody not found during upsertBucket"
    assert error.endswith(told)


def test_promotion_moves_the_alias_and_links_the_version(
    registry: WandbRegistry,
    server: Server,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
):
    for model in models:
        upload_to_registry(registry, "promoted", model)
    first, second = server.versions("promoted")
    registry.mark(ModelRef("promoted", "v1"), {"promoted_by": "me"}, "champion")
    assert second.aliases == {"latest", "champion"}
    assert second.metadata["promoted_by"] == "me"
    assert second.links == {f"{wandb_server.REGISTRY}/promoted": ["champion"]}
    registry.mark(ModelRef("promoted", "v0"), {"promoted_by": "you"}, "champion")
    assert (first.aliases, second.aliases) == ({"champion"}, {"latest"})
    found = registry.find(ModelRef("promoted", "champion"))
    assert (found["version"], found["tags"]["promoted_by"]) == ("v0", "you")
    assert found["tags"]["data_sha256"] == "d" * 64
    registry.mark(ModelRef("promoted", "v1"), {"gate": "refused"})
    assert (second.metadata["gate"], second.metadata["promoted_by"]) == ("refused", "me")
    # A registry that is not there is noticed before the alias moves.
    monkeypatch.setattr(registry, "registry", "nowhere")
    with pytest.raises(WorkloadError, match="project wandb-registry-nowhere not found"):
        registry.mark(ModelRef("promoted", "v1"), {}, "champion")
    assert (first.aliases, second.aliases) == ({"champion"}, {"latest"})


def test_a_training_is_shown_while_it_goes_on_and_the_upload_goes_on_in_its_run(
    registry: WandbRegistry, server: Server, models: list[Path], tmp_path: Path
):
    tags = {"dag_id": "training_dag", "run_id": "run1"}
    killed = registry.track({"learning_rate": 1.0}, tags)
    about = {"displayName": "run1", "notes": f"[training_dag, run1]({PAGE.format_map(tags)})"}
    assert server.runs[TEAM, PROJECT, killed].about == about
    registry.log(killed, 1, {"loss": 3.0})
    run_id = registry.track({"learning_rate": 1.0}, tags)
    assert run_id == killed
    registry.log(run_id, 2, {"loss": 2.0})
    registry.finish(run_id, "FINISHED")
    run = server.runs[TEAM, PROJECT, run_id]
    assert (run.job_type, run.state) == ("train-model", "finished")
    assert wandb_server.plain(run.config)["learning_rate"] == 1.0
    model = shutil.copytree(models[0], tmp_path / "model")
    lineage = json.loads((model / "lineage.json").read_text())
    (model / "lineage.json").write_text(json.dumps(lineage | {"tracking_run": run_id}))
    assert run_of(server, upload_to_registry(registry, "tracked", model)["run_url"]) is run
    assert [one["curve/loss"] for one in run.history if "curve/loss" in one] == [3.0, 2.0]
    assert (run.state, server.versions("tracked")[0].run) == ("finished", run.name)
    assert "accuracy" in run.summary
    # The run of the pipeline is cleared and trains again: the version keeps its own run.
    again = registry.track({}, tags)
    registry.finish(again, "FAILED")
    assert server.runs[TEAM, PROJECT, again].state == "failed"
    assert again != run_id


def test_a_damaged_file_is_named_and_nothing_of_it_is_left(
    registry: WandbRegistry, server: Server, models: list[Path], tmp_path: Path
):
    upload_to_registry(registry, "damaged", models[0])
    files, target = server.versions("damaged")[0].files, tmp_path / "results"
    kept, files["tokenizer.json"] = files["tokenizer.json"], files["tokenizer.json"][::-1]
    with pytest.raises(WorkloadError, match=r"Digest mismatch for file: tokenizer\.json"):
        load_from_registry(registry, "damaged", target)
    assert list(tmp_path.iterdir()) == []
    files["tokenizer.json"] = kept
    assert load_from_registry(registry, "damaged", target)["version"] == "v0"


def test_room_is_asked_for_before_a_download(
    registry: WandbRegistry,
    server: Server,
    models: list[Path],
    small_volume: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    upload_to_registry(registry, "large", models[0])
    server.versions("large")[0].files["rest"] = bytes(shutil.disk_usage(small_volume).free)
    with pytest.raises(WorkloadError, match="not enough space on the volume of"):
        load_from_registry(registry, "large", small_volume / "results")
    assert list(small_volume.iterdir()) == []


def test_errors_for_a_while_cost_seconds_only(
    registry: WandbRegistry, server: Server, models: list[Path], tmp_path: Path
):
    for call in ("UpsertBucket", "CreateArtifact", "CommitArtifact", "upload", "UseArtifact"):
        server.fail(call, 503, times=1)
    upload_to_registry(registry, "tried", models[0])
    load_from_registry(registry, "tried", tmp_path / "results")
    assert everything_below(tmp_path / "results") == everything_below(models[0]) | {"registry.json"}


def test_an_upload_that_breaks_off_leaves_a_failed_run_and_no_version(
    registry: WandbRegistry, server: Server, models: list[Path]
):
    before = set(server.runs)
    server.fail("CommitArtifact", 403, times=1)
    with pytest.raises(WorkloadError, match=r"upload failed: .*error 403"):
        upload_to_registry(registry, "broken", models[0])
    (made,) = set(server.runs) - before
    assert server.runs[made].state == "failed"
    assert server.versions("broken") == []


@pytest.mark.parametrize(
    ("command", "call"), [("upload-to-registry", "upload"), ("load-from-registry", "download")]
)
def test_a_transfer_that_stalls_ends_at_the_deadline(
    run: Command,
    uploaded: list[dict],
    server: Server,
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    call: str,
):
    target = tmp_path / "results"
    monkeypatch.setattr(server, "faults", [])
    server.fail(call, "stall")
    source = {"upload-to-registry": models[0], "load-from-registry": target}[command]
    error = run(command, MODEL, source, WANDB_TIMEOUT_SECONDS="10").error
    assert f"W&B at {server.address} did not finish the {call} within 10 s" in error
    assert not target.exists()
