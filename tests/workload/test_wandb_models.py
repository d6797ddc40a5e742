"""Models in W&B: the commands and the real SDK against the stand-in of tests/helpers."""

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
import wandb_server
from wandb_server import FORBIDDEN_TEAM, TEAM, Server
from workload_helpers import Cli, Ended, everything_below

LIMIT = 30
KEY = "5ecre7" + "0123456789" * 3 + "abcd"
OTHER_KEY = "0ther7" + "9876543210" * 3 + "dcba"
PROJECT = "tests"

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory where every file goes that the SDK may write."""
    directory = tmp_path_factory.mktemp("wandb-home")
    (directory / "tmp").mkdir()
    return directory


def files_with(text: str, directory: Path) -> set[str]:
    """Return the files below a directory that hold a text, plain or as basic-auth base64."""
    needles = [text.encode(), base64.b64encode(f"api:{text}".encode()).rstrip(b"=")]
    return {
        name
        for name in everything_below(directory)
        if any(needle in (directory / name).read_bytes() for needle in needles)
    }


@pytest.fixture(scope="module")
def run(cli: Cli, home: Path) -> Command:
    """Run a command against a server; the key must be in no output and in no file it leaves."""

    def run(server: Server, *arguments: object, key: str = KEY, **more: str) -> Ended:
        ended = cli(
            *arguments,
            env={
                "REGISTRY": "wandb",
                "WANDB_BASE_URL": server.address,
                "WANDB_API_KEY": key,
                "WANDB_PROJECT": PROJECT,
                "WANDB_DIR": str(home / "wandb"),
                "HOME": str(home),
                "TMPDIR": str(home / "tmp"),
                **more,
            },
        )
        secret = key.strip()
        assert secret not in ended.output
        assert base64.b64encode(f"api:{secret}".encode()).decode() not in ended.output
        assert files_with(secret, home) == set()
        return ended

    return run


def failure(ended: Ended) -> str:
    """Return the error line of a command that failed in time."""
    assert ended.seconds < LIMIT
    return ended.error


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """A server that all tests of good ways share; none of them changes its models."""
    with wandb_server.serve(KEY) as server:
        yield server
        assert server.unknown == []


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of a test's own."""
    with wandb_server.serve(KEY) as server:
        yield server
        assert server.unknown == []


@pytest.fixture(scope="module")
def models(trained: tuple[Ended, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two trained models that differ in one file."""
    first = trained[1]
    second = shutil.copytree(first, tmp_path_factory.mktemp("second") / "results")
    (second / "README.md").write_text("# another card\n")
    return [first, second]


@pytest.fixture(scope="module")
def uploaded(run: Command, shared: Server, models: list[Path]) -> list[Ended]:
    """Upload both models under one name, from two runs."""
    ended = [
        run(shared, "upload-to-registry", "airflow-pipeline", model, ML_PIPELINES_RUN_ID=f"run{n}")
        for n, model in enumerate(models, 1)
    ]
    for one in ended:
        assert one.status == 0, one.output
        assert one.stderr == ""
    shared.give_aliases(shared.versions("airflow-pipeline")[0], {"champion"})
    return ended


def test_the_stand_in_speaks_for_the_sdk_of_the_image():
    assert version("wandb") == wandb_server.SDK_VERSION


def test_each_changed_model_is_a_new_version(uploaded: list[Ended], shared: Server):
    assert [ended.result["version"] for ended in uploaded] == ["v0", "v1"]
    result = uploaded[1].result
    assert result["registry"] == "wandb"
    assert result["name"] == "airflow-pipeline"
    assert result["uri"] == f"{TEAM}/{PROJECT}/airflow-pipeline:v1"
    assert result["run_url"].startswith(f"{shared.address}/{TEAM}/{PROJECT}/runs/")
    first, second = shared.versions("airflow-pipeline")
    assert (first.aliases, second.aliases) == ({"champion"}, {"latest"})


def test_the_same_files_again_are_the_same_version(
    run: Command, server: Server, models: list[Path]
):
    versions = [run(server, "upload-to-registry", "twice", models[0]).result["version"]]
    versions += [run(server, "upload-to-registry", "twice", models[0]).result["version"]]
    assert versions == ["v0", "v0"]
    assert len(server.versions("twice")) == 1


def test_every_file_arrives_unchanged(uploaded: list[Ended], shared: Server, models: list[Path]):
    for artifact, model in zip(shared.versions("airflow-pipeline"), models, strict=True):
        assert set(artifact.files) == everything_below(model)
        for name, stored in artifact.files.items():
            assert stored.read_bytes() == (model / name).read_bytes(), name


def run_of(shared: Server, ended: Ended) -> wandb_server.Run:
    name = ended.result["run_url"].rpartition("/")[2]
    return shared.runs[TEAM, PROJECT, name]


def test_the_run_holds_metrics_curve_parameters_and_plots(
    uploaded: list[Ended], shared: Server, models: list[Path]
):
    run = run_of(shared, uploaded[0])
    assert (run.job_type, run.state) == ("upload-model", "finished")
    for name, value in json.loads((models[0] / "metrics.json").read_text()).items():
        assert run.summary[name] == pytest.approx(value), name
    curve = [point["curve/step"] for point in run.history if "curve/loss" in point]
    assert curve == [5, 10, 15, 20, 25, 30, 35, 40]
    assert wandb_server.plain(run.config)["learning_rate"] == 0.005
    for plot in ("confusion_matrix", "training_curve"):
        sent = run.files[run.summary[plot]["path"]]
        assert sent.read_bytes() == (models[0] / f"{plot}.png").read_bytes()


def test_version_and_run_name_run_data_and_weights(
    uploaded: list[Ended], shared: Server, models: list[Path]
):
    artifact = shared.versions("airflow-pipeline")[1]
    run = run_of(shared, uploaded[1])
    assert artifact.run == run.name
    for known in (artifact.metadata, wandb_server.plain(run.config)):
        assert known["dag_id"] == "training_dag"
        # The upload's own run counts, not the one that an older lineage file names.
        assert known["run_id"] == "run2"
        assert known["parameters"] == '{"max_steps": 40}'
        assert len(known["data_sha256"]) == 64
        weights = (models[1] / "model.safetensors").read_bytes()
        assert known["model_sha256"] == sha256(weights).hexdigest()
    assert "accuracy" in artifact.metadata["metrics"]


@pytest.mark.parametrize(("alias", "number"), [("latest", 1), ("v0", 0), ("1", 1), ("champion", 0)])
def test_the_model_comes_back_as_it_was(
    run: Command,
    uploaded: list[Ended],
    shared: Server,
    models: list[Path],
    tmp_path: Path,
    alias: str,
    number: int,
):
    target = tmp_path / "results"
    loader = f"loader of {alias}"
    reference = f"airflow-pipeline:{alias}"
    ended = run(shared, "load-from-registry", reference, target, ML_PIPELINES_RUN_ID=loader)
    assert ended.result == {
        "registry": "wandb",
        "name": "airflow-pipeline",
        "version": f"v{number}",
        "path": str(target),
    }
    assert everything_below(target) == everything_below(models[number]) | {"registry.json"}
    for name in everything_below(models[number]):
        assert (target / name).read_bytes() == (models[number] / name).read_bytes(), name
    known = json.loads((target / "registry.json").read_text())
    assert known["reference"] == reference
    assert known["version"] == f"v{number}"
    assert known["uri"] == f"{TEAM}/{PROJECT}/airflow-pipeline:v{number}"
    assert known["run_url"] == uploaded[number].result["run_url"]
    assert known["tags"]["run_id"] == f"run{number + 1}"
    assert known["metrics"] == json.loads((models[number] / "metrics.json").read_text())
    loads = [one for one in shared.runs.values() if one.job_type == "load-model"]
    assert loads[-1].used == [f"airflow-pipeline:v{number}"]
    assert loads[-1].state == "finished"
    config = wandb_server.plain(loads[-1].config)
    assert (config["model"], config["run_id"]) == (reference, loader)


def test_a_model_that_was_loaded_goes_up_without_its_mark(
    run: Command, uploaded: list[Ended], shared: Server, server: Server, tmp_path: Path
):
    target = tmp_path / "results"
    assert run(shared, "load-from-registry", "airflow-pipeline", target).status == 0
    assert run(server, "upload-to-registry", "again", target).result["version"] == "v0"
    assert "registry.json" not in server.versions("again")[0].files


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        (
            "airflow-pipeline:v7",
            "model 'airflow-pipeline' in W&B has no version or alias 'v7'; "
            "there are: latest, v1, v0, champion",
        ),
        (
            "nobody",
            f"W&B project {TEAM}/{PROJECT} has no model 'nobody'; models there: airflow-pipeline",
        ),
    ],
)
def test_unknown_model_or_version_lists_those_that_there_are(
    run: Command, uploaded: list[Ended], shared: Server, tmp_path: Path, reference: str, told: str
):
    error = failure(run(shared, "load-from-registry", reference, tmp_path / "results"))
    assert error == f"ERROR: {told}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [{"WANDB_PROJECT": "other"}, {"WANDB_ENTITY": "other"}])
def test_load_from_a_wrong_project_names_it(
    run: Command, uploaded: list[Ended], shared: Server, tmp_path: Path, place: dict[str, str]
):
    error = failure(run(shared, "load-from-registry", "m", tmp_path / "results", **place))
    wrong = f"{place.get('WANDB_ENTITY', TEAM)}/{place.get('WANDB_PROJECT', PROJECT)}"
    assert f"W&B project {wrong} has no model 'm'; models there: none yet" in error


@pytest.mark.parametrize("entity", ["nobody", FORBIDDEN_TEAM])
def test_upload_to_a_wrong_entity_names_it(
    run: Command, server: Server, models: list[Path], entity: str
):
    error = failure(run(server, "upload-to-registry", "m", models[0], WANDB_ENTITY=entity))
    assert f"W&B refuses the upload: project {entity}/{PROJECT} is not there" in error
    assert "check wandb.entity and wandb.project" in error


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_named_and_nothing_of_it_is_left(
    run: Command, server: Server, models: list[Path], tmp_path: Path, home: Path, name: str
):
    assert run(server, "upload-to-registry", "m", models[0]).status == 0
    # What the SDK has fetched before, it takes from its cache.
    shutil.rmtree(home / ".cache", ignore_errors=True)
    server.damage(server.versions("m")[0], name)
    error = failure(run(server, "load-from-registry", "m", tmp_path / "results"))
    assert error == f"ERROR: m:latest in wandb is damaged: Digest mismatch for file: {name}"
    assert list(tmp_path.iterdir()) == []
    # Once it is mended, the next attempt succeeds.
    server.damage(server.versions("m")[0], name)
    assert run(server, "load-from-registry", "m", tmp_path / "results").status == 0


def test_a_new_key_works_between_two_runs_and_the_old_one_is_refused(
    run: Command, server: Server, models: list[Path], tmp_path: Path
):
    assert run(server, "upload-to-registry", "m", models[0]).status == 0
    server.key = OTHER_KEY
    error = failure(run(server, "load-from-registry", "m", tmp_path / "results"))
    assert "refuses the API key (HTTP 401); put a valid key into the Secret" in error
    ended = run(server, "load-from-registry", "m", tmp_path / "results", key=OTHER_KEY)
    assert ended.status == 0, ended.output


def test_a_key_that_ends_in_the_middle_of_an_upload(
    run: Command, server: Server, models: list[Path]
):
    server.fail("CreateArtifact", 401)
    error = failure(run(server, "upload-to-registry", "m", models[0]))
    assert "refuses the API key (HTTP 401); put a valid key into the Secret" in error
    assert server.versions("m") == []


def test_a_key_from_a_file_with_a_line_feed(run: Command, server: Server, models: list[Path]):
    ended = run(server, "upload-to-registry", "m", models[0], key=f"{KEY}\n")
    assert ended.status == 0, ended.output
    assert server.refused == 0


def test_a_key_in_a_file_would_be_found(tmp_path: Path):
    (tmp_path / "clean").write_text("nothing")
    (tmp_path / "plain").write_text(f"machine x password {KEY}")
    (tmp_path / "header").write_text(
        "Authorization: Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
    )
    assert files_with(KEY, tmp_path) == {"plain", "header"}


def test_a_process_of_the_sdk_that_does_not_listen_yet_is_asked_again():
    from classic_example.registry.wandb_registry import set_up
    from wandb.sdk.wandb_manager import ManagerConnectionRefusedError

    class Sdk:
        calls = 0

        def setup(self) -> None:
            self.calls += 1
            if self.calls == 1:
                raise ManagerConnectionRefusedError("[Errno 111] Connection refused")

    sdk = Sdk()
    set_up(sdk)
    assert sdk.calls == 2


def test_errors_for_a_while_cost_seconds_only(
    run: Command, server: Server, models: list[Path], tmp_path: Path
):
    for call in ("UpsertBucket", "CreateArtifact", "CreateArtifactFiles", "CommitArtifact"):
        server.fail(call, 500, times=1)
    server.fail("upload", 503, times=3)
    ended = run(server, "upload-to-registry", "m", models[0])
    assert ended.status == 0, ended.output
    assert set(server.versions("m")[0].files) == everything_below(models[0])
    server.fail("ArtifactByName", 500, times=2)
    server.fail("UseArtifact", 503, times=1)
    server.fail("ArtifactFileURLs", 500, times=1)
    ended = run(server, "load-from-registry", "m", tmp_path / "results")
    assert ended.status == 0, ended.output
    assert everything_below(tmp_path / "results") == everything_below(models[0]) | {"registry.json"}


def test_an_upload_that_breaks_off_leaves_a_failed_run_and_no_version(
    run: Command, server: Server, models: list[Path], tmp_path: Path
):
    server.fail("CommitArtifact", 403)
    error = failure(run(server, "upload-to-registry", "m", models[0]))
    assert "W&B refuses the upload" in error
    assert [one.state for one in server.runs.values()] == ["failed"]
    assert server.versions("m") == []
    error = failure(run(server, "load-from-registry", "m", tmp_path / "results"))
    assert "has no model 'm'; models there: none yet" in error


@pytest.mark.parametrize(
    ("command", "call", "what"),
    [
        ("upload-to-registry", "CreateArtifact", "stall"),
        ("upload-to-registry", "upload", "hang up"),
        ("load-from-registry", "download", "stall"),
    ],
)
def test_a_server_that_goes_silent_halfway(
    run: Command,
    server: Server,
    models: list[Path],
    tmp_path: Path,
    home: Path,
    command: str,
    call: str,
    what: str,
):
    target = models[0]
    if command == "load-from-registry":
        assert run(server, "upload-to-registry", "m", models[0]).status == 0
        target = tmp_path / "results"
    fault = server.fail(call, what, spreads=True)
    error = run(server, command, "m", target).error
    assert fault.met is not None
    assert time.monotonic() - fault.met < LIMIT
    assert f"W&B at {server.address} has stopped answering" in error
    assert not (tmp_path / "results").exists()
