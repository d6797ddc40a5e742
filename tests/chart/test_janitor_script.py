"""The chart's janitor: what it removes from a volume and a registry, and what it leaves alone."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import janitor
import pytest
from pytest_httpserver import HTTPServer

from tests.helpers.mlflow_server import MlflowState, serve

HOUR = 3600


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    root = tmp_path / "storage"
    root.mkdir()
    return root


def plant(root: Path, *files: str, hours: float) -> None:
    """Make files of ten bytes, and directories where the path ends with a slash."""
    for name in files:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("0123456789")
    for name in files:
        age(root, root / name, hours=hours)


def age(root: Path, path: Path, *, hours: float) -> None:
    """Set back the time of a path and of its directories, the last ones last."""
    stamp = time.time() - hours * HOUR
    for one in (path, *path.parents):
        if one == root:
            break
        os.utime(one, (stamp, stamp), follow_symlinks=False)


def below(root: Path) -> set[str]:
    """Return files and links, and directories with nothing in them."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file() or not any(path.iterdir())
    }


def run(storage: Path, *words: str, hours: float = 48) -> int:
    return janitor.main([f"--storage={storage}", f"--leftovers-max-age-hours={hours}", *words])


# The training storage


def test_old_leftovers_go_and_recent_ones_stay(storage: Path, capsys) -> None:
    plant(storage, "training_dag/old/data/train.csv", "training_dag/old/results/w", hours=49)
    plant(storage, "inference_dag/old/.pred.csv.partial", hours=49)
    plant(storage, "training_dag/recent/data/train.csv", hours=47)
    assert run(storage) == 0
    assert below(storage) == {"training_dag/recent/data/train.csv", "inference_dag"}
    assert not (storage / "training_dag" / "old").exists()
    printed = capsys.readouterr().out
    assert f"removed {storage}/training_dag/old/data (10 bytes): left behind by a run" in printed
    assert "unchanged for 49 hours" in printed
    assert "5 removed, 30 bytes" in printed.splitlines()[-1]


def test_one_recent_change_anywhere_protects_the_whole_run(storage: Path) -> None:
    plant(storage, "training_dag/run/data/a", "training_dag/run/b/c/d", hours=100)
    age(storage / "training_dag/run/b/c", storage / "training_dag/run/b/c/d", hours=1)
    before = below(storage)
    assert run(storage) == 0
    assert below(storage) == before


def test_a_file_that_was_removed_lately_is_a_recent_change(storage: Path) -> None:
    plant(storage, "training_dag/run/a", "training_dag/run/b", hours=100)
    (storage / "training_dag/run/a").unlink()
    assert run(storage) == 0
    assert below(storage) == {"training_dag/run/b"}


def test_predictions_are_kept_for_ever_unless_a_term_is_set(storage: Path) -> None:
    kept = {"inference_dag/run/pred.csv", "inference_dag/run/pred.json"}
    plant(storage, *kept, "inference_dag/run/results/w", "inference_dag/run/.hidden", hours=9000)
    assert run(storage) == 0
    assert below(storage) == kept


def test_predictions_go_after_their_term_with_their_directory(storage, capsys) -> None:
    plant(storage, "inference_dag/old/pred.csv", "inference_dag/old/pred.json", hours=31 * 24)
    plant(storage, "inference_dag/new/pred.csv", "inference_dag/new/pred.json", hours=29 * 24)
    assert run(storage, "--predictions-max-age-days=30") == 0
    assert below(storage) == {"inference_dag/new/pred.csv", "inference_dag/new/pred.json"}
    assert not (storage / "inference_dag" / "old").exists()
    assert "predictions of 31 days ago" in capsys.readouterr().out


def test_predictions_without_a_description_are_predictions(storage: Path) -> None:
    plant(storage, "inference_dag/run/pred.csv", hours=9000)
    # The other way round it describes nothing.
    plant(storage, "inference_dag/broken/pred.json", hours=9000)
    # Nobody's predictions: something else by that name.
    plant(storage, "inference_dag/odd/pred.csv/file", hours=9000)
    assert run(storage) == 0
    assert below(storage) == {"inference_dag/run/pred.csv"}


def test_empty_directories_of_old_runs_go(storage: Path, capsys) -> None:
    plant(storage, "training_dag/old/", hours=49)
    plant(storage, "training_dag/recent/", hours=1)
    assert run(storage) == 0
    assert below(storage) == {"training_dag/recent"}
    assert f"removed {storage}/training_dag/old (0 bytes): empty" in capsys.readouterr().out


def test_runs_of_any_dag_are_looked_at(storage: Path) -> None:
    """Whatever Airflow makes labels of: nobody tells the janitor which DAGs there are."""
    dags = ("churn", "team.dag-2", "x-28151a39f", "a" * 63, "UPPER_case")
    runs = ("manual__2026-11-23T0900000000-2e7c2519c", "1", "x-05a949e14")
    plant(storage, *(f"{dag}/{run}/results/w" for dag in dags for run in runs), hours=49)
    assert run(storage) == 0
    assert below(storage) == set(dags)


def test_only_directories_of_runs_are_looked_at(storage: Path) -> None:
    untouched = {
        "file",
        # No label begins, ends, or is spelled like these.
        "_shared/models/w",
        ".snapshot/daily/w",
        "lost+found/1/w",
        "ends-/run/w",
        f"{'a' * 64}/run/w",
        "churn/_cache/w",
        "churn/.trash/w",
        "churn/a b/w",
        "training_dag/a file beside the runs",
    }
    plant(storage, *untouched, hours=9000)
    assert run(storage) == 0
    assert below(storage) == untouched


def test_what_is_marked_stays(storage: Path) -> None:
    kept = {
        "datasets/.keep",
        "datasets/sst2/train.csv",
        "churn/run/.keep",
        "churn/run/results/w",
        # The mark itself may be anything.
        "linked/run/w",
    }
    plant(storage, *kept, "churn/other/results/.keep", "churn/other/w", hours=9000)
    (storage / "linked" / ".keep").symlink_to("nowhere")
    assert run(storage, "--predictions-max-age-days=1") == 0
    assert below(storage) == kept | {"linked/.keep"}


def test_a_directory_that_cannot_be_read_stops_nothing_else(
    storage: Path, monkeypatch, capsys
) -> None:
    plant(storage, "a/run/w", "b/run/w", hours=99)
    scandir = os.scandir

    def refused(path: Path) -> object:
        if Path(path) == storage / "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(janitor.os, "scandir", refused)
        assert run(storage) == 1
    assert below(storage) == {"a/run/w", "b"}
    assert f"ERROR: {storage}/a: " in capsys.readouterr().out


def test_links_are_removed_and_never_followed(storage: Path, tmp_path: Path) -> None:
    plant(tmp_path, "outside/run/file", hours=9000)
    plant(storage, "training_dag/run/file", hours=9000)
    outside = tmp_path / "outside"
    (storage / "training_dag/run/to-directory").symlink_to(outside)
    (storage / "training_dag/run/to-file").symlink_to(outside / "run" / "file")
    (storage / "training_dag/linked").symlink_to(outside / "run")
    (storage / "inference_dag").symlink_to(outside)
    for link in ("run/to-directory", "run/to-file", "linked"):
        age(storage, storage / "training_dag" / link, hours=9000)
    assert run(storage) == 0
    assert below(tmp_path) == {
        "outside/run/file",
        "storage/inference_dag",
        "storage/training_dag/linked",
    }


def test_a_link_to_a_recent_file_does_not_protect(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "recent").write_text("x")
    plant(storage, "training_dag/run/file", hours=100)
    (storage / "training_dag/run/link").symlink_to(tmp_path / "recent")
    age(storage, storage / "training_dag/run/link", hours=100)
    assert run(storage) == 0
    assert below(storage) == {"training_dag"}
    assert (tmp_path / "recent").exists()


def test_a_dry_run_removes_nothing(storage: Path, capsys) -> None:
    plant(storage, "training_dag/old/w", "inference_dag/old/pred.csv", hours=9000)
    before = below(storage)
    assert run(storage, "--predictions-max-age-days=1", "--dry-run") == 0
    assert below(storage) == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines[:-1]] == [
        f"would remove {storage}/inference_dag/old/pred.csv",
        f"would remove {storage}/inference_dag/old",
        f"would remove {storage}/training_dag/old/w",
        f"would remove {storage}/training_dag/old",
    ]
    assert lines[-1].startswith("4 to remove, 20 bytes; ")


def test_what_vanishes_meanwhile_is_no_fault(storage: Path, monkeypatch) -> None:
    """A run that cleans up at the same moment takes files away under the janitor."""
    plant(storage, "training_dag/run/a/1", "training_dag/run/b/2", "training_dag/run/c", hours=99)
    listdir, rmtree = os.listdir, janitor.shutil.rmtree

    def listed_and_gone(path: str | Path = ".") -> list[str]:
        names = listdir(path)
        if str(path).endswith("run/a"):
            rmtree(path)
        return names

    def removed_beforehand(path: Path, *words: object, **options: object) -> None:
        if path.name == "b":
            rmtree(path)
        rmtree(path, *words, **options)

    monkeypatch.setattr(janitor.os, "listdir", listed_and_gone)
    monkeypatch.setattr(janitor.shutil, "rmtree", removed_beforehand)
    assert run(storage) == 0
    assert below(storage) == {"training_dag"}


def test_the_rest_of_a_directory_goes_when_a_part_vanishes(storage: Path, monkeypatch) -> None:
    plant(storage, *(f"training_dag/run/d/{name}" for name in "abc"), hours=99)
    rmtree, tries = janitor.shutil.rmtree, []

    def interrupted(path: Path, *words: object, **options: object) -> None:
        tries.append(path)
        if len(tries) == 1:
            (path / "a").unlink()
            raise FileNotFoundError(path / "a")
        rmtree(path, *words, **options)

    monkeypatch.setattr(janitor.shutil, "rmtree", interrupted)
    assert run(storage) == 0
    assert len(tries) == 2
    assert below(storage) == {"training_dag"}


def test_a_run_that_comes_back_to_life_keeps_what_it_writes(
    storage: Path, monkeypatch, capsys
) -> None:
    plant(storage, "training_dag/run/old", hours=99)
    remove = janitor.remove

    def written_meanwhile(path: Path) -> None:
        remove(path)
        (path.parent / "new").write_text("of a cleared run")

    monkeypatch.setattr(janitor, "remove", written_meanwhile)
    assert run(storage) == 0
    assert below(storage) == {"training_dag/run/new"}
    assert "somebody writes there again" in capsys.readouterr().out


def test_one_thing_that_cannot_be_removed_stops_nothing_else(
    storage: Path, monkeypatch, capsys
) -> None:
    plant(storage, "training_dag/a/w", "training_dag/b/w", "inference_dag/c/w", hours=99)
    remove = janitor.remove

    def refused(path: Path) -> None:
        if path.parent.name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(janitor, "remove", refused)
    assert run(storage) == 1
    assert below(storage) == {"training_dag/a/w", "inference_dag"}
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1
    assert "training_dag/a" in errors[0]
    assert "Permission denied" in errors[0]


def test_empty_directories_that_only_root_may_remove_are_no_failure(
    storage: Path, monkeypatch, capsys
) -> None:
    """What the kubelet makes below a volume's root with a sticky bit."""
    plant(storage, "training_dag/a/w", "training_dag/b/", hours=99)

    def refused(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "rmdir", refused)
    assert run(storage) == 0
    assert below(storage) == {"training_dag/a", "training_dag/b"}
    printed = capsys.readouterr().out
    assert "2 empty directories stay" in printed
    assert "chmod -t" in printed
    assert "1 removed, 10 bytes" in printed


def test_a_volume_without_any_run_is_fine(storage: Path, capsys) -> None:
    assert run(storage) == 0
    assert capsys.readouterr().out.startswith("0 removed, 0 bytes; ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--leftovers-max-age-hours=0"], "must be above 0"),
        (["--mlflow-url=http://127.0.0.1:9"], "needs --model and --experiment"),
    ],
)
def test_wrong_options_are_refused(storage: Path, capsys, words: list[str], told: str) -> None:
    with pytest.raises(SystemExit):
        run(storage, *words)
    assert told in capsys.readouterr().err


# The model registry


@pytest.fixture
def mlflow(httpserver: HTTPServer) -> MlflowState:
    return serve(httpserver)


Prune = Callable[..., int]


@pytest.fixture
def prune(storage: Path, mlflow: MlflowState, monkeypatch) -> Prune:
    """Run the janitor against the registry, without pauses between its tries."""
    monkeypatch.setattr(janitor, "PAUSE_SECONDS", 0)

    def go(keep: int = 0, *words: str) -> int:
        registry = [f"--mlflow-url={mlflow.url}", f"--model={mlflow.model}"]
        registry += [f"--experiment={mlflow.experiment}", f"--keep-versions={keep}"]
        return run(storage, *registry, *words)

    return go


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({}, None),
        ({"USERNAME": "ann", "PASSWORD": "pö"}, "Basic YW5uOnDDtg=="),
        ({"TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"USERNAME": "ann", "PASSWORD": "pw", "TOKEN": "t"}, "Basic YW5uOnB3"),
    ],
    ids=["none", "password", "token", "both"],
)
def test_a_server_behind_a_login_is_told_who_asks(
    mlflow: MlflowState, httpserver: HTTPServer, prune: Prune, monkeypatch, variables, sent
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    mlflow.add_versions(1, 2)
    assert prune(1) == 0
    assert {request.headers.get("Authorization") for request, _ in httpserver.log} == {sent}


def test_all_versions_stay_unless_a_number_is_set(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.add_versions(*range(1, 6))
    assert prune() == 0
    assert set(mlflow.versions) == {1, 2, 3, 4, 5}
    assert mlflow.with_models() == {f"run{number}" for number in range(1, 6)}


def test_the_newest_versions_stay(mlflow: MlflowState, prune: Prune, capsys) -> None:
    # Ten after nine: by number, not by text.
    mlflow.add_versions(*range(7, 13))
    assert prune(3) == 0
    assert set(mlflow.versions) == {10, 11, 12}
    assert mlflow.with_models() == {"run10", "run11", "run12"}
    # Runs stay with what compares them.
    assert "7/run7/artifacts/plots/curve.png" in mlflow.files
    assert mlflow.tag("run7") == "deleted by the janitor"
    assert mlflow.tag("run12") is None
    printed = capsys.readouterr().out
    assert "removed airflow-pipeline version 7 (0 bytes): beyond the number" in printed
    assert "removed models of MLflow run run7 (1,000 bytes): files of airflow-" in printed
    assert "6 removed, 3,000 bytes" in printed


def test_versions_with_an_alias_or_a_stage_stay(mlflow: MlflowState, prune: Prune) -> None:
    for number in range(1, 6):
        mlflow.add_version(number, stage="Production" if number == 2 else "None")
    mlflow.aliases = {"champion": 1}
    assert prune(1) == 0
    assert set(mlflow.versions) == {1, 2, 5}
    assert mlflow.with_models() == {"run1", "run2", "run5"}


def test_the_version_that_a_rollback_goes_to_stays(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.add_versions(1, 2, 3, 4, 5)
    for number, over in ((2, "v1"), (4, "v2")):
        mlflow.versions[number]["tags"] = [{"key": "promoted_over", "value": over}]
    mlflow.aliases = {"champion": 4}
    assert prune(1) == 0
    assert set(mlflow.versions) == {2, 4, 5}


def test_files_that_another_version_uses_stay(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.add_version(1)
    mlflow.add_version(2, run_id="run1")
    assert prune(1) == 0
    assert set(mlflow.versions) == {2}
    assert mlflow.with_models() == {"run1"}
    assert mlflow.tag("run1") is None


def test_files_of_a_deleted_run_are_left_to_gc(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.add_versions(1, 2)
    mlflow.runs["run1"]["info"]["lifecycle_stage"] = "deleted"
    assert prune(1) == 0
    assert set(mlflow.versions) == {2}
    assert mlflow.with_models() == {"run1", "run2"}


def test_a_version_whose_run_is_gone_is_removed(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.add_version(1, run_id="purged")
    mlflow.add_version(2)
    assert prune(1) == 0
    assert set(mlflow.versions) == {2}


def test_a_dry_run_changes_nothing_in_the_registry(
    mlflow: MlflowState, prune: Prune, capsys
) -> None:
    mlflow.add_versions(1, 2)
    mlflow.add_run("broken", status="FAILED")
    assert prune(1, "--dry-run") == 0
    assert [call for call in mlflow.calls if call[0] == "DELETE" or call[1].endswith("tag")] == []
    assert "would remove airflow-pipeline version 1" in capsys.readouterr().out


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_files_of_broken_uploads_go_after_a_while(
    mlflow: MlflowState, prune: Prune, status: str
) -> None:
    mlflow.add_version(1)
    mlflow.add_run("old", status=status, changed=time.time() - 49 * HOUR)
    mlflow.add_run("recent", status=status, changed=time.time() - 47 * HOUR)
    # An upload that ended, whose version somebody has deleted: theirs to decide.
    mlflow.add_run("finished", status="FINISHED", changed=time.time() - 9000 * HOUR)
    assert prune() == 0
    assert mlflow.with_models() == {"run1", "recent", "finished"}
    expected = "KILLED" if status == "RUNNING" else status
    assert mlflow.runs["old"]["info"]["status"] == expected
    assert mlflow.runs["recent"]["info"]["status"] == status


def test_broken_uploads_are_looked_at_once(mlflow: MlflowState, prune: Prune, capsys) -> None:
    for number in range(5):
        mlflow.add_run(f"broken{number}", status="FAILED")
    assert prune() == 0
    assert "5 removed, 5,000 bytes" in capsys.readouterr().out
    assert prune() == 0
    assert "0 removed, 0 bytes" in capsys.readouterr().out


def test_a_failed_run_with_a_version_keeps_its_files(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.add_run("odd", status="FAILED")
    mlflow.add_version(1, run_id="odd")
    assert prune() == 0
    assert mlflow.with_models() == {"odd"}


@pytest.mark.parametrize(
    "step",
    [
        "mlflow/model-versions/delete",
        "mlflow-artifacts/artifacts/",
        "mlflow/logged-models/m-",
        "mlflow/runs/set-tag",
    ],
)
def test_what_was_broken_off_is_ended_the_next_time(
    mlflow: MlflowState, prune: Prune, capsys, step: str
) -> None:
    mlflow.add_versions(1, 2, 3)

    def refuse(_: str, path: str) -> int:
        done = sum(path == called for _, called in mlflow.calls)
        # The first mark is set, so that something has begun.
        return 403 if path.startswith(step) and (step != "mlflow/runs/set-tag" or done > 1) else 0

    mlflow.refuse = refuse
    assert prune(1) == 1
    assert "ERROR: model registry: MLflow" in capsys.readouterr().out
    # A version that is there has its files.
    assert {f"run{number}" for number in mlflow.versions} <= mlflow.with_models()
    mlflow.refuse = lambda method, path: 0
    assert prune(1) == 0
    assert set(mlflow.versions) == {3}
    assert mlflow.with_models() == set(mlflow.models.values()) == {"run3"}
    assert {mlflow.tag("run1"), mlflow.tag("run2")} == {"deleted by the janitor"}


def test_a_busy_server_is_asked_again(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.add_versions(1, 2)
    # Each call is refused twice, in either way, before it is answered.
    mlflow.refuse = lambda method, path: (0, 503, 429)[
        len([c for c in mlflow.calls if c == (method, path)]) % 3
    ]
    assert prune(1) == 0
    assert set(mlflow.versions) == {2}


def test_a_server_that_is_gone_fails_after_the_storage_was_cleaned(
    storage: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(janitor, "PAUSE_SECONDS", 0)
    plant(storage, "training_dag/old/w", hours=99)
    words = ["--mlflow-url=http://127.0.0.1:9", "--model=m", "--experiment=e"]
    assert run(storage, *words) == 1
    assert below(storage) == {"training_dag"}
    printed = capsys.readouterr().out
    assert printed.count("ERROR") == 1
    assert "http://127.0.0.1:9" in printed
    assert "Connection refused" in printed


def test_files_that_the_server_does_not_serve_are_named(
    mlflow: MlflowState, prune: Prune, capsys
) -> None:
    mlflow.add_versions(1, 2)
    mlflow.runs["run1"]["info"]["artifact_uri"] = "s3://bucket/7/run1/artifacts"
    assert prune(1) == 1
    printed = capsys.readouterr().out
    assert "run1 are at s3://" in printed
    assert "set janitor.models.keepVersions to 0" in printed
    assert set(mlflow.versions) == {1, 2}


def test_no_model_and_no_experiment_yet(mlflow: MlflowState, prune: Prune) -> None:
    mlflow.experiment = "another"
    assert prune(3) == 0
