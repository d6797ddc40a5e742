"""The training configuration."""

import dataclasses
import json
from pathlib import Path

import pytest
from classic_example import text_model
from classic_example.config import REFUSED, TrainingConfig, parse_config, read_config
from classic_example.errors import WorkloadError
from classic_example.text_model import computes_bf16, resolve_device, resolve_precision
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


def parsed(**changes: object) -> TrainingConfig:
    return parse_config({**REQUIRED, **changes}, "c")


def test_original_configuration_is_what_the_trainer_makes_of_it():
    config = parse_config(ORIGINAL, "original")
    assert config.max_steps == 6
    assert config.per_device_train_batch_size == 2
    assert (config.eval_steps, config.save_strategy) == (500, "steps")
    assert (config.load_best_model_at_end, config.metric_for_best_model) == (True, "loss")
    assert config.greater_is_better is False


def test_file_that_the_trainer_has_written_is_taken():
    from transformers import TrainingArguments

    theirs = TrainingArguments("o", use_cpu=True).to_dict()
    config = parse_config({**theirs, **REQUIRED}, "c")
    assert {name: getattr(config, name) for name in ("seed", "optim", "learning_rate")} == {
        name: theirs[name] for name in ("seed", "optim", "learning_rate")
    }
    # As they are in the class, before it settles them.
    defaults = {
        one.name: one.default
        for one in dataclasses.fields(TrainingArguments)
        if one.init and one.default is not dataclasses.MISSING
    }
    assert parse_config({**defaults, **REQUIRED}, "c").max_steps == -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"push_to_hub": True}, "c: push_to_hub cannot be True: a model and its curve go to the"),
        ({"report_to": ["wandb"]}, "report_to cannot be ['wandb']: a model and its curve"),
        ({"fsdp": "full_shard"}, "fsdp cannot be 'full_shard': on several GPUs each holds a whole"),
        ({"use_fast_tokenizer": False}, "use_fast_tokenizer cannot be False: it can only be True"),
        ({"save_only_model": True}, "save_only_model cannot be True: a checkpoint is whole"),
        ({"load_best_model_at_end": True}, "c: the best model can only be told with an eval_strat"),
        ({"early_stopping_patience": 2}, "c: the best model can only be told with an eval_strateg"),
        ({"metric_for_best_model": "bleu"}, "metric_for_best_model is 'bleu', allowed: loss, acc"),
        ({"labels": ["a", "a"]}, "c: labels has a text twice: a, a"),
        ({"labels": "a, b"}, "c: labels is 'a, b': input should be a valid tuple"),
        ({"labels": ["a"]}, "c: labels is ['a']: tuple should have at least 2 items"),
        ({"learning_rte": 1}, "c: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ({"zzzz": 1}, "c: unknown key 'zzzz'; there are: "),
        ({"train_file": ""}, "c: missing key train_file"),
        ({"train_file": 7}, "c: train_file is 7: input should be a valid string"),
        ({"learning_rate": "fast"}, "c: learning_rate is 'fast': input should be a valid number"),
        ({"learning_rate": -1}, "c: learning_rate is -1: input should be greater than or equal to"),
        ({"learning_rate": float("nan")}, "c: learning_rate is nan: input should be greater"),
        (
            {"seed": 1.5},
            "c: seed is 1.5: input should be a valid integer, got a",
        ),
        ({"seed": None}, "c: seed is None: input should be a valid integer"),
        ({"freeze_embeddings": 2}, "c: freeze_embeddings is 2: input should be a valid boolean"),
        (
            {"per_device_train_batch_size": 0},
            "per_device_train_batch_size is 0: input should be gr",
        ),
        (
            {"lr_scheduler_type": "magic"},
            "c: magic is not a valid SchedulerType, please select one",
        ),
        ({"eval_do_concat_batches": False}, "the metrics need whole predictions"),
        ({"eval_strategy": "daily"}, "c: daily is not a valid IntervalStrategy, please sel"),
        ({"logging_steps": 0}, "requires non-zero --logging_steps"),
        ({"precision": "int8"}, "c: precision is 'int8': input should be 'auto', 'fp32' or 'bf16'"),
        ({"device": "tpu"}, "c: device is 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
        ({"max_steps": 0, "num_train_epochs": 0}, "max_steps or num_train_epochs must be above 0"),
    ],
)
def test_setting_that_cannot_be_done_is_refused_in_one_line(changes: dict, message: str):
    with pytest.raises(WorkloadError) as caught:
        parsed(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_refused_setting_exists():
    from transformers import TrainingArguments

    assert REFUSED.keys() <= {one.name for one in dataclasses.fields(TrainingArguments)}


def test_best_model_needs_no_more_than_an_evaluation():
    best = parsed(load_best_model_at_end=True, eval_strategy="epoch")
    assert (best.save_strategy, best.metric_for_best_model) == ("best", "loss")
    assert parsed().save_strategy == "no"


def test_configuration_of_the_pipeline_is_valid_and_uses_its_paths():
    config = read_config(APP / "tests/data/test_config.json")
    assert Path(config.model_name_or_path).name == BASE_MODEL.name
    assert config.warmup_steps == 0.1
    assert config.train_file == "/tmp/data/train.csv"
    assert config.validation_file == "/tmp/data/val.csv"
    assert config.output_dir == "/tmp/results"


def test_older_names_of_settings_are_understood():
    config = parsed(evaluation_strategy="epoch", warmup_ratio=0.1, warmup_steps=0, no_cuda=True)
    assert (config.eval_strategy, config.warmup_steps, config.use_cpu) == ("epoch", 0.1, True)
    assert parsed(warmup_ratio=0.1, warmup_steps=7).warmup_steps == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: Expecting property name enclosed in double quotes: line 1"),
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
    with pytest.raises(WorkloadError, match="is no file"):
        read_config(tmp_path)


def test_variables_go_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**REQUIRED, "max_steps": 350}))
    monkeypatch.setenv("TRAIN_MAX_STEPS", "50")
    monkeypatch.setenv("TRAIN_PRECISION", "bf16")
    monkeypatch.setenv("TRAIN_DROPOUT", "null")
    monkeypatch.setenv("TRAIN_DEVICE", "cpu")
    monkeypatch.setenv("TRAIN_LABELS", '["ham", "spam"]')
    config = read_config(path)
    assert (config.max_steps, config.precision, config.dropout) == (50, "bf16", None)
    assert config.labels == ("ham", "spam")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("TRAIN_MAX_STEP", "50", "unknown key 'max_step'; did you mean 'max_steps'?"),
        ("TRAIN_MAX_STEPS", "many", "max_steps is 'many': input should be a valid integer"),
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


# Hardware


def test_bf16_of_the_trainer_is_a_precision():
    assert parsed(bf16=True).precision == "bf16"
    assert parsed(precision="bf16").bf16 is True
    assert parsed(precision="fp32").bf16 is False


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512_bf16 rdpid", True), ("fpu amx_bf16", True), ("fpu avx2 avx512f", False)],
)
def test_bf16_is_chosen_by_the_processor(flags: str, expected: bool):
    assert computes_bf16(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n") is expected
    assert resolve_precision("auto") in ("fp32", "bf16")
    assert parsed(precision="auto").precision == resolve_precision("auto")


@pytest.mark.parametrize("given", ["variable", "file", "setting"])
def test_gpu_that_cannot_be_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
):
    # As on a machine without a driver, whatever this one is.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(text_model, "GPU_FILE", tmp_path / "nvidiactl")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    assert resolve_device() == "cpu"
    if given == "variable":
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "GPU-8f2c")
    elif given == "file":
        (tmp_path / "nvidiactl").touch()
    with pytest.raises(WorkloadError, match="finds none that it can use; take an image"):
        parsed(device="cuda" if given == "setting" else "auto")
    assert parsed(device="cpu").use_cpu
    assert parsed(use_cpu=True).use_cpu
