"""The training configuration: one JSON object with the names of Hugging Face's Trainer."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from classic_example import parameters
from classic_example.checks import checked, require_one_of, setting, suggestion
from classic_example.errors import WorkloadError

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
STRATEGIES = ("no", "steps", "epoch")
PRECISIONS = ("fp32", "bf16", "auto")

METRICS = ("loss", "accuracy", "precision", "recall", "f1", "f0.5", "macro_f1")

# Settings of transformers.TrainingArguments (and of the original example) that have no effect here
# and none on the model: how a training is shown, saved on the way, or fed with data. All others are
# as TrainingConfig has them, or refused when they are not at their default.
WITHOUT_EFFECT = frozenset(
    (
        *("_n_gpu", "accelerator_config", "cache_dir", "dataloader_num_workers"),
        *("dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("ddp_timeout", "disable_tqdm", "do_eval", "do_predict", "do_train", "fsdp_config"),
        *("full_determinism", "group_by_length", "hub_token", "label_names", "local_rank"),
        *("log_level", "log_level_replica", "log_on_each_node", "logging_dir"),
        *("logging_first_step", "logging_nan_inf_filter", "logging_strategy", "no_cuda"),
        *("overwrite_cache", "overwrite_output_dir", "pad_to_max_length", "remove_unused_columns"),
        *("report_to", "run_name", "save_model", "save_on_each_node", "save_only_model"),
        *("save_safetensors", "save_steps", "save_strategy", "save_total_limit"),
        *("skip_memory_metrics", "use_cpu", "use_fast_tokenizer", "use_wandb"),
    )
)
# A variable of this prefix and a name in capitals goes over the file: TRAIN_MAX_STEPS=50.
VARIABLE_PREFIX = "TRAIN_"
# Older names of the same setting.
RENAMED = {"evaluation_strategy": "eval_strategy"}


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, on what, and how. Names and meanings are those of TrainingArguments.

    With load_best_model_at_end the last step is evaluated too, and is one of those to choose from.

    Own additions, which trade a little capacity for a lot of time on a CPU: `freeze_embeddings`,
    `freeze_layers` (from the input side), `dropout` (None keeps the model's own) and `precision` of
    the matrix products (`auto` is bf16 where the processor computes with it). And `labels`, the
    names of the classes in their order; None takes those of the training file.
    """

    model_name_or_path: str
    train_file: str
    validation_file: str
    output_dir: str
    config_name: str | None = None
    tokenizer_name: str | None = None
    max_seq_length: int = setting(128, 2, 4096)
    max_train_samples: int | None = setting(None, 2)
    max_eval_samples: int | None = setting(None, 2)
    per_device_train_batch_size: int = setting(8, 1, 4096)
    per_device_eval_batch_size: int = setting(8, 1, 4096)
    gradient_accumulation_steps: int = setting(1, 1, 4096)
    learning_rate: float = setting(5e-5, 0, 1)
    weight_decay: float = setting(0.0, 0, 1)
    adam_beta1: float = setting(0.9, 0, 0.9999999)
    adam_beta2: float = setting(0.999, 0, 0.9999999)
    adam_epsilon: float = setting(1e-8, 0, 1)
    max_grad_norm: float = setting(1.0, 0)
    num_train_epochs: float = setting(3.0, 0)
    max_steps: int = setting(-1, -1)
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = setting(0.0, 0, 1)
    warmup_steps: int = setting(0, 0)
    logging_steps: int = setting(500, 1)
    eval_strategy: str = "no"
    eval_steps: int | None = setting(None, 1)
    eval_delay: float = setting(0.0, 0)
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    seed: int = setting(42, 0, 2**32 - 1)
    freeze_embeddings: bool = False
    freeze_layers: int = setting(0, 0)
    dropout: float | None = setting(None, 0, 0.99)
    labels: tuple[str, ...] | None = None
    precision: str = "fp32"

    @property
    def best_metric(self) -> str:
        """Name of what the best model is best at."""
        return (self.metric_for_best_model or "loss").removeprefix("eval_")

    @property
    def best_is_greatest(self) -> bool:
        """Whether more of it is better."""
        told = self.greater_is_better
        return self.best_metric != "loss" if told is None else told


def read_config(path: Path) -> tuple[TrainingConfig, list[str]]:
    """Return the configuration in a JSON file and the names in it that have no effect.

    The environment goes over the file, name by name (see VARIABLE_PREFIX), and the parameters of
    the run go over both.

    Raises:
        WorkloadError: no such file, broken JSON, an unknown or missing name, or a value of the
            wrong type or out of range.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkloadError(f"the configuration {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"the configuration {path} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise WorkloadError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    if not isinstance(content, dict):
        raise WorkloadError(f"{path} must hold a JSON object, not {type(content).__name__}")
    variables = from_environment(os.environ)
    origin = f"{path} and the variables {VARIABLE_PREFIX}*" if variables else str(path)
    return parse_config({**content, **variables, **from_parameters()}, origin)


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that variables give: JSON where it is, else the text itself."""
    found = {}
    for name, text in environment.items():
        if name.startswith(VARIABLE_PREFIX):
            try:
                found[name.removeprefix(VARIABLE_PREFIX).lower()] = json.loads(text)
            except json.JSONDecodeError:
                found[name.removeprefix(VARIABLE_PREFIX).lower()] = text
    return found


def from_parameters() -> dict[str, Any]:
    """Return the settings that the parameters of the run give.

    Another base model comes with its own configuration and tokenizer.
    """
    given = parameters.of_this_run().given()
    found = {name: given[name] for name in ("max_steps", "learning_rate") if name in given}
    if "base_model" in given:
        own = {"config_name": None, "tokenizer_name": None}
        found |= {"model_name_or_path": given["base_model"], **own}
    return found


def parse_config(content: dict[str, Any], origin: str) -> tuple[TrainingConfig, list[str]]:
    """Return the configuration in `content`, as read_config; `origin` names it in errors."""
    content = {RENAMED.get(name, name): value for name, value in content.items()}
    if content.get("bf16") is True:
        content = {"precision": "bf16", **content, "bf16": False}
    known = {one.name: one for one in fields(TrainingConfig)}
    require_default(origin, content.keys() - known.keys() - WITHOUT_EFFECT, content, known)
    required = ("model_name_or_path", "train_file", "validation_file", "output_dir")
    missing = [name for name in required if not content.get(name)]
    if missing:
        raise WorkloadError(f"{origin}: missing key {', '.join(missing)}")
    values = {
        name: checked(origin, known[name], value)
        for name, value in content.items()
        if name in known
    }
    config = TrainingConfig(**values)
    require_one_of(origin, "lr_scheduler_type", config.lr_scheduler_type, SCHEDULES)
    require_one_of(origin, "eval_strategy", config.eval_strategy, STRATEGIES)
    require_one_of(origin, "precision", config.precision, PRECISIONS)
    require_one_of(origin, "metric_for_best_model", config.best_metric, METRICS)
    if config.load_best_model_at_end and config.eval_strategy == "no":
        raise WorkloadError(f"{origin}: load_best_model_at_end needs an eval_strategy")
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        raise WorkloadError(f"{origin}: max_steps or num_train_epochs must be above 0")
    return config, sorted(content.keys() - known.keys())


def require_default(
    origin: str, names: Iterable[str], content: Mapping[str, Any], known: Iterable[str]
) -> None:
    """Make sure that settings which are not known here are transformers', and at their default.

    Raises:
        WorkloadError: one of them is not.
    """
    if not names:
        return
    # Seconds, which a configuration without such names does not wait.
    from transformers import TrainingArguments

    theirs = {one.name: one for one in fields(TrainingArguments)}
    for name in sorted(names):
        if name not in theirs:
            meant = suggestion(name, [*known, *WITHOUT_EFFECT, *theirs])
            raise WorkloadError(f"{origin}: unknown key {name!r}{meant}")
        default = theirs[name].default
        # The Trainer's own files have {} or [] where the default is None or made at the start.
        if content[name] != default and (content[name] or (default and default is not MISSING)):
            told = "it cannot be set" if default is MISSING else f"it can only be {default!r}"
            raise WorkloadError(
                f"{origin}: {name} is {content[name]!r}, which would change the training; {told}"
            )
