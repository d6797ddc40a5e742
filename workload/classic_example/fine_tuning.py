"""transformers' Trainer with batches of like length, checkpoints that are whole, and a log.

Importing this takes seconds: torch and transformers come with it.
"""

import json
import logging
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate.utils import reduce
from torch.utils.data import Sampler
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from classic_example import evaluate
from classic_example.config import TrainingConfig
from classic_example.data import Row
from classic_example.errors import WorkloadError, one_line
from classic_example.files import flush, read_json, remove, write_json
from classic_example.progress import Ticker, heartbeat
from classic_example.registry import Registry, registry_from_environment
from classic_example.text_model import Model, batches_by_length, in_threads

logger = logging.getLogger(__name__)

# In a checkpoint: it is whole, and what it is of.
MARK = "whole.json"
# The Trainer's sums of the losses since the last point of its history and since the beginning, and
# where they begin: it does not keep them itself.
SUMS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")
# Fewer rows than these are no work for a thread.
ROWS_PER_THREAD = 8
# Among the inputs of a part of a batch: its share of the rows.
SHARE = "share"


def encoded_rows(model: Model, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as the Trainer takes them: `input_ids` and `labels`."""
    encoded, cut = model.encode([row.sentence for row in rows])
    if cut:
        longest = model.tokenizer.model_max_length
        logger.info("%d of %d rows are cut to %d tokens", cut, len(rows), longest)
    return [{"input_ids": ids, "labels": row.label} for ids, row in zip(encoded, rows, strict=True)]


class ByLength(Sampler):
    """Positions, those of like length together, in an order that seed and epoch alone decide.

    The Trainer's own sampler of that kind takes its order from the random numbers of the moment: a
    training that goes on would see other batches.
    """

    def __init__(self, encoded: Sequence[Sequence[int]], size: int, seed: int) -> None:
        self.encoded, self.size, self.seed, self.epoch = encoded, size, seed, 0

    def __len__(self) -> int:
        return len(self.encoded)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        source = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.encoded)))
        source.shuffle(order)
        batches = list(batches_by_length(self.encoded, order, self.size))
        # One batch may be smaller, and belongs at the end: else those behind it would be cut anew.
        last = [batches.pop()] if len(batches[-1]) < self.size else []
        source.shuffle(batches)
        return (at for batch in batches + last for at in batch)


class FineTuning(Trainer):
    """A Trainer of sentence classifiers.

    On a CPU, threads take a part of each batch, forward and backward, on copies that share the
    model's weights. Where all of them work at each operation instead, the fastest wait for the
    slowest some thousand times a step: two threads were no faster than one beside other pods. A
    model that draws random numbers meanwhile is left to torch, as threads draw in any order.
    """

    def __init__(
        self, model: Model, config: TrainingConfig, rows: Sequence[Row], held_out: Sequence[Row]
    ) -> None:
        encoded = encoded_rows(model, rows)
        self.held_out = sorted(encoded_rows(model, held_out), key=lambda row: len(row["input_ids"]))

        def scores(told: EvalPrediction) -> dict[str, float]:
            predicted = logits_of(told.predictions).argmax(axis=1)
            return evaluate.scores(told.label_ids, predicted, model.labels)

        super().__init__(
            model.classifier,
            config,
            data_collator=DataCollatorWithPadding(model.tokenizer),
            train_dataset=encoded,
            eval_dataset=self.held_out,
            compute_metrics=scores,
        )
        # A loss is the mean over the rows of a batch: gradients are summed up from such.
        self.model_accepts_loss_kwargs = False
        self.copies: list[torch.nn.Module] = []
        draws = config.dropout != 0 or config.neftune_noise_alpha
        alone = config.device.type == "cpu" and config.world_size == 1
        rows = config.train_batch_size // ROWS_PER_THREAD if alone and not draws else 1
        self.parts = max(1, min(torch.get_num_threads(), rows))
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress())
        if config.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(config.early_stopping_patience))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        encoded = [row["input_ids"] for row in self.train_dataset]
        return ByLength(encoded, self.args.train_batch_size, seed)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *more: Any
    ) -> torch.Tensor:
        """Add the gradients of a batch, unless the loss is not a number any more."""
        step = self.step_in_parts if self.parts > 1 else super().training_step
        loss = step(model, inputs, *more)
        if not torch.isfinite(loss):
            raise WorkloadError(
                f"the training loss is {loss.item()} at step {self.state.global_step + 1}; try a "
                f"learning_rate below {self.args.learning_rate:g}"
            )
        return loss

    def step_in_parts(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *more: Any
    ) -> torch.Tensor:
        """Do training_step with a part of the rows in each thread."""
        if not self.copies:
            self.copies = [model, *(sharing(model) for _ in range(1, self.parts))]
        size = len(inputs["labels"])
        parts = [value.tensor_split(self.parts) for value in inputs.values()]
        work = [
            (copy, {**dict(zip(inputs, part, strict=True)), SHARE: len(part[0]) / size}, *more)
            for copy, *part in zip(self.copies, *parts, strict=True)
            if len(part[0])
        ]
        step = super().training_step
        loss = sum(self.each(lambda given: step(*given), work))
        # Always in this order: sums of floating point numbers depend on it.
        for weights in zip(*(copy.parameters() for copy in self.copies), strict=True):
            for other in weights[1:]:
                if other.grad is not None:
                    weights[0].grad.add_(other.grad)
                    other.grad = None
        return loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *more: Any, **named: Any
    ) -> Any:
        """Return the loss, of a part of a batch in its share."""
        share = inputs.pop(SHARE, None)
        told = super().compute_loss(model, inputs, *more, **named)
        return told if share is None else told * share

    def floating_point_ops(self, _inputs: Any) -> int:
        """Count none: that takes 3 ms of each step, and nobody reads it."""
        return 0

    def fit(self, key: dict[str, Any]) -> None:
        """Train, from the checkpoint of an earlier try with the same `key` where there is one.

        The weights are those of a training that nobody has disturbed, to the last bit.
        """
        checkpoints = Checkpoints(self, key)
        self.add_callback(checkpoints)
        own = torch.get_num_threads() // self.parts
        try:
            with in_threads(self.parts, own) as self.each:
                self.train(resume_from_checkpoint=checkpoints.last())
        finally:
            signal.signal(signal.SIGTERM, checkpoints.before)

    def held_out_figures(self) -> tuple[dict[str, float], list[int], numpy.ndarray]:
        """Return what the training came to, and labels and logits (rows, labels) of held-out rows.

        The figures are the scores and eval_loss, train_loss over all steps, steps, and best_step
        where the weights are those of the best evaluation.
        """
        told = self.predict(self.held_out, metric_key_prefix="eval")
        figures = {name: told.metrics[f"eval_{name}"] for name in evaluate.SCORES}
        figures["eval_loss"], steps = told.metrics["eval_loss"], self.state.global_step
        figures |= {"train_loss": self._total_loss_scalar / steps, "steps": steps}
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            figures["best_step"] = self.state.best_global_step
        return figures, told.label_ids.tolist(), logits_of(told.predictions)

    def history(self) -> list[dict[str, float]]:
        """Return the points of the training curve, the same at each repetition."""
        points = [point for point in self.state.log_history if "train_runtime" not in point]
        return [without_times(point) for point in points]


def sharing(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model with the same weights, and gradients of its own."""
    copy = deepcopy(model)
    for own, other in zip(model.parameters(), copy.parameters(), strict=True):
        other.data = own.data
    return copy


def without_times(point: dict[str, float]) -> dict[str, float]:
    """Return what the Trainer has logged but for what depends on the clock."""
    timed = ("_runtime", "_per_second", "total_flos")
    return {name: value for name, value in point.items() if not name.endswith(timed)}


def logits_of(predictions: Any) -> numpy.ndarray:
    """Return the logits: some models give what lies below them too."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


class Checkpoints(TrainerCallback):
    """Keeps a training's state for the next try: on SIGTERM and every checkpoint_seconds.

    The Trainer writes a checkpoint in place; only one with a MARK is whole. A state lies between
    two steps and has all that belongs to the first: at the end of an epoch it is kept after the
    evaluation there, which would not be made up for.
    """

    def __init__(self, trainer: FineTuning, key: dict[str, Any]) -> None:
        self.trainer, self.place = trainer, Path(trainer.args.output_dir)
        self.key = json.loads(json.dumps(key))
        self.sums: dict[str, float] = {}
        self.stopping = self.postponed = False
        self.saved = time.monotonic()
        self.before = signal.signal(signal.SIGTERM, self.stop)

    def stop(self, _number: int, _frame: object) -> None:
        """Note that the process is asked to end; it does so after this step."""
        self.stopping = True

    def last(self) -> str | None:
        """Return the newest checkpoint to go on from, and remove what no training goes on from."""
        marks = {path: read_json(path / MARK) for path in self.place.glob("checkpoint-*")}
        keys = [mark["key"] for mark in marks.values() if mark]
        changed = {
            name for key in keys for name in key | self.key if key.get(name) != self.key.get(name)
        }
        if changed:
            names = ", ".join(sorted(changed))
            logger.info("beginning anew, not where an earlier try was: %s changed", names)
        # Behind the last step the Trainer would take another one.
        good = {path for path, mark in marks.items() if mark and not changed and not mark["last"]}
        if self.trainer.is_world_process_zero():
            for path in marks.keys() - good:
                remove(path)
        if not good:
            return None
        last = max(good, key=lambda path: marks[path]["step"])
        logger.info("going on behind step %d of an earlier try", marks[last]["step"])
        self.sums = marks[last]["sums"]
        return str(last)

    def on_train_begin(self, args: TrainingConfig, *_: Any, **__: Any) -> None:
        """Go on with the sums from which the next points of the history are made."""
        for name, value in self.sums.items():
            setattr(self.trainer, name, value)
        self.trainer._tr_loss = torch.as_tensor(self.trainer._tr_loss, device=args.device)

    def on_step_end(
        self, args: TrainingConfig, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint when it is time for one, and there are steps left."""
        due = self.stopping or time.monotonic() - self.saved >= args.checkpoint_seconds
        if args.world_size > 1:
            # One process alone would wait for the others.
            due = bool(reduce(torch.tensor(float(due), device=args.device), "sum"))
        control.should_save |= due and state.global_step < state.max_steps
        if control.should_save and state.epoch.is_integer():
            control.should_save, self.postponed = False, True

    def on_epoch_end(self, _: Any, __: Any, control: TrainerControl, **___: Any) -> None:
        """Ask for the checkpoint that was due at the epoch's last step."""
        control.should_save |= self.postponed
        self.postponed = False

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """End in the middle of an evaluation on the way: it may take longer than there is time."""
        if self.stopping and self.trainer.is_in_train:
            raise SystemExit(128 + signal.SIGTERM)

    def on_save(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        """Mark the checkpoint, remove those before it but the best, and end if asked to."""
        path, last = self.place / f"checkpoint-{state.global_step}", control.should_training_stop
        if state.is_world_process_zero:
            with heartbeat(f"keeping the state of step {state.global_step}"):
                for file in path.iterdir():
                    flush(file)
                sums = {name: float(getattr(self.trainer, name)) for name in SUMS}
                mark = {"key": self.key, "sums": sums, "step": state.global_step, "last": last}
                write_json(path / MARK, mark)
                kept = {path, Path(state.best_model_checkpoint or path)}
                for other in set(self.place.glob("checkpoint-*")) - kept:
                    remove(other)
        self.trainer.accelerator.wait_for_everyone()
        self.postponed, self.saved = False, time.monotonic()
        if self.stopping and not last:
            logger.info("asked to end at step %d; the next try goes on there", state.global_step)
            raise SystemExit(128 + signal.SIGTERM)


class Progress(TrainerCallback):
    """Says every few seconds how far a training is."""

    def on_train_begin(self, args: TrainingConfig, state: TrainerState, *_: Any, **__: Any) -> None:
        self.ticker, self.start, self.first = Ticker(), time.monotonic(), state.global_step
        self.size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        on = f"{args.world_size} x {args.hardware}" if args.world_size > 1 else args.hardware
        text = "training: %d steps of %d sentences in %s on %s"
        logger.info(text, state.max_steps, self.size, args.precision, on)

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        done, left = state.global_step - self.first, state.max_steps - state.global_step
        if self.ticker.due() or done == 1 or not left:
            rate = done / (time.monotonic() - self.start)
            losses = [f"  loss {one['loss']:.3f}" for one in state.log_history if "loss" in one]
            at = f"step {state.global_step}/{state.max_steps}{losses[-1] if losses else ''}"
            logger.info("%s  %.0f sentences/s  %.0f s left", at, rate * self.size, left / rate)

    def on_evaluate(self, _: Any, state: TrainerState, *__: Any, metrics: dict, **___: Any) -> None:
        logger.info("step %d: held-out accuracy %.4f", state.global_step, metrics["eval_accuracy"])

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        if self.ticker.due():
            logger.info("evaluating")


class Tracking(TrainerCallback):
    """Shows a training in the registry while it goes on. One that fails is not asked again."""

    def __init__(self, params: dict[str, Any], tags: dict[str, str]) -> None:
        self.params, self.tags, self.run_id = params, tags, ""
        self.url = ""
        self.registry: Registry | None = None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let an error be a line in the log, and the end of the tracking."""
        try:
            yield
        except Exception as error:
            logger.warning("WARNING: the training is not tracked: %s", one_line(error))
            self.registry = None

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        with self.attempt():
            if state.is_world_process_zero:
                self.registry = registry_from_environment()
                self.run_id = self.registry.track(self.params, self.tags)
                self.url = self.registry.run_url(self.run_id)

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: dict, **___: Any) -> None:
        with self.attempt():
            if self.registry and "train_runtime" not in logs:
                self.registry.log(self.run_id, state.global_step, without_times(logs))

    def finish(self, status: str) -> None:
        """Close the run; the next try may go on in one that was killed."""
        with self.attempt():
            if self.registry:
                self.registry.finish(self.run_id, status)
