"""Training: what comes out, that it comes out the same twice, and that failures leave nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from classic_example import evaluate
from classic_example.config import TrainingConfig
from classic_example.data import BINARY, Row
from classic_example.errors import WorkloadError
from classic_example.plots import draw_confusion_matrix, draw_training_curve
from classic_example.text_model import (
    batches_by_length,
    computes_bf16,
    resolve,
    resolve_precision,
)
from classic_example.train import endless_batches, evaluation_steps, learning_rate_factor, train
from workload_helpers import BASE_MODEL, HEADER, Cli, Ended, everything_below, sentences, write_csv

FILES = {
    "README.md",
    "all_results.json",
    "config.json",
    "confusion_matrix.png",
    "lineage.json",
    "metrics.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.json",
    "training_curve.png",
    "vocab.txt",
}

MakeConfig = Callable[..., Path]


def settings(**changes: object) -> TrainingConfig:
    return TrainingConfig("model", "train", "val", "out", **changes)


def test_training_writes_a_whole_model(trained: tuple[Ended, Path]):
    _, model = trained
    assert everything_below(model) == FILES
    assert sorted(p.name for p in model.parent.iterdir()) == ["config.json", "results"]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in model.iterdir())
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "negative", "1": "positive"}


def test_result_agrees_with_the_files(trained: tuple[Ended, Path]):
    ended, model = trained
    metrics = json.loads((model / "metrics.json").read_text())
    trainer = json.loads((model / "all_results.json").read_text())
    assert set(ended.result) == {
        *("accuracy", "baseline_accuracy", "f1", "eval_loss", "steps", "seconds", "output_dir")
    }
    for name in ("accuracy", "baseline_accuracy", "f1", "eval_loss", "steps", "seconds"):
        assert ended.result[name] == pytest.approx(metrics[name], abs=1e-6)
    assert ended.result["output_dir"] == str(model)
    assert trainer["eval_accuracy"] == metrics["accuracy"]
    assert trainer["eval_f0.5"] == metrics["f0.5"]
    assert metrics["train_samples"] == 160
    assert metrics["eval_samples"] == 60
    assert f"| accuracy | {metrics['accuracy']:.4f} |" in (model / "README.md").read_text()


def test_model_learns_what_can_be_learned(trained: tuple[Ended, Path]):
    ended, model = trained
    assert ended.result["accuracy"] >= 0.95
    points = json.loads((model / "trainer_state.json").read_text())["log_history"]
    assert points[-1]["step"] == 40
    assert points[-1]["loss"] < 0.5 < points[0]["loss"]


def test_lineage_names_run_and_data(trained: tuple[Ended, Path], data_directory: Path):
    origin = json.loads((trained[1] / "lineage.json").read_text())
    assert origin["dag_id"] == "training_dag"
    assert origin["run_id"] == "manual__1"
    assert origin["dags_commit"] == "c0ffee"
    assert origin["image"] == "registry.example/trainer:1"
    assert origin["parameters"] == '{"max_steps": 40}'
    assert origin["data_source"].startswith(f"files {data_directory}")
    assert len(origin["data_sha256"]) == 64
    assert (
        "Made by dag_id `training_dag`, run_id `manual__1`, dags_commit `c0ffee`, "
        'image `registry.example/trainer:1`, parameters `{"max_steps": 40}`.'
        in (trained[1] / "README.md").read_text()
    )


def test_same_seed_gives_the_same_model_to_the_last_bit(
    trained: tuple[Ended, Path], make_config: MakeConfig, tmp_path: Path
):
    # The first in a process of its own, this one beside everything that the tests have loaded.
    again = train(make_config(tmp_path / "config.json"))
    assert {k: v for k, v in again.items() if k not in ("seconds", "output_dir")} == {
        k: v for k, v in trained[0].result.items() if k not in ("seconds", "output_dir")
    }
    for name in ("model.safetensors", "trainer_state.json", "confusion_matrix.png"):
        assert (tmp_path / "results" / name).read_bytes() == (trained[1] / name).read_bytes()


def test_another_seed_gives_another_model(
    trained: tuple[Ended, Path], make_config: MakeConfig, tmp_path: Path
):
    train(make_config(tmp_path / "config.json", seed=8, max_steps=2))
    first, second = (p / "model.safetensors" for p in (trained[1], tmp_path / "results"))
    assert first.read_bytes() != second.read_bytes()


def test_every_optional_setting_is_used(make_config: MakeConfig, tmp_path: Path):
    result = train(
        make_config(
            tmp_path / "config.json",
            max_steps="absent",
            num_train_epochs=1.5,
            gradient_accumulation_steps=2,
            max_train_samples=64,
            max_eval_samples=20,
            lr_scheduler_type="cosine",
            warmup_ratio="absent",
            warmup_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            freeze_embeddings=True,
            freeze_layers=1,
            dropout=0.1,
            precision="bf16",
            max_grad_norm=0,
        )
    )
    # 64 rows in batches of 16, two per step: 2 steps an epoch.
    assert result["steps"] == 3
    points = json.loads((tmp_path / "results" / "trainer_state.json").read_text())["log_history"]
    assert [point["step"] for point in points if "eval_accuracy" in point] == [1, 2]
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["eval_samples"] == 20
    config = json.loads((tmp_path / "results" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.1


def test_best_step_is_what_is_kept(
    trained: tuple[Ended, Path], make_config: MakeConfig, tmp_path: Path, monkeypatch
):
    from classic_example import train as training
    from safetensors.torch import load_file

    # Worse from evaluation to evaluation, as of an overfitted model.
    losses, weights, real = iter([0.3, 0.4, 0.5, 0.6]), [], training.figures

    def figures(model, *given):
        state = model.classifier.state_dict()
        weights.append({name: weight.clone() for name, weight in state.items()})
        return {**real(model, *given), "loss": next(losses)}

    monkeypatch.setattr(training, "figures", figures)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    train(make_config(tmp_path / "config.json", max_steps=8, **best))
    results = tmp_path / "results"
    assert json.loads((results / "metrics.json").read_text())["best_step"] == 2
    assert "those of step 2, where their loss was best" in (results / "README.md").read_text()
    assert "took no part in training or in any choice" in (trained[1] / "README.md").read_text()
    kept = load_file(results / "model.safetensors")
    assert len(weights) == 4
    assert all((weight == weights[0][name]).all() for name, weight in kept.items())
    assert any((weight != weights[-1][name]).any() for name, weight in kept.items())


def test_frozen_weights_stay_and_others_move(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path
):
    from safetensors.numpy import load_file

    train(
        make_config(tmp_path / "config.json", max_steps=2, freeze_embeddings=True, freeze_layers=1)
    )
    before = load_file(tiny_base / "model.safetensors")
    after = load_file(tmp_path / "results" / "model.safetensors")
    moved = {
        name for name, weights in before.items() if not (after[f"bert.{name}"] == weights).all()
    }
    assert not any(name.startswith(("embeddings.", "encoder.layer.0.")) for name in moved)
    assert any(name.startswith("encoder.layer.1.") for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "/no/such/model"}, "cannot load the tokenizer '/no/such/model'"),
        ({"freeze_layers": 3}, "freeze_layers is 3, the model has 2 layers"),
        ({"learning_rate": 1.0, "max_grad_norm": 0, "max_steps": 300}, "the training loss is nan"),
    ],
)
def test_failed_training_leaves_no_model(
    make_config: MakeConfig, tmp_path: Path, changes: dict, message: str, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "learning_rate" in changes:
        # A loss that explodes on demand is hard to arrange; one bad weight is the same fault.
        import torch

        real = torch.optim.AdamW.step

        def poisoned(self, *arguments, **options):
            real(self, *arguments, **options)
            self.param_groups[0]["params"][-1].data.fill_(math.nan)

        monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    stale = tmp_path / "results"
    stale.mkdir()
    (stale / "model.safetensors").write_text("of an earlier attempt")
    with pytest.raises(WorkloadError, match=message):
        train(make_config(tmp_path / "config.json", **changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_bad_data_ends_the_command_with_one_line(cli: Cli, make_config: MakeConfig, tmp_path: Path):
    bad = write_csv(tmp_path / "bad.csv", HEADER, [["fine", 1, 0], ["odd", 3, 1]])
    ended = cli("train", make_config(tmp_path / "config.json", train_file=str(bad)))
    assert ended.error == (
        f"ERROR: {bad} line 2: no other row has label '1'; where it is meant, name all labels by "
        "`labels` in the configuration"
    )
    assert ended.seconds < 30


def test_unwritable_output_ends_the_command_with_one_line(
    cli: Cli, make_config: MakeConfig, tmp_path: Path
):
    (tmp_path / "file").write_text("in the way")
    config = make_config(tmp_path / "config.json", output_dir=str(tmp_path / "file" / "results"))
    ended = cli("train", config)
    assert f"cannot write {tmp_path}/file/results: Not a directory" in ended.error


def rows(pairs: list[list]) -> list[Row]:
    return [Row(*pair) for pair in pairs]


def test_baseline_learns_words_and_is_scored_on_held_out_rows():
    perfect = evaluate.baseline(rows(sentences(100)), rows(sentences(40, offset=101)), BINARY)
    assert perfect["accuracy"] == 1.0
    flipped = [Row(row.sentence, 1 - row.label, row.idx) for row in rows(sentences(40))]
    assert evaluate.baseline(rows(sentences(100)), flipped, BINARY)["accuracy"] == 0.0


def test_scores_follow_their_definitions():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    labels, predicted = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    scores = evaluate.scores(labels, predicted, BINARY)
    assert scores["accuracy"] == pytest.approx(0.7)
    assert scores["precision"] == pytest.approx(3 / 4)
    assert scores["recall"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["f0.5"] == pytest.approx(1.25 * 0.75 * 0.6 / (0.25 * 0.75 + 0.6))
    of_negative = 2 * 4 / (2 * 4 + 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + of_negative) / 2)
    # With the positive label first, the same rows have other numbers.
    turned = [[1 - one for one in rows] for rows in (labels, predicted)]
    assert evaluate.scores(*turned, ("positive", "negative")) == scores
    assert evaluate.confusion(labels, predicted, 2) == [[4, 1], [2, 3]]


def test_cross_entropy_follows_its_definition():
    logits = numpy.array([[0.0, 0.0], [0.0, math.log(3)]])
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert evaluate.cross_entropy([0, 1], logits) == pytest.approx(expected)


def pixels(path: Path) -> numpy.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        return numpy.asarray(image.convert("RGB"))


def test_plots_are_pictures_of_their_numbers(trained: tuple[Ended, Path], tmp_path: Path):
    for name in ("confusion_matrix.png", "training_curve.png"):
        picture = pixels(trained[1] / name)
        assert min(picture.shape[:2]) > 300
        assert len(numpy.unique(picture.reshape(-1, 3), axis=0)) > 50
    draw_confusion_matrix([[9, 1], [1, 9]], BINARY, tmp_path / "good.png")
    draw_confusion_matrix([[1, 9], [9, 1]], BINARY, tmp_path / "bad.png")
    assert (pixels(tmp_path / "good.png") != pixels(tmp_path / "bad.png")).mean() > 0.1
    final = {"accuracy": 0.8, "baseline_accuracy": 0.7, "steps": 2}
    falling, rising = [
        [
            {"step": 1, "loss": a, "train_accuracy": 0.5},
            {"step": 2, "loss": b, "train_accuracy": 0.6},
        ]
        for a, b in ((0.7, 0.2), (0.2, 0.7))
    ]
    draw_training_curve(falling, final, tmp_path / "falling.png")
    draw_training_curve(rising, final, tmp_path / "rising.png")
    assert (pixels(tmp_path / "falling.png") != pixels(tmp_path / "rising.png")).any()


def test_batches_hold_every_row_once_an_epoch():
    encoded = [[0] * (1 + number % 7) for number in range(100)]
    batches = list(batches_by_length(encoded, range(100), 8))
    assert sorted(at for batch in batches for at in batch) == list(range(100))
    source = endless_batches(encoded, 8, seed=1)
    first, second = ([next(source) for _ in range(13)] for _ in range(2))
    assert sorted(at for batch in first for at in batch) == list(range(100))
    assert first != second
    again = endless_batches(encoded, 8, seed=1)
    assert [next(again) for _ in range(13)] == first


def test_learning_rate_schedules():
    linear = learning_rate_factor(settings(warmup_steps=2), 10)
    assert [linear(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0])
    cosine = learning_rate_factor(settings(lr_scheduler_type="cosine"), 10)
    assert [cosine(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0], abs=1e-9)
    constant = learning_rate_factor(settings(lr_scheduler_type="constant", warmup_steps=5), 10)
    assert {constant(step) for step in range(10)} == {1.0}


def test_evaluations_on_the_way():
    assert evaluation_steps(settings(), 10, 4) == set()
    assert evaluation_steps(settings(eval_strategy="steps", eval_steps=3), 9, 4) == {3, 6}
    assert evaluation_steps(settings(eval_strategy="epoch"), 10, 4) == {4, 8}
    assert evaluation_steps(settings(eval_strategy="epoch", eval_delay=2), 10, 4) == {8}
    best = settings(eval_strategy="steps", eval_steps=5, load_best_model_at_end=True)
    assert evaluation_steps(best, 9, 4) == {5, 9}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512_bf16 rdpid", True), ("fpu amx_bf16", True), ("fpu avx2 avx512f", False)],
)
def test_bf16_is_chosen_by_the_processor(flags: str, expected: bool):
    assert computes_bf16(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n") is expected


def test_precision_auto_becomes_what_is_used():
    assert resolve_precision("auto") in ("fp32", "bf16")
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("bf16") == "bf16"


def test_model_names_are_looked_up_in_the_image_first(tmp_path: Path):
    assert resolve("sentence-transformers/all-MiniLM-L6-v2") == str(BASE_MODEL)
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("all-MiniLM-L6-v2") == str(BASE_MODEL)
    # Another's model of that name is another model.
    for name in ("some/other-model", "acme/all-MiniLM-L6-v2"):
        assert resolve(name) == name
