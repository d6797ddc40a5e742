"""Training: what comes out, that it comes out the same twice, and that failures leave nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from classic_example import evaluate, fine_tuning
from classic_example.data import BINARY, Row
from classic_example.errors import WorkloadError
from classic_example.fine_tuning import ByLength, FineTuning
from classic_example.inference import run_inference_on_dataframe
from classic_example.reports import draw_confusion_matrix, draw_training_curve
from classic_example.text_model import batches_by_length, load_classifier, resolve
from classic_example.train import train
from safetensors.torch import load_file
from workload_helpers import (
    BASE_MODEL,
    HEADER,
    Cli,
    Ended,
    everything_below,
    read_csv,
    sentences,
    write_csv,
)

FILES = {
    "README.md",
    "all_results.json",
    "config.json",
    "confusion_matrix.png",
    "lineage.json",
    "statistics.json",
    "metrics.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.json",
    "training_curve.png",
}

MakeConfig = Callable[..., Path]


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
        *("accuracy", "baseline_accuracy", "f1", "eval_loss", "steps", "seconds", "output_dir"),
        *("device", "note"),
    }
    assert ended.result["note"].startswith(f"accuracy {metrics['accuracy']:.4f} on held-out rows")
    for name in ("accuracy", "baseline_accuracy", "f1", "eval_loss", "steps", "seconds"):
        assert ended.result[name] == pytest.approx(metrics[name], abs=1e-6)
    assert ended.result["output_dir"] == str(model)
    for name in ("all_results.json", "lineage.json", "training_args.json"):
        assert json.loads((model / name).read_text())["device"] == ended.result["device"] == "cpu"
    assert trainer["eval_accuracy"] == metrics["accuracy"]
    assert trainer["eval_f0.5"] == metrics["f0.5"]
    assert metrics["train_samples"] == 160
    assert metrics["eval_samples"] == 60
    card = (model / "README.md").read_text()
    assert f"| accuracy | {metrics['accuracy']:.4f} |" in card
    precision = json.loads((model / "training_args.json").read_text())["precision"]
    assert f"in 40 steps of 16, in\n{precision} on cpu.\n" in card


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
    # The command adds the note.
    first = {k: v for k, v in trained[0].result.items() if k != "note"}
    assert again | {k: first[k] for k in ("seconds", "output_dir")} == first
    for name in ("model.safetensors", "trainer_state.json", "confusion_matrix.png"):
        assert (tmp_path / "results" / name).read_bytes() == (trained[1] / name).read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_that_divide_the_batches_learn_the_same(
    make_config: MakeConfig,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
):
    # Batches of 24, 24 and 12 rows, the last of an epoch alone in its step; Adam would hide a
    # gradient of the wrong length.
    settings = {
        "per_device_train_batch_size": 24,
        "max_train_samples": 60,
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "label_smoothing_factor": 0.1,
        "dropout": 0.0,
        "learning_rate": 0.1,
        "optim": "sgd",
        "precision": precision,
    }
    taken, step = [], FineTuning.step_in_parts

    def counted(self: FineTuning, *more: object) -> object:
        taken.append(self.parts)
        return step(self, *more)

    monkeypatch.setattr(FineTuning, "step_in_parts", counted)
    models = []
    for number, threads in enumerate((1, 3, 3)):
        monkeypatch.setattr(fine_tuning.torch, "get_num_threads", lambda count=threads: count)
        results = tmp_path / str(number)
        train(make_config(tmp_path / "config.json", output_dir=str(results), **settings))
        models.append(results / "model.safetensors")
    assert taken == 2 * 6 * [3]
    assert models[1].read_bytes() == models[2].read_bytes()
    one, three = map(load_file, models[:2])
    base = load_file(tiny_base / "model.safetensors")
    moved = {name for name in base if not one[f"bert.{name}"].equal(base[name])}
    assert len(moved) > 20
    for name, weights in one.items():
        close = {"fp32": 1e-6, "bf16": 1e-3}[precision]
        assert three[name].numpy() == pytest.approx(weights.numpy(), abs=close), name


def test_accumulated_batches_are_as_one(make_config: MakeConfig, tmp_path: Path):
    # One step of all rows: their order does not count.
    settings = {"max_train_samples": 32, "max_steps": 1, "dropout": 0.0, "warmup_ratio": 0}
    settings |= {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    models = []
    for size, steps in ((32, 1), (8, 4)):
        results = tmp_path / str(size)
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        train(make_config(tmp_path / "c.json", output_dir=str(results), **settings, **cut))
        models.append(load_file(results / "model.safetensors"))
    for name, weights in models[0].items():
        assert models[1][name].numpy() == pytest.approx(weights.numpy(), abs=1e-6), name


def test_another_seed_gives_another_model(
    trained: tuple[Ended, Path], make_config: MakeConfig, tmp_path: Path
):
    train(make_config(tmp_path / "config.json", seed=8, max_steps=2))
    first, second = (p / "model.safetensors" for p in (trained[1], tmp_path / "results"))
    assert first.read_bytes() != second.read_bytes()


def test_settings_are_used(make_config: MakeConfig, tmp_path: Path):
    result = train(
        make_config(
            tmp_path / "config.json",
            max_steps="absent",
            num_train_epochs=1.5,
            gradient_accumulation_steps=2,
            max_train_samples=64,
            max_eval_samples=20,
            lr_scheduler_type="cosine",
            eval_strategy="steps",
            eval_steps=1,
            logging_steps=1,
            dropout=0.3,
            precision="bf16",
            label_smoothing_factor=0.1,
            gradient_checkpointing=True,
        )
    )
    # 64 rows in batches of 16, two per step: 2 steps an epoch.
    assert result["steps"] == 3
    results = tmp_path / "results"
    points = json.loads((results / "trainer_state.json").read_text())["log_history"]
    assert [point["step"] for point in points if "eval_accuracy" in point] == [1, 2, 3]
    assert [point["learning_rate"] for point in points if "loss" in point] == [
        pytest.approx(5e-3 * factor) for factor in (0, 1, 0.5)
    ]
    assert json.loads((results / "metrics.json").read_text())["eval_samples"] == 20
    settings = json.loads((results / "training_args.json").read_text())
    assert (settings["precision"], settings["num_train_epochs"]) == ("bf16", 1.5)
    # Whoever trains it further does so with the base model's own.
    assert json.loads((results / "config.json").read_text())["hidden_dropout_prob"] == 0.1


def test_best_step_is_kept_and_ends_the_training(
    trained: tuple[Ended, Path], make_config: MakeConfig, tmp_path: Path, monkeypatch
):
    from safetensors.torch import load_file

    # Worse from evaluation to evaluation, as of an overfitted model.
    weights, real = [], fine_tuning.FineTuning.evaluate

    def worse(self, *given, **named):
        weights.append({name: one.clone() for name, one in self.model.state_dict().items()})
        return {**real(self, *given, **named), "eval_f1": 0.9 - len(weights) / 10}

    monkeypatch.setattr(fine_tuning.FineTuning, "evaluate", worse)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    best |= {"metric_for_best_model": "f1", "early_stopping_patience": 1, "save_strategy": "steps"}
    train(make_config(tmp_path / "config.json", max_steps=8, save_steps=2, **best))
    results = tmp_path / "results"
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["best_step"] == 2
    assert "those of step 2, where their f1 was best" in (results / "README.md").read_text()
    assert "took no part in training or in any choice" in (trained[1] / "README.md").read_text()
    kept = load_file(results / "model.safetensors")
    assert all((weight == weights[0][name]).all() for name, weight in kept.items())
    assert any((weight != weights[-1][name]).any() for name, weight in kept.items())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "results"}


def test_early_stopping_ends_the_training(make_config: MakeConfig, tmp_path: Path):
    # Nothing is learned, so that no evaluation is better than the first.
    told = {"eval_strategy": "steps", "eval_steps": 2, "early_stopping_patience": 2}
    result = train(make_config(tmp_path / "c.json", max_steps=20, learning_rate=0, **told))
    assert result["steps"] == 6


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


def other_base(kind: str, directory: Path) -> Path:
    """Make an untrained model that is no BERT, with a tokenizer of its own."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = [text for text, _, _ in sentences(200)]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "distilbert":
        tokenizer = transformers.AutoTokenizer.from_pretrained(BASE_MODEL)
    elif kind == "roberta":
        own = Tokenizer(models.BPE(unk_token="<unk>"))
        own.pre_tokenizer = pre_tokenizers.ByteLevel()
        own.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=special))
    else:
        # SentencePiece's kind: pieces with the space before them, and how likely they are.
        pieces = [(f"\u2581{word}", -5.0) for word in sorted({w for t in texts for w in t.split()})]
        own = Tokenizer(models.Unigram([*((name, 0.0) for name in special), *pieces], unk_id=3))
        own.pre_tokenizer = pre_tokenizers.Metaspace()
    if kind != "distilbert":
        names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=own, **dict(zip(names, special, strict=True))
        )
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    made = {
        "distilbert": lambda: transformers.DistilBertConfig(
            dim=32, n_heads=2, hidden_dim=64, n_layers=2, vocab_size=len(tokenizer)
        ),
        "roberta": lambda: transformers.RobertaConfig(
            **sizes, num_hidden_layers=2, vocab_size=len(tokenizer), max_position_embeddings=66
        ),
        "albert": lambda: transformers.AlbertConfig(
            **sizes, num_hidden_layers=2, vocab_size=len(tokenizer), embedding_size=16
        ),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(
            **sizes, num_hidden_layers=2, vocab_size=len(tokenizer), max_position_embeddings=66
        ),
    }
    transformers.set_seed(0)
    model = transformers.AutoModel.from_config(made[kind]())
    # Some are kept in 16 bits, in which they could not be trained.
    (model.half() if kind == "roberta" else model).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "albert", "xlm-roberta"])
def test_model_that_is_no_bert_is_trained_and_predicts(
    kind: str, make_config: MakeConfig, tmp_path: Path
):
    base = other_base(kind, tmp_path / "base")
    changes = {"model_name_or_path": str(base), "dropout": 0.0, "max_steps": 60}
    frozen = {"freeze_embeddings": True, "freeze_layers": 1}
    if kind == "albert":
        # Its layers share their weights.
        with pytest.raises(
            WorkloadError, match=r"freeze_layers is 1, the model \(albert\) has 0 l"
        ):
            train(make_config(tmp_path / "config.json", **changes, **frozen))
        return
    result = train(make_config(tmp_path / "config.json", **changes, **frozen))
    assert result["accuracy"] >= 0.9
    model = tmp_path / "results"
    config = json.loads((model / "config.json").read_text())
    assert config["dropout" if kind == "distilbert" else "hidden_dropout_prob"] == 0.1
    assert config["dtype"] == "float32"
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(40, offset=500))
    run_inference_on_dataframe(source, model, tmp_path / "pred.csv")
    rows = read_csv(tmp_path / "pred.csv")
    right = [(float(row["correct_sentence_conf"]) >= 0.5) == (row["label"] == "1") for row in rows]
    assert sum(right) >= 35


def test_weights_that_can_run_code_are_not_loaded(
    tiny_base: Path, make_config: MakeConfig, tmp_path: Path
):
    import torch

    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_base.iterdir():
        if file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(WorkloadError, match=r"in a \.bin file, which can run code"):
        train(make_config(tmp_path / "config.json", model_name_or_path=str(base)))
    with pytest.raises(WorkloadError, match="make safetensors of it"):
        load_classifier(str(base))


def test_training_is_shown_while_it_goes_on(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    seen: list = []

    def fail(*_: object) -> None:
        raise WorkloadError("the registry has gone")

    registry = SimpleNamespace(
        track=lambda params, tags: seen.append((params, tags)) or "run-7",
        run_url=lambda run_id: f"http://registry/{run_id}",
        log=lambda run_id, step, metrics: seen.append((run_id, step, metrics["loss"])),
        finish=lambda _, status: seen.append(status),
    )
    monkeypatch.setattr(fine_tuning, "registry_from_environment", lambda: registry)
    monkeypatch.setenv("REGISTRY", "mlflow")
    result = train(make_config(tmp_path / "config.json", max_steps=10))
    assert result["run_url"] == "http://registry/run-7"
    (params, tags), *points, finished = seen
    assert (params["max_steps"], tags["device"]) == (10, "cpu")
    assert [one[:2] for one in points] == [("run-7", 5), ("run-7", 10)]
    assert finished == "FINISHED"
    lineage = json.loads((tmp_path / "results" / "lineage.json").read_text())
    assert lineage["tracking_run"] == "run-7"
    history = json.loads((tmp_path / "results" / "trainer_state.json").read_text())["log_history"]
    assert [point["loss"] for point in history] == [loss for *_, loss in points]

    registry.log = fail
    result = train(make_config(tmp_path / "config.json", max_steps=10))
    assert result["steps"] == 10
    assert caplog.text.count("the training is not tracked: the registry has gone") == 1

    registry.log = lambda *_: None
    monkeypatch.setattr(fine_tuning.FineTuning, "held_out_figures", fail)
    with pytest.raises(WorkloadError, match="the registry has gone"):
        train(make_config(tmp_path / "config.json", max_steps=1))
    assert seen[-1] == "FAILED"

    def stop(*_: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(fine_tuning.FineTuning, "held_out_figures", stop)
    with pytest.raises(SystemExit):
        train(make_config(tmp_path / "config.json", max_steps=1))
    assert seen[-1] == "KILLED"


def test_sample_is_drawn_from_all_rows(make_config: MakeConfig, tmp_path: Path):
    ordered = sorted(sentences(160), key=lambda row: row[1])
    data = write_csv(tmp_path / "data.csv", HEADER, ordered)
    files = {"train_file": str(data), "max_train_samples": 40, "max_steps": 1}
    train(make_config(tmp_path / "config.json", **files))
    card = (tmp_path / "results" / "README.md").read_text()
    assert "on 40 rows (negative 0," not in card
    assert "positive 0)" not in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "/no/such/model"}, "cannot load the tokenizer '/no/such/model'"),
        ({"freeze_layers": 3}, r"freeze_layers is 3, the model \(bert\) has 2 layers of its own"),
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
        f"ERROR: {bad} row 2: no other row has label '1'; where it is meant, name all labels by "
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
    return [Row(text, label) for text, label, _ in pairs]


def test_baseline_learns_words_and_is_scored_on_held_out_rows():
    perfect = evaluate.baseline(rows(sentences(100)), rows(sentences(40, offset=101)), BINARY)
    assert perfect["accuracy"] == 1.0
    flipped = [Row(row.sentence, 1 - row.label) for row in rows(sentences(40))]
    assert evaluate.baseline(rows(sentences(100)), flipped, BINARY)["accuracy"] == 0.0


def test_baseline_reads_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(evaluate, "BASELINE_CHARACTERS", 2000)
    caplog.set_level("INFO")
    found = evaluate.baseline(rows(sentences(100)), rows(sentences(40, offset=101)), BINARY)
    assert 30 < found["samples"] < 60
    assert f"logistic regression on {found['samples']} of 100 rows" in caplog.text


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
    labels = [0] * 10 + [1] * 10
    draw_confusion_matrix(labels, labels[1:] + labels[:1], BINARY, tmp_path / "good.png")
    draw_confusion_matrix(labels, labels[9:] + labels[:9], BINARY, tmp_path / "bad.png")
    assert (pixels(tmp_path / "good.png") != pixels(tmp_path / "bad.png")).mean() > 0.1
    final = {"accuracy": 0.8, "baseline_accuracy": 0.7, "steps": 2}
    falling, rising = [
        [
            {"step": 1, "loss": a},
            {"step": 2, "loss": b},
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
    # 100 rows in batches of 8: the DataLoader cuts the order into the batches that it was made of.
    sampler = ByLength(encoded, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(100))
    widths = [[len(encoded[at]) for at in first[start : start + 8]] for start in range(0, 100, 8)]
    assert sum(max(one) - min(one) for one in widths) < 20
    assert list(ByLength(encoded, 8, seed=1)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(ByLength(encoded, 8, seed=2)) != first


def test_model_names_are_looked_up_in_the_image_first(tmp_path: Path):
    assert resolve("sentence-transformers/all-MiniLM-L6-v2") == str(BASE_MODEL)
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("all-MiniLM-L6-v2") == str(BASE_MODEL)
    # Another's model of that name is another model.
    for name in ("some/other-model", "acme/all-MiniLM-L6-v2"):
        assert resolve(name) == name
