"""Labels and lengths: what the data or a model says is kept, all the way to the predictions."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from classic_example.data import BINARY, Labels, read_labelled
from classic_example.errors import WorkloadError
from classic_example.inference import run_inference_on_dataframe
from classic_example.text_model import new_classifier
from classic_example.train import train
from workload_helpers import HEADER, Ended, read_csv, sentences, write_csv

WORDS = {"bad": "awful", "fair": "decent", "good": "great"}


def graded(count: int) -> Iterator[list]:
    """Yield rows of three labels."""
    for number in range(count):
        label = list(WORDS)[number % 3]
        yield [f"{WORDS[label]} {WORDS[label]} {WORDS[label]} {number % 7}", label, number]


@pytest.fixture(scope="module")
def three(make_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with data and a model of three labels, which are texts."""
    directory = tmp_path_factory.mktemp("three")
    data = write_csv(directory / "data.csv", HEADER, list(graded(90)))
    files = {"train_file": str(data), "validation_file": str(data)}
    train(make_config(directory / "config.json", **files, max_steps=80))
    return directory


def predictions(source: Path, model: Path, target: Path) -> tuple[list[dict], dict]:
    """Predict; return the rows and the description."""
    run_inference_on_dataframe(source, model, target)
    return read_csv(target), json.loads(target.with_suffix(".json").read_text())


def test_labels_of_the_data_are_those_of_the_model(three: Path, tmp_path: Path):
    model = three / "results"
    config = json.loads((model / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert json.loads((model / "training_args.json").read_text())["labels"] == list(WORDS)
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["macro_f1"] == metrics["f1"] == metrics["accuracy"] == 1.0
    card = (model / "README.md").read_text()
    assert "# Text classification: bad, fair, good\n" in card
    assert "on 90 rows (bad 30, fair 30, good 30) in 80 steps of 16" in card
    rows, description = predictions(three / "data.csv", model, tmp_path / "pred.csv")
    probabilities = [f"probability_{name}" for name in WORDS]
    assert list(rows[0]) == [*HEADER, "predicted_label", "predicted_score", *probabilities]
    assert all(row["predicted_label"] == row["label"] for row in rows)
    for row in rows:
        assert row["predicted_score"] == row[f"probability_{row['label']}"]
        assert sum(float(row[name]) for name in probabilities) == pytest.approx(1, abs=1e-5)
    assert description["labels"] == {"bad": 30, "fair": 30, "good": 30}
    # No label of these is the positive one.
    assert (description["positive_label"], "positive" in description) == (None, False)


def test_model_of_other_labels_gets_a_new_head(
    three: Path, make_config: Callable[..., Path], tmp_path: Path
):
    train(make_config(tmp_path / "c.json", model_name_or_path=str(three / "results"), max_steps=1))
    config = json.loads((tmp_path / "results" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}


def test_head_of_two_labels_is_that_of_transformers(tiny_base: Path):
    # So that a seed gives the model that it has always given.
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(7)
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2)
    torch.manual_seed(7)
    ours = new_classifier(str(tiny_base), BINARY, None, None)
    assert (ours.classifier.weight == theirs.classifier.weight).all()


def turned_round(model: Path, target: Path, **names: str) -> Path:
    """Copy a model of two labels and give it the other order, with the same answers."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, target)
    weights = load_file(target / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][::-1].copy()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config["id2label"] = {"0": names["first"], "1": names["second"]}
    config["label2id"] = {names["first"]: 0, names["second"]: 1}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_model_with_its_labels_in_the_other_order_is_right(
    trained: tuple[Ended, Path], tmp_path: Path
):
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(40, offset=500))
    other = turned_round(trained[1], tmp_path / "other", first="POSITIVE", second="NEGATIVE")
    # As others publish models: none of the files that are for people.
    for name in ("README.md", "metrics.json"):
        (other / name).unlink()
    rows, description = predictions(source, other, tmp_path / "pred.csv")
    assert list(rows[0]) == [*HEADER, "correct_sentence_conf"]
    assert description["positive_label"] == "POSITIVE"
    right = [(float(row["correct_sentence_conf"]) >= 0.5) == (row["label"] == "1") for row in rows]
    assert sum(right) >= 38


def test_second_of_two_labels_is_the_positive_one(trained: tuple[Ended, Path], tmp_path: Path):
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(40, offset=500))
    other = turned_round(trained[1], tmp_path / "other", first="spam", second="ham")
    rows, description = predictions(source, other, tmp_path / "pred.csv")
    assert description["positive_label"] == "ham"
    for row in rows:
        assert row["correct_sentence_conf"] == row["probability_ham"]
        # Its own order: first is what the training called positive.
        assert (row["predicted_label"] == "spam") == (float(row["probability_spam"]) > 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "does not choose one label of several"),
        (None, r"is not a trained classifier: it has no classifier\."),
    ],
)
def test_model_that_chooses_no_label_is_refused(
    trained: tuple[Ended, Path], tiny_base: Path, tmp_path: Path, change: dict | None, message: str
):
    model = shutil.copytree(trained[1] if change else tiny_base, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | (change or {})
    (model / "config.json").write_text(json.dumps(config))
    source = write_csv(tmp_path / "in.csv", HEADER, sentences(4))
    with pytest.raises(WorkloadError, match=message):
        run_inference_on_dataframe(source, model, tmp_path / "pred.csv")


def test_columns_of_the_predictions_replace_those_of_the_input(three: Path, tmp_path: Path):
    source = write_csv(tmp_path / "in.csv", ["predicted_label", "sentence"], [["old", "a film"]])
    rows, _ = predictions(source, three / "results", tmp_path / "pred.csv")
    assert list(rows[0])[:2] == ["sentence", "predicted_label"]
    assert rows[0]["predicted_label"] in WORDS


@pytest.mark.parametrize(
    ("texts", "configured", "names", "numbers"),
    [
        (["0", "1", "1.0"], None, BINARY, [0, 1, 1]),
        (["spam", "ham", "spam", "ham"], None, ("ham", "spam"), [1, 0, 1, 0]),
        (["spam", "ham", "1"], ("ham", "spam"), ("ham", "spam"), [1, 0, 1]),
        (["10", "9", "9", "10"], None, ("9", "10"), [1, 0, 0, 1]),
        (["1", "2", "5"], ("1", "2", "3", "4", "5"), ("1", "2", "3", "4", "5"), [0, 1, 4]),
        (["0", "1", "2"], ("low", "middle", "high"), ("low", "middle", "high"), [0, 1, 2]),
    ],
)
def test_labels_come_from_the_file_or_the_configuration(
    tmp_path: Path, texts: list[str], configured: tuple | None, names: tuple, numbers: list[int]
):
    path = write_csv(tmp_path / "in.csv", HEADER, [["a", text, 0] for text in texts])
    rows, labels = read_labelled(path, Labels.named(configured) if configured else None)
    assert labels.names == names
    assert [row.label for row in rows] == numbers


def test_label_that_the_training_does_not_know_is_refused(tmp_path: Path):
    path = write_csv(tmp_path / "in.csv", HEADER, [["a", "ham", 0], ["b", "eggs", 1]])
    with pytest.raises(WorkloadError, match="row 3: label eggs is unknown; allowed: ham, spam"):
        read_labelled(path, Labels.named(("ham", "spam")))
    # A number is only what it says where labels are numbers themselves.
    path = write_csv(tmp_path / "in.csv", HEADER, [["a", "1", 0], ["b", "0", 1]])
    with pytest.raises(WorkloadError, match="row 3: label 0 is unknown; allowed: 1, 2"):
        read_labelled(path, Labels.named(("1", "2")))


# One length


def test_length_of_the_training_is_that_of_the_tokenizer_and_the_card(trained: tuple[Ended, Path]):
    saved = json.loads((trained[1] / "tokenizer_config.json").read_text())
    assert saved["model_max_length"] == 24
    assert "on the first 24 tokens of a text" in (trained[1] / "README.md").read_text()


def test_prediction_cuts_where_the_training_did_and_counts(
    trained: tuple[Ended, Path], tmp_path: Path
):
    text = "the film was great " * 5
    texts = [text, f"{text} and awful to the end", "the film " * 11, "the film " * 11 + "x"]
    source = write_csv(tmp_path / "in.csv", ["sentence"], [[one] for one in texts])
    rows, description = predictions(source, trained[1], tmp_path / "pred.csv")
    # 20 words and 27, of which 22 fit beside the marks; 22 words and 23.
    assert (description["max_tokens"], description["truncated"]) == (24, 2)
    assert rows[2]["correct_sentence_conf"] == rows[3]["correct_sentence_conf"]


def test_snippet_of_the_card_takes_a_long_text(
    trained: tuple[Ended, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    card = (trained[1] / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    text = "the film was great " * 2000
    assert "a text of any length" in snippet
    monkeypatch.chdir(trained[1])
    monkeypatch.setenv("PREDICT_PRECISION", "fp32")
    # The last line is the answer.
    *lines, last = snippet.replace('"a text of any length"', repr(text)).strip().splitlines()
    scope: dict = {}
    exec("\n".join(lines), scope)
    (said,) = eval(last, scope)
    source = write_csv(tmp_path / "in.csv", ["sentence"], [[text]])
    rows, _ = predictions(source, trained[1], tmp_path / "pred.csv")
    confidence = float(rows[0]["correct_sentence_conf"])
    expected = confidence if said["label"] == "positive" else 1 - confidence
    assert said["score"] == pytest.approx(expected, abs=1e-5)
