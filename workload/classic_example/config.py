"""The training configuration: one JSON object with the keys of transformers' TrainingArguments.

Importing this takes seconds: transformers comes with it.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from transformers import TrainingArguments

from classic_example.errors import WorkloadError, one_line
from classic_example.evaluate import SCORES
from classic_example.files import read_json
from classic_example.parameters import checked, of_this_run, require_one_of, unknown
from classic_example.text_model import Device, Precision, resolve_device, resolve_precision

# A variable of this prefix and a name in capitals goes over the file: TRAIN_MAX_STEPS=50.
VARIABLE_PREFIX = "TRAIN_"
# Older names of the same setting.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "warmup_ratio": "warmup_steps",
}
# Keys of older files for what is no choice any more, and the one value that they may have.
DECIDED = {"save_safetensors": True, "use_fast_tokenizer": True}
# Why, and which settings of TrainingArguments cannot be done here.
REASONS = {
    "a checkpoint is whole, and a try that was killed is always gone on with": (
        *("enable_jit_checkpoint", "resume_from_checkpoint", "save_only_model"),
    ),
    "a model and its curve go to the registry of the environment": ("push_to_hub", "report_to"),
    "lengths are counted": ("length_column_name",),
    "on several GPUs each holds a whole copy of the model": (
        *("deepspeed", "fsdp", "fsdp_config", "parallelism_config"),
    ),
    "run-inference-on-dataframe predicts": ("do_predict",),
    "the column is called label": ("label_names",),
    "the metrics need whole predictions": (
        *("batch_eval_metrics", "eval_do_concat_batches", "prediction_loss_only"),
    ),
}
REFUSED = {name: why for why, names in REASONS.items() for name in names}
# Where TrainingArguments takes what only fails later.
NARROWER = {
    "gradient_accumulation_steps": PositiveInt,
    "learning_rate": NonNegativeFloat,
    "num_train_epochs": NonNegativeFloat,
    "per_device_eval_batch_size": PositiveInt,
    "per_device_train_batch_size": PositiveInt,
    # TrainingArguments has a property of this name.
    "device": Device,
}
REQUIRED = ("model_name_or_path", "train_file", "validation_file", "output_dir")
Text = Annotated[str, Field(min_length=1)]


@dataclass
class TrainingConfig(TrainingArguments):
    """What to train, on what, and how: TrainingArguments and what is our own.

    `labels` are the names of the classes in their order; None takes those of the training file.
    `freeze_embeddings`, `freeze_layers` (from the input side) and `dropout` (None keeps the model's
    own) trade a little capacity for a lot of time on a CPU. A training stops after
    `early_stopping_patience` evaluations without a better one. `checkpoint_seconds` lie between two
    checkpoints for the next try; 0 makes one after each step.

    Batches are of sentences of like length unless `train_sampling_strategy` says otherwise. With
    load_best_model_at_end the best model is what is saved on the way, else nothing.
    """

    model_name_or_path: str = ""
    train_file: str = ""
    validation_file: str = ""
    config_name: str | None = None
    tokenizer_name: str | None = None
    max_seq_length: Annotated[int, Field(ge=2)] = 128
    max_train_samples: Annotated[int, Field(ge=2)] | None = None
    max_eval_samples: Annotated[int, Field(ge=2)] | None = None
    labels: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    freeze_embeddings: bool = False
    freeze_layers: NonNegativeInt = 0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    precision: Precision | Literal["fp16"] = "auto"
    early_stopping_patience: PositiveInt | None = None
    checkpoint_seconds: NonNegativeFloat = 300
    disable_tqdm: bool | None = True
    # A step of 10 million weights takes 19 ms of a core instead of 65.
    optim: str = "adamw_torch_fused"
    save_strategy: str | None = None
    train_sampling_strategy: str = "group_by_length"

    def __post_init__(self) -> None:
        """Settle what depends on another setting; ValueError: settings contradict each other."""
        if self.save_strategy is None:
            self.save_strategy = "best" if self.load_best_model_at_end else "no"
        if self.early_stopping_patience:
            self.metric_for_best_model = self.metric_for_best_model or "loss"
        chosen = self.load_best_model_at_end or self.early_stopping_patience
        if chosen and self.eval_strategy == "no":
            raise ValueError("the best model can only be told with an eval_strategy")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError("max_steps or num_train_epochs must be above 0")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels has a text twice: {', '.join(self.labels)}")
        super().__post_init__()
        # The count of evaluations without a better one is part of where a training stands.
        self.restore_callback_states_from_checkpoint = True

    @property
    def hardware(self) -> str:
        """Name of what computes: cpu, or cuda and the GPU's name."""
        import torch

        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return f"{self.device.type} {name}".strip()

    def said(self) -> dict[str, Any]:
        """Return the settings that are set, as JSON has them."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in REFUSED
            and not name.startswith("hub_")
            and value is not False
            and value not in (None, "", [], {})
        }


def read_config(path: Path) -> TrainingConfig:
    """Return the configuration in a JSON file.

    The environment goes over the file, name by name (see VARIABLE_PREFIX), and the parameters of
    the run go over both. Raises WorkloadError for no such file, broken JSON, an unknown or missing
    name, a setting that cannot be done here, a value of the wrong type or out of range, or a GPU
    that cannot be used.
    """
    if not path.is_file():
        raise WorkloadError(f"the configuration {path} does not exist, or is no file")
    content, variables = read_json(path), {}
    for variable, text in os.environ.items():
        if variable.startswith(VARIABLE_PREFIX):
            # JSON where it is, else the text itself.
            name = variable.removeprefix(VARIABLE_PREFIX).lower()
            variables[name] = text
            with suppress(json.JSONDecodeError):
                variables[name] = json.loads(text)
    given = of_this_run().given()
    asked = {name: given[name] for name in ("max_steps", "learning_rate") if name in given}
    if base := given.get("base_model"):
        # It comes with its own configuration and tokenizer.
        asked |= {"model_name_or_path": base, "config_name": None, "tokenizer_name": None}
    origin = f"{path} and the variables {VARIABLE_PREFIX}*" if variables else str(path)
    return parse_config({**content, **variables, **asked}, origin)


def parse_config(content: Mapping[str, Any], origin: str) -> TrainingConfig:
    """Return the configuration in `content`, as read_config; `origin` names it in errors."""
    content = dict(content)
    for old, new in RENAMED.items():
        if old in content:
            value = content.pop(old)
            content[new] = content.get(new) or value
    settable = {one.name for one in fields(TrainingConfig) if one.init}
    hints = get_type_hints(TrainingConfig, include_extras=True)
    kinds = {name: hints[name] for name in settable} | NARROWER
    defaults = {one.name: one.default for one in fields(TrainingArguments)}
    for name, value in list(content.items()):
        if name in DECIDED or name in REFUSED:
            only = DECIDED.get(name, defaults.get(name))
            # A file that the Trainer has written has [] or {} for nothing.
            if value != only and (value or only is True):
                why = REFUSED.get(name, f"it can only be {only!r}")
                raise WorkloadError(f"{origin}: {name} cannot be {value!r}: {why}")
            del content[name]
        elif name not in kinds:
            raise unknown(f"{origin}: unknown key", name, kinds)
    if missing := [name for name in REQUIRED if not content.get(name)]:
        raise WorkloadError(f"{origin}: missing key {', '.join(missing)}")
    values = checked(origin, kinds, content)
    device = resolve_device(values.pop("device", "auto"), values.pop("use_cpu", False))
    if values.pop("bf16", False):
        values["precision"] = "bf16"
    wanted = values.get("precision", "auto")
    precision = "fp16" if values.get("fp16") else resolve_precision(wanted, device)
    hardware = {"use_cpu": device == "cpu", "bf16": precision == "bf16", "precision": precision}
    try:
        config = TrainingConfig(**{**values, **hardware})
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise WorkloadError(f"{origin}: {one_line(error)}") from None
    metric = (config.metric_for_best_model or "loss").removeprefix("eval_")
    require_one_of(origin, "metric_for_best_model", metric, ("loss", *SCORES))
    return config
