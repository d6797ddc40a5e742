"""How a step hands over its result."""

import base64
import json

import pytest
from classic_example import cli as results
from classic_example.errors import one_line, scrub


def test_report_prints_and_writes_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESULT_FILE", str(tmp_path / "result"))
    results.report({"rows": 3, "name": "é"})
    printed = capsys.readouterr().out
    assert printed.startswith("RESULT ")
    assert json.loads(printed.removeprefix("RESULT ")) == {"rows": 3, "name": "é"}
    assert printed.removeprefix("RESULT ").strip() == (tmp_path / "result").read_text()


def test_termination_log_is_the_default_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.delenv("RESULT_FILE", raising=False)
    monkeypatch.setattr(results, "TERMINATION_LOG", tmp_path / "log")
    results.report({"rows": 3})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "log").touch()
    results.report({"rows": 3})
    assert (tmp_path / "log").read_text() == '{"rows": 3}'


def test_result_too_large_for_a_termination_message_is_refused(monkeypatch):
    monkeypatch.setenv("RESULT_FILE", "/dev/null")
    with pytest.raises(ValueError, match="the limit is 4096"):
        results.report({"text": "x" * 4096})


def test_secrets_are_scrubbed_plain_and_encoded(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    encoded = base64.b64encode(f"api:{'k' * 40}".encode()).decode()
    text = scrub(f"key {'k' * 40} in http://user:secret@host/ and Basic {encoded}")
    assert "kkkk" not in text
    assert "secret" not in text
    assert encoded not in text


def test_error_text_is_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 5000))) == 600


TRAINED = {"accuracy": 0.83126, "baseline_accuracy": 0.79, "steps": 6}
PREDICTED = {"rows": 872, "model_version": "v3", "predictions": "/tmp/pred.csv"}
STORED = PREDICTED | {"predictions": "s3://bucket/pred.csv"}
NOTES = [
    ("train", TRAINED, "accuracy 0.8313 on held-out rows, baseline 0.7900"),
    ("gate", {"version": "v3", "decision": "refused", "reason": "no"}, "v3 is refused: no"),
    ("run-inference-on-dataframe", PREDICTED, "872 rows by v3: inference_dag/r/pred.csv"),
    ("join-predictions", STORED, "872 rows by v3: s3://bucket/pred.csv"),
    ("run-inference-on-dataframe", {"rows": 8, "shard": "1/4"}, None),
    ("rollback", {"name": "m"}, None),
]


@pytest.mark.parametrize(("command", "result", "told"), NOTES)
def test_a_step_says_in_a_line_what_it_has_done(monkeypatch, command, result, told):
    monkeypatch.setenv("ML_PIPELINES_RUN_DIRECTORY", "inference_dag/r")
    assert results.note(command, result) == ({"note": told} if told else {})
