"""Batch prediction."""

import csv
import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from threading import current_thread

import pyarrow
import pytest
import torch
from classic_example import inference
from classic_example.errors import WorkloadError
from classic_example.inference import run_inference_on_dataframe
from classic_example.predictions import join_predictions
from classic_example.tables import Table
from classic_example.text_model import Model, resolve_precision
from pyarrow import parquet
from workload_helpers import (
    HEADER,
    Cli,
    Ended,
    everything_below,
    peak_memory,
    read_csv,
    sentences,
    write_csv,
)


@pytest.fixture
def model(trained: tuple[Ended, Path], tmp_path: Path) -> Path:
    """Return the trained model as load-from-registry would leave it."""
    directory = shutil.copytree(trained[1], tmp_path / "model")
    registered = {
        "registry": "mlflow",
        "name": "m",
        "version": "v7",
        "tags": {"run_id": "training 1", "image_digest": "sha256:1a"},
        "metrics": {"accuracy": 0.9},
    }
    (directory / "registry.json").write_text(json.dumps(registered))
    return directory


def test_predictions_keep_the_contract(cli: Cli, model: Path, data_directory: Path, tmp_path: Path):
    source, target = data_directory / "test.csv", tmp_path / "out" / "pred.csv"
    made_by = {
        "dag_id": "inference_dag",
        "run_id": "daily 1",
        "dags_commit": "c0ffee",
        "image": "i",
    }
    variables = {f"ML_PIPELINES_{name.upper()}": value for name, value in made_by.items()}
    variables["PYTHONPROFILEIMPORTTIME"] = "1"
    ended = cli("run-inference-on-dataframe", source, model, target, env=variables)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    # Each costs a good part of a second.
    assert not imported & {"matplotlib", "mlflow", "scipy", "sklearn", "wandb"}
    assert "transformers.modeling_utils" in imported
    given, predicted = read_csv(source), read_csv(target)
    assert list(predicted[0]) == [*HEADER, "correct_sentence_conf"]
    assert [{name: row[name] for name in HEADER} for row in predicted] == given
    confidences = [float(row["correct_sentence_conf"]) for row in predicted]
    assert all(0 <= confidence <= 1 for confidence in confidences)
    positive = sum(confidence >= 0.5 for confidence in confidences)
    result = ended.result
    assert result.pop("drift")["psi_length"] < 0.25
    assert result.pop("note") == f"33 rows by v7: {target}"
    assert result == {
        "rows": 33,
        "predictions": str(target),
        "model_version": "v7",
        "positive": positive,
        "empty": 0,
        "truncated": 0,
        "bad_rows": 0,
    }
    written = (tmp_path / "out" / "pred.json").read_text()
    description = json.loads(written)
    assert description["precision"] == resolve_precision("auto")
    assert description["model"] == json.loads((model / "registry.json").read_text())
    assert description["made_by"] == made_by
    # What clean_up of the pipeline looks for, to fill it in.
    assert written.count('\n  "image_digest": "",\n') == 1
    assert description["rows"] == 33
    assert description["positive"] == positive
    content = target.read_bytes()
    assert description["predictions"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert everything_below(tmp_path / "out") == {"pred.csv", "pred.json"}


def test_sample_size_takes_the_first_rows_and_is_written_down(
    cli: Cli, model: Path, data_directory: Path, tmp_path: Path
):
    def predict(target: Path, sample_size: int | None) -> Ended:
        env = {"ML_PIPELINES_PARAMS": json.dumps({"sample_size": sample_size})}
        return cli(
            "run-inference-on-dataframe", data_directory / "test.csv", model, target, env=env
        )

    assert predict(tmp_path / "all.csv", None).result["rows"] == 33
    assert predict(tmp_path / "more.csv", 34).result["rows"] == 33
    assert predict(tmp_path / "some.csv", 5).result["rows"] == 5
    everything, some = (read_csv(tmp_path / f"{name}.csv") for name in ("all", "some"))
    assert [row["sentence"] for row in some] == [row["sentence"] for row in everything[:5]]
    description = json.loads((tmp_path / "some.json").read_text())
    assert description["rows"] == 5
    assert description["made_by"] == {"parameters": '{"sample_size": 5}'}
    assert json.loads((tmp_path / "all.json").read_text())["made_by"] == {}


def test_rows_after_the_sample_are_not_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_csv(tmp_path / "in.csv", ["sentence"], [["fine"], ["too", "many"]])
    monkeypatch.setenv("ML_PIPELINES_PARAMS", '{"sample_size": 1}')
    assert run_inference_on_dataframe(source, model, tmp_path / "pred.csv")["rows"] == 1


def test_predictions_are_right_and_do_not_depend_on_order_or_batch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # To more digits than bf16 has.
    monkeypatch.setenv("PREDICT_PRECISION", "fp32")
    rows = sentences(70, offset=500)
    forward = write_csv(tmp_path / "forward.csv", HEADER, rows)
    backward = write_csv(tmp_path / "backward.csv", HEADER, rows[::-1])
    run_inference_on_dataframe(forward, model, tmp_path / "a.csv")
    run_inference_on_dataframe(backward, model, tmp_path / "b.csv")
    first = {row["idx"]: row for row in read_csv(tmp_path / "a.csv")}
    second = {row["idx"]: row for row in read_csv(tmp_path / "b.csv")}
    for idx, row in first.items():
        confidence = float(row["correct_sentence_conf"])
        other = float(second[idx]["correct_sentence_conf"])
        assert confidence == pytest.approx(other, abs=1e-4)
    right = sum(
        (float(row["correct_sentence_conf"]) >= 0.5) == (row["label"] == "1")
        for row in first.values()
    )
    assert right / len(rows) >= 0.95


def test_bf16_gives_the_labels_of_fp32(
    model: Path, data_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = {}
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv("PREDICT_PRECISION", precision)
        target = tmp_path / f"{precision}.csv"
        run_inference_on_dataframe(data_directory / "test.csv", model, target)
        assert json.loads(target.with_suffix(".json").read_text())["precision"] == precision
        rows[precision] = [float(row["correct_sentence_conf"]) for row in read_csv(target)]
    assert rows["bf16"] != rows["fp32"]
    assert rows["bf16"] == pytest.approx(rows["fp32"], abs=0.05)
    assert [one >= 0.5 for one in rows["bf16"]] == [one >= 0.5 for one in rows["fp32"]]


def test_unknown_precision_is_refused(
    model: Path, data_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREDICT_PRECISION", "int8")
    with pytest.raises(
        WorkloadError, match="PREDICT_PRECISION is 'int8', allowed: auto, fp32, bf16"
    ):
        run_inference_on_dataframe(data_directory / "test.csv", model, tmp_path / "pred.csv")


def test_other_columns_stay_as_they_are(model: Path, tmp_path: Path):
    header = ["id", "sentence", "note", "correct_sentence_conf"]
    source = write_csv(
        tmp_path / "in.csv",
        header,
        [["007", "a great film", "", "0.1"], ["1e5", "", 'say "x", y', "old"]],
    )
    run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
    rows = read_csv(tmp_path / "pred.csv")
    assert list(rows[0]) == header
    assert [(row["id"], row["note"]) for row in rows] == [("007", ""), ("1e5", 'say "x", y')]
    assert all(0 <= float(row["correct_sentence_conf"]) <= 1 for row in rows)


def test_model_that_is_not_from_a_registry_has_no_version(
    trained: tuple[Ended, Path], data_directory: Path, tmp_path: Path
):
    result = run_inference_on_dataframe(
        data_directory / "test.csv", trained[1], tmp_path / "pred.csv"
    )
    assert result["model_version"] == ""
    assert json.loads((tmp_path / "pred.json").read_text())["model"] == {}


def test_incomplete_model_is_refused(model: Path, data_directory: Path, tmp_path: Path):
    (model / "config.json").unlink()
    with pytest.raises(WorkloadError, match=r"is not a trained model: it has no config\.json"):
        run_inference_on_dataframe(data_directory / "test.csv", model, tmp_path / "pred.csv")


def test_model_in_several_files_predicts_the_same(
    model: Path, data_directory: Path, tmp_path: Path
):
    from transformers import AutoModelForSequenceClassification

    for name in ("one", "several"):
        run_inference_on_dataframe(data_directory / "test.csv", model, tmp_path / f"{name}.csv")
        weights = AutoModelForSequenceClassification.from_pretrained(model)
        (model / "model.safetensors").unlink(missing_ok=True)
        weights.save_pretrained(model, max_shard_size="100KB")
    assert len(list(model.glob("model-0*.safetensors"))) > 1
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "several.csv").read_bytes()


def test_damaged_weights_are_refused_and_old_predictions_stay(
    model: Path, data_directory: Path, tmp_path: Path
):
    (model / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "pred.csv").write_text("old")
    with pytest.raises(WorkloadError, match="cannot load the model"):
        run_inference_on_dataframe(data_directory / "test.csv", model, tmp_path / "pred.csv")
    assert (tmp_path / "pred.csv").read_text() == "old"


def test_errors_of_the_command_are_one_line(cli: Cli, model: Path, tmp_path: Path):
    source = write_csv(tmp_path / "in.csv", ["text"], [["x"]])
    ended = cli("run-inference-on-dataframe", source, model, tmp_path / "pred.csv")
    assert ended.error == f"ERROR: {source} has no column sentence; its columns are text"
    ended = cli("run-inference-on-dataframe", source, tmp_path / "none", tmp_path / "pred.csv")
    assert "ERROR:" in ended.error
    assert not (tmp_path / "pred.csv").exists()


def test_unwritable_predictions_fail_clearly(model: Path, data_directory: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkloadError, match=r"cannot write .*file/pred"):
        run_inference_on_dataframe(
            data_directory / "test.csv", model, tmp_path / "file" / "pred.csv"
        )


# In pieces


def test_try_that_was_ended_is_gone_on_with(
    model: Path, data_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(inference, "CHUNK_ROWS", 10)
    monkeypatch.setattr(inference.Ticker, "due", lambda _: True)
    source, out = data_directory / "test.csv", tmp_path / "out"
    run_inference_on_dataframe(source, model, tmp_path / "whole.csv")
    assert "30 rows, " in caplog.text
    real, predicted = inference.predict, []

    def ended(model: object, sentences: list[str]) -> tuple:
        if sum(predicted) == 20:
            # Half a line, as of a kill between write and flush.
            with (out / ".pred.csv.begun").open("a") as file:
                file.write("the film a")
            raise SystemExit(143)
        predicted.append(len(sentences))
        return real(model, sentences)

    monkeypatch.setattr(inference, "predict", ended)
    with pytest.raises(SystemExit):
        run_inference_on_dataframe(source, model, out / "pred.csv")
    assert everything_below(out) == {".pred.csv.begun", ".pred.csv.begun.json"}

    rest = []
    monkeypatch.setattr(
        inference, "predict", lambda *given: rest.append(len(given[1])) or real(*given)
    )
    run_inference_on_dataframe(source, model, out / "pred.csv")
    assert (predicted, rest) == ([10, 10], [10, 3])
    assert everything_below(out) == {"pred.csv", "pred.json"}
    assert (out / "pred.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    same = ("rows", "positive", "labels", "truncated")
    first, second = (
        json.loads(path.read_text()) for path in (tmp_path / "whole.json", out / "pred.json")
    )
    assert {name: first[name] for name in same} == {name: second[name] for name in same}


@pytest.mark.parametrize("change", ["input", "model", "precision", "sample", "image"])
def test_what_another_input_or_model_has_begun_is_not_gone_on_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    monkeypatch.setattr(inference, "CHUNK_ROWS", 10)
    monkeypatch.setenv("PREDICT_PRECISION", "fp32")
    rows, target = sentences(25), tmp_path / "pred.csv"
    source = write_csv(tmp_path / "in.csv", HEADER, rows)
    real, seen = inference.predict, []

    def counted(model: object, texts: list[str]) -> tuple:
        seen.append(len(texts))
        if len(seen) == 2:
            raise SystemExit(143)
        return real(model, texts)

    monkeypatch.setattr(inference, "predict", counted)
    with pytest.raises(SystemExit):
        run_inference_on_dataframe(source, model, target)
    if change == "input":
        write_csv(source, HEADER, rows[::-1])
    elif change == "model":
        (model / "metrics.json").write_text("{}")
    elif change == "precision":
        monkeypatch.setenv("PREDICT_PRECISION", "bf16")
    elif change == "sample":
        monkeypatch.setenv("ML_PIPELINES_PARAMS", '{"sample_size": 24}')
    else:
        monkeypatch.setenv("ML_PIPELINES_IMAGE", "another")
    run_inference_on_dataframe(source, model, target)
    assert seen[2:] == [10, 10, 4 if change == "sample" else 5]


def test_any_number_of_threads_gives_the_same_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inference, "BATCH_SIZE", 4)
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(75))
    written: list[bytes] = []
    names: set[str] = set()
    computing = Model.computing

    def seen(self: Model) -> object:
        names.add(current_thread().name)
        return computing(self)

    monkeypatch.setattr(Model, "computing", seen)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        names.clear()
        run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
        written.append((tmp_path / "pred.csv").read_bytes())
        assert ("MainThread" in names) == (threads == 1)
    assert written[0] == written[1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_shards_make_the_same_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
):
    monkeypatch.setattr(inference, "CHUNK_ROWS", 10)
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(75))
    whole = tmp_path / f"whole{suffix}"
    expected = run_inference_on_dataframe(source, model, whole)
    told = json.loads(whole.with_suffix(".json").read_text())
    # Of 16 some have nothing to do.
    for shards in (2, 4, 16):
        target = tmp_path / f"{shards}" / f"pred{suffix}"
        rows = [
            run_inference_on_dataframe(source, model, target, f"{number}/{shards}")["rows"]
            for number in range(shards)
        ]
        assert sum(rows) == 75
        assert rows == sorted(rows, reverse=True) or rows[3] == 15
        assert not target.exists()
        joined = join_predictions(model, target, shards)
        assert joined == {**expected, "predictions": str(target)}
        assert target.read_bytes() == whole.read_bytes()
        made = json.loads(target.with_suffix(".json").read_text())
        changed = {name for name in told if told[name] != made[name]}
        assert changed <= {"predictions", "created", "seconds"}
        assert made["predictions"]["sha256"] == told["predictions"]["sha256"]


def test_shards_that_do_not_fit_together_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inference, "CHUNK_ROWS", 10)
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(20))
    target = tmp_path / "pred.csv"
    run_inference_on_dataframe(source, model, target, "0/2")
    with pytest.raises(WorkloadError, match=r"pred.1-of-2.arrow does not exist; run-inference-on"):
        join_predictions(model, target, 2)
    write_csv(source, HEADER, sentences(20, offset=1))
    run_inference_on_dataframe(source, model, target, "1/2")
    with pytest.raises(
        WorkloadError, match=r"pred.1-of-2.arrow is not of the same input and model"
    ):
        join_predictions(model, target, 2)
    for shard in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(WorkloadError, match=f"the shard is '{shard}'; it must be k/n"):
            run_inference_on_dataframe(source, model, target, shard)


def test_bad_row_ends_the_command_before_the_first_prediction(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inference, "CHUNK_ROWS", 1)
    monkeypatch.setattr(inference, "predict", lambda *_: pytest.fail("predicts"))
    source = write_csv(tmp_path / "in.csv", ["sentence"], [["a"], ["b"], ["c", "d"]])
    with pytest.raises(WorkloadError, match="row 4: 2 fields, the header has 1"):
        run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
    assert not list(tmp_path.glob("*pred*"))


def test_bad_rows_are_left_out_and_counted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "in.csv"
    source.write_bytes(b'id,sentence\n1,a\n2,b,c\n3,\xff\n4, \n5,"e""\n"\n')
    monkeypatch.setenv("PREDICT_ON_BAD_ROW", "skip")
    result = run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
    assert [row["id"] for row in read_csv(tmp_path / "pred.csv")] == ["1", "4", "5"]
    assert (result["rows"], result["bad_rows"], result["empty"]) == (3, 2, 1)
    about = json.loads((tmp_path / "pred.json").read_text())
    assert (about["rows"], about["bad_rows"], about["empty"]) == (3, 2, 1)
    monkeypatch.setenv("PREDICT_ON_BAD_ROW", "ignore")
    with pytest.raises(WorkloadError, match="PREDICT_ON_BAD_ROW is 'ignore', allowed: fail, skip"):
        run_inference_on_dataframe(source, model, tmp_path / "pred.csv")


# Other places and formats


def test_parquet_keeps_its_types(model: Path, tmp_path: Path):
    when = [datetime(2026, 1, 2, tzinfo=UTC), None]
    table = pyarrow.table(
        {"id": [7, 8], "sentence": ["a great film", None], "when": when, "score": [0.1, 1e-9]}
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    run_inference_on_dataframe(tmp_path / "in.parquet", model, tmp_path / "pred.parquet")
    made = parquet.read_table(tmp_path / "pred.parquet")
    assert made.drop_columns("correct_sentence_conf").to_pydict() == table.to_pydict()
    run_inference_on_dataframe(tmp_path / "in.parquet", model, tmp_path / "pred.csv")
    first, second = read_csv(tmp_path / "pred.csv")
    assert (first["id"], first["when"], first["score"]) == (
        "7",
        "2026-01-02 00:00:00.000000Z",
        "0.1",
    )
    assert (second["sentence"], second["when"], second["score"]) == ("", "", "1e-9")
    confidence = made["correct_sentence_conf"].to_pylist()
    assert [first["correct_sentence_conf"], second["correct_sentence_conf"]] == [
        f"{one:.6f}" for one in confidence
    ]


def test_address_gets_a_copy_and_then_its_description(
    model: Path, data_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, out, there = data_directory / "test.csv", tmp_path / "out", tmp_path / "there"
    monkeypatch.setattr(inference, "CHUNK_ROWS", 10)
    monkeypatch.setenv("PREDICT_OUTPUT", f"file://{there}/2026/p.parquet")
    there.write_text("in the way")
    with pytest.raises(WorkloadError, match=f"cannot write file://{there}/2026/p.parquet: "):
        run_inference_on_dataframe(source, model, out / "pred.csv")
    # What was predicted is kept for the next try.
    assert ".pred.csv.begun" in everything_below(out)
    there.unlink()
    monkeypatch.setattr(inference, "predict", lambda *_: pytest.fail("predicts again"))
    result = run_inference_on_dataframe(source, model, out / "pred.csv")
    assert result["predictions"] == f"file://{there}/2026/p.parquet"
    assert everything_below(out) == {"pred.csv", "pred.json"}
    assert everything_below(there) == {"2026/p.parquet", "2026/p.json"}
    rows, about = read_csv(out / "pred.csv"), json.loads((there / "2026/p.json").read_text())
    assert parquet.read_table(there / "2026/p.parquet")["idx"].to_pylist() == [
        row["idx"] for row in rows
    ]
    content = (there / "2026/p.parquet").read_bytes()
    assert about["predictions"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert about["rows"] == 33
    monkeypatch.setenv("PREDICT_OUTPUT", "s4://bucket/p.csv")
    with pytest.raises(WorkloadError, match=r"cannot use the address s4://bucket/p.csv"):
        run_inference_on_dataframe(source, model, out / "pred.csv")


def test_drift_is_told_where_the_model_has_statistics(model: Path, tmp_path: Path):
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(60))
    (model / "statistics.json").unlink()  # as of a model that others have trained
    run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
    about = json.loads((tmp_path / "pred.json").read_text())
    assert "drift" not in about
    (model / "statistics.json").write_text(json.dumps(about["statistics"]))
    same = run_inference_on_dataframe(source, model, tmp_path / "pred.csv")["drift"]
    assert same == dict.fromkeys(same, 0)
    assert {"psi_length", "psi_tokens", "psi_score"} <= same.keys()
    other = write_csv(tmp_path / "other.csv", ["sentence"], [["short"], ["x " * 90]] * 20)
    drift = run_inference_on_dataframe(other, model, tmp_path / "pred.csv")["drift"]
    assert min(drift["ks_length"], drift["psi_tokens"]) > 0.25
    assert json.loads((tmp_path / "pred.json").read_text())["drift"] == drift


# What may be met


def test_bad_row_behind_the_first_block_ends_the_command_when_it_is_met(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("classic_example.tables.BLOCK_BYTES", 2000)
    source = write_csv(tmp_path / "in.csv", HEADER, [*sentences(300), ["too", "few"]])
    with pytest.raises(WorkloadError, match="row 302: 2 fields, the header has 3"):
        run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
    assert not list(tmp_path.glob("*pred*"))


def test_little_of_a_file_is_read_ahead(tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text("sentence\n" + ("a sentence " * 90 + "\n") * 100_000)
    before = pyarrow.total_allocated_bytes()
    batches = Table(source, ["sentence"]).batches(2048)
    held = [pyarrow.total_allocated_bytes() - before for _ in batches]
    assert max(held) < 48 << 20 < source.stat().st_size


def test_odd_texts_are_predicted(model: Path, tmp_path: Path):
    texts = [
        "",
        "x" * 200_000,
        "great film \U0001f600 \u6620\u753b",
        "two\nlines",
        "word " * 50_000,
    ]
    source = write_csv(tmp_path / "in.csv", ["sentence"], [[text] for text in texts])
    csv.field_size_limit(1 << 20)
    run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
    assert [row["sentence"] for row in read_csv(tmp_path / "pred.csv")] == texts
    assert json.loads((tmp_path / "pred.json").read_text())["truncated"] == 1


def test_weights_that_give_no_numbers_are_refused(model: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    source = write_csv(tmp_path / "in.csv", ["sentence"], [["a"]])
    with pytest.raises(WorkloadError, match="the model gives no finite numbers"):
        run_inference_on_dataframe(source, model, tmp_path / "pred.csv")


def test_memory_does_not_grow_with_the_rows(model: Path, tmp_path: Path):
    def peak(rows: int) -> int:
        """Return the most memory, in bytes, that predicting so many rows has taken."""
        source = write_csv(tmp_path / f"{rows}.csv", HEADER, sentences(rows))
        return peak_memory("run-inference-on-dataframe", source, model, tmp_path / "pred.csv")

    few, many = 10_000, 40_000
    # All rows at once took 6.7 kB for each, 200 MB here.
    assert peak(many) - peak(few) < (many - few) * 500
