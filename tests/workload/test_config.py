"""The training configuration."""

import dataclasses
import json
from pathlib import Path

import pytest
from classic_example.config import parse_config, read_config
from classic_example.errors import WorkloadError
from workload_helpers import APP, BASE_MODEL

REQUIRED = {
    "model_name_or_path": "m",
    "train_file": "t",
    "validation_file": "v",
    "output_dir": "o",
}

# The keys of the configuration that the original course image ships as tests/data/test_config.json.
ORIGINAL = {
    "model_name_or_path": "prajjwal1/bert-tiny",
    "use_fast_tokenizer": True,
    "train_file": "/tmp/data/train.csv",
    "validation_file": "/tmp/data/val.csv",
    "max_seq_length": 128,
    "output_dir": "/tmp/results",
    "eval_strategy": "steps",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "eval_delay": 0,
    "learning_rate": 5e-05,
    "weight_decay": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-08,
    "max_grad_norm": 1,
    "num_train_epochs": 3,
    "max_steps": 6,
    "lr_scheduler_type": "linear",
    "logging_strategy": "steps",
    "logging_first_step": True,
    "logging_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 5,
    "no_cuda": False,
    "seed": 42,
    "eval_steps": 500,
    "run_name": "results",
    "disable_tqdm": False,
    "remove_unused_columns": True,
    "label_names": None,
    "load_best_model_at_end": True,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "report_to": [],
}


def test_original_configuration_is_accepted():
    config, ignored = parse_config(ORIGINAL, "original")
    assert config.max_steps == 6
    assert config.per_device_train_batch_size == 2
    assert config.eval_steps == 500
    assert {"save_strategy", "run_name", "report_to"} <= set(ignored)
    assert not {"learning_rate", "load_best_model_at_end"} & set(ignored)
    assert (config.load_best_model_at_end, config.best_metric) == (True, "loss")
    assert not config.best_is_greatest


def test_every_setting_of_the_trainer_is_accepted_at_its_default():
    from transformers import TrainingArguments

    made_at_start = {"lr_scheduler_kwargs": {}, "accelerator_config": {"split_batches": False}}
    content = {
        one.name: made_at_start.get(one.name, one.default)
        for one in dataclasses.fields(TrainingArguments)
        if one.name not in ("output_dir", "evaluation_strategy")
    }
    assert parse_config({**content, **REQUIRED}, "c")[0] == parse_config(REQUIRED, "c")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": True}, "c: fp16 is True, which would change the training; it can only be False"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1, which would change"),
        ({"optim": "adafactor"}, "it can only be 'adamw_torch'"),
        ({"push_to_hub": True}, "push_to_hub is True"),
        ({"data_seed": 7}, "data_seed is 7"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last is True"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "; it cannot be set"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs an eval_strategy"),
        ({"metric_for_best_model": "bleu"}, "metric_for_best_model is 'bleu', allowed: loss"),
        ({"labels": ["a", "a"]}, "labels must be a list of two or more different texts"),
        ({"labels": "a, b"}, "labels must be a list of two or more different texts, not 'a, b'"),
    ],
)
def test_setting_that_would_change_the_model_is_refused(changes: dict, message: str):
    with pytest.raises(WorkloadError) as caught:
        parse_config({**REQUIRED, **changes}, "c")
    assert message in str(caught.value)


def test_bf16_of_the_trainer_is_a_precision():
    assert parse_config({**REQUIRED, "bf16": True}, "c")[0].precision == "bf16"
    assert (
        parse_config({**REQUIRED, "bf16": False, "precision": "auto"}, "c")[0].precision == "auto"
    )


@pytest.mark.parametrize(
    "path", ["tests/data/test_config.json", "conf/example.json", "conf/fast.json"]
)
def test_shipped_configuration_is_valid_and_complete(path: str):
    config, ignored = read_config(APP / path)
    assert ignored == []
    assert Path(config.model_name_or_path).name == BASE_MODEL.name


def test_pipeline_configuration_uses_the_paths_of_the_pipeline():
    config, _ = read_config(APP / "tests/data/test_config.json")
    assert config.train_file == "/tmp/data/train.csv"
    assert config.validation_file == "/tmp/data/val.csv"
    assert config.output_dir == "/tmp/results"


def test_older_name_of_a_setting_is_understood():
    config, _ = parse_config({**REQUIRED, "evaluation_strategy": "epoch"}, "c")
    assert config.eval_strategy == "epoch"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rte": 1}, "c: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ({"zzzz": 1}, "c: unknown key 'zzzz'"),
        ({"train_file": ""}, "c: missing key train_file"),
        ({"train_file": 7}, "c: train_file must be a text, not 7"),
        ({"learning_rate": "fast"}, "c: learning_rate must be a number, not 'fast'"),
        ({"learning_rate": -1}, "c: learning_rate is -1, it must be at least 0"),
        ({"learning_rate": float("nan")}, "c: learning_rate is nan"),
        ({"seed": 1.5}, "c: seed must be a whole number, not 1.5"),
        ({"seed": True}, "c: seed must be a whole number, not True"),
        ({"seed": None}, "c: seed must be a whole number, not None"),
        ({"freeze_embeddings": 1}, "c: freeze_embeddings must be true or false, not 1"),
        ({"per_device_train_batch_size": 0}, "it must be at least 1"),
        (
            {"lr_scheduler_type": "magic"},
            "c: lr_scheduler_type is 'magic', allowed: linear, cosine",
        ),
        ({"eval_strategy": "daily"}, "c: eval_strategy is 'daily', allowed: no, steps, epoch"),
        ({"precision": "int8"}, "c: precision is 'int8', allowed: fp32, bf16, auto"),
        ({"max_steps": 0, "num_train_epochs": 0}, "max_steps or num_train_epochs must be above 0"),
    ],
)
def test_bad_value_is_refused_in_plain_words(changes: dict, message: str):
    with pytest.raises(WorkloadError) as caught:
        parse_config({**REQUIRED, **changes}, "c")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: Expecting property name enclosed in double quotes at line 1"),
        ("[]", "must hold a JSON object, not list"),
        ("", "is not valid JSON"),
        (json.dumps({}), "missing key model_name_or_path, train_file, validation_file, output_dir"),
    ],
)
def test_broken_file_is_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(WorkloadError) as caught:
        read_config(path)
    assert message in str(caught.value)


def test_directory_is_not_a_configuration(tmp_path: Path):
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_config(tmp_path)


def test_variables_go_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**REQUIRED, "max_steps": 350}))
    monkeypatch.setenv("TRAIN_MAX_STEPS", "50")
    monkeypatch.setenv("TRAIN_PRECISION", "bf16")
    monkeypatch.setenv("TRAIN_DROPOUT", "null")
    monkeypatch.setenv("TRAIN_LABELS", '["ham", "spam"]')
    config, _ = read_config(path)
    assert (config.max_steps, config.precision, config.dropout) == (50, "bf16", None)
    assert config.labels == ("ham", "spam")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("TRAIN_MAX_STEP", "50", "unknown key 'max_step'; did you mean 'max_steps'?"),
        ("TRAIN_MAX_STEPS", "many", "max_steps must be a whole number, not 'many'"),
    ],
)
def test_wrong_variable_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(REQUIRED))
    monkeypatch.setenv(name, text)
    with pytest.raises(WorkloadError, match=r"the variables TRAIN_\*: ") as caught:
        read_config(path)
    assert message in str(caught.value)
