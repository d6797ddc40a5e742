"""Fine-tune a sentence classifier on the CPU.

A plain loop instead of transformers.Trainer: it does what is needed here, imports in a third of the
time, needs no accelerate (whose torch requirement would pull several GB of CUDA libraries), and two
runs with the same seed, thread count and kind of processor give the same numbers to the last digit.
"""

import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from classic_example import evaluate, lineage, sources
from classic_example.config import TrainingConfig, read_config
from classic_example.data import Labels, Row, read_labelled
from classic_example.errors import WorkloadError, one_line
from classic_example.files import cannot_write, new_directory, remove
from classic_example.model_card import CHOSEN, NOT_CHOSEN, model_card
from classic_example.model_files import (
    ARGUMENTS_FILE,
    CONFUSION_MATRIX,
    HISTORY_FILE,
    LINEAGE_FILE,
    METRICS_FILE,
    TRAINER_METRICS_FILE,
    TRAINING_CURVE,
    WEIGHTS_FILE,
)
from classic_example.plots import draw_confusion_matrix, draw_training_curve
from classic_example.progress import Ticker, heartbeat
from classic_example.space import require_space
from classic_example.text_model import (
    Model,
    batches_by_length,
    import_torch,
    load_tokenizer,
    new_classifier,
    padded,
    predict_logits,
    resolve,
    resolve_precision,
)

logger = logging.getLogger(__name__)


def train(config_path: Path) -> dict[str, Any]:
    """Train as the configuration says, write the model to its output_dir, return the result.

    Raises:
        WorkloadError: the configuration, the data, the base model or the output directory.
    """
    start = time.monotonic()
    config, ignored = read_config(config_path)
    if ignored:
        logger.info("accepted without effect: %s", ", ".join(ignored))
    output = Path(config.output_dir)
    train_file, validation_file = Path(config.train_file), Path(config.validation_file)
    labels = Labels.named(config.labels) if config.labels else None
    train_rows, labels = read_labelled(train_file, config.max_train_samples, labels)
    held_out, _ = read_labelled(validation_file, config.max_eval_samples, labels)
    names = labels.names
    origin = {**sources.describe(train_file, validation_file), **lineage.of_this_run()}
    logger.info("%d training rows, %d held out; %s", len(train_rows), len(held_out), origin)
    logger.info("labels: %s", ", ".join(names))
    # A retry must not leave the model of an earlier attempt where a new one is expected.
    try:
        remove(output)
    except OSError as error:
        raise cannot_write(output, error) from None

    with new_directory(output) as directory:
        baseline = evaluate.baseline(train_rows, held_out, names)
        logger.info("baseline: held-out accuracy %.4f", baseline["accuracy"])
        config = replace(config, labels=names, precision=resolve_precision(config.precision))
        model = load_model(config)
        config = replace(config, max_seq_length=model.tokenizer.model_max_length)
        # Now, not after an hour of training.
        require_space({output: size_of(model)})
        history, steps, best = fit(model, config, train_rows, held_out)
        true = [row.label for row in held_out]
        logits = predict(model, config, held_out)
        predicted = logits.argmax(axis=1).tolist()
        metrics = {
            **evaluate.scores(true, predicted, names),
            "eval_loss": evaluate.cross_entropy(true, logits),
            "train_loss": mean_loss(history),
            **{f"baseline_{name}": value for name, value in baseline.items()},
            "train_samples": len(train_rows),
            "eval_samples": len(held_out),
            "steps": steps,
            **({"best_step": best} if best else {}),
        }
        save_model(model, directory)
        counts = evaluate.confusion(true, predicted, len(names))
        draw_confusion_matrix(counts, names, directory / CONFUSION_MATRIX)
        draw_training_curve(history, metrics, directory / TRAINING_CURVE)
        seconds = round(time.monotonic() - start, 1)
        rows = Counter(names[row.label] for row in train_rows)
        write_reports(directory, config, {**metrics, "seconds": seconds}, history, origin, rows)
    logger.info(
        "held-out accuracy %.4f, baseline %.4f, %.0f s; model in %s",
        metrics["accuracy"],
        metrics["baseline_accuracy"],
        seconds,
        output,
    )
    return {
        **{name: round(metrics[name], 6) for name in ("accuracy", "baseline_accuracy", "f1")},
        "eval_loss": round(metrics["eval_loss"], 6),
        "steps": steps,
        "seconds": seconds,
        "output_dir": str(output),
    }


def load_model(config: TrainingConfig) -> Model:
    """Return the base model with a new, seeded head; layers that shall not learn are frozen.

    Its tokenizer cuts at max_seq_length, here and wherever the model is used.
    """
    torch = import_torch()
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True)
    source = resolve(config.model_name_or_path)
    model = Model(
        load_tokenizer(resolve(config.tokenizer_name or config.model_name_or_path)),
        new_classifier(source, config.labels, config.config_name, config.dropout),
        config.precision,
    )
    tokenizer = model.tokenizer
    tokenizer.model_max_length = min(config.max_seq_length, tokenizer.model_max_length)
    freeze(model.classifier, config)
    return model


def size_of(model: Model) -> int:
    """Return the bytes of a model's weights."""
    return sum(one.numel() * one.element_size() for one in model.classifier.parameters())


def freeze(classifier: Any, config: TrainingConfig) -> None:
    """Keep the embeddings or the first layers as they are.

    The embeddings hold half of the weights of a small model but hardly change in a short training;
    without them an optimizer step costs half. Frozen layers save their backward pass.
    """
    base = classifier.base_model
    if config.freeze_embeddings:
        base.embeddings.requires_grad_(False)
    layers = getattr(getattr(base, "encoder", None), "layer", [])
    if config.freeze_layers > len(layers):
        raise WorkloadError(
            f"freeze_layers is {config.freeze_layers}, the model has {len(layers)} layers"
        )
    for layer in layers[: config.freeze_layers]:
        layer.requires_grad_(False)


def fit(
    model: Model, config: TrainingConfig, rows: Sequence[Row], held_out: Sequence[Row]
) -> tuple[list[dict], int, int]:
    """Train the classifier in place; return the history, the number of steps, and the best one.

    The best step is 0 unless load_best_model_at_end asks for it; then the classifier ends with the
    weights of that step. The history has a point with step, loss, train_accuracy and learning_rate
    for each group of logging_steps steps, and one with eval_accuracy for each evaluation.

    Raises:
        WorkloadError: the loss is not a number any more.
    """
    import torch

    encoded, cut = model.encode([row.sentence for row in rows])
    if cut:
        logger.info("%d training rows are cut at %d tokens", cut, config.max_seq_length)
    labels = torch.tensor([row.label for row in rows])
    size, parts = config.per_device_train_batch_size, config.gradient_accumulation_steps
    per_epoch = math.ceil(math.ceil(len(rows) / size) / parts)
    steps = (
        config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * per_epoch)
    )
    evaluations = evaluation_steps(config, steps, per_epoch)
    weights = [weight for weight in model.classifier.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(config, steps))
    batches = endless_batches(encoded, size, config.seed)
    history, losses, hits, seen, total = [], [], 0, 0, 0
    best_step, best_value, best_weights = 0, -math.inf, {}
    start, ticker = time.monotonic(), Ticker()
    logger.info("training: %d steps of %d sentences in %s", steps, size * parts, config.precision)
    model.classifier.train()
    for step in range(1, steps + 1):
        loss_of_step = 0.0
        for _ in range(parts):
            batch = next(batches)
            inputs = padded([encoded[at] for at in batch], model.pad)
            with model.computing():
                output = model.classifier(**inputs, labels=labels[batch])
            (output.loss / parts).backward()
            loss_of_step += output.loss.item() / parts
            hits += int((output.logits.argmax(dim=1) == labels[batch]).sum())
            seen += len(batch)
            total += len(batch)
        if not math.isfinite(loss_of_step):
            raise WorkloadError(
                f"the training loss is {loss_of_step} at step {step}; try a learning_rate below "
                f"{config.learning_rate:g}"
            )
        rate = schedule.get_last_lr()[0]
        if config.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss_of_step)
        if ticker.due() or step in (1, steps):
            elapsed = time.monotonic() - start
            logger.info(
                "step %d/%d  loss %.3f  %.0f sentences/s  %.0f s left",
                step,
                steps,
                sum(losses) / len(losses),
                total / elapsed,
                elapsed / step * (steps - step),
            )
        if step % config.logging_steps == 0 or step == steps:
            point = {
                "step": step,
                "loss": sum(losses) / len(losses),
                "train_accuracy": hits / seen,
                "learning_rate": rate,
                "steps": len(losses),
            }
            history.append(point)
            losses, hits, seen = [], 0, 0
        if step in evaluations:
            found = figures(model, config, held_out)
            accuracy = found["accuracy"]
            history.append({"step": step, "eval_accuracy": accuracy})
            logger.info("step %d/%d  held-out accuracy %.4f", step, steps, accuracy)
            value = found[config.best_metric] * (1 if config.best_is_greatest else -1)
            if config.load_best_model_at_end and value > best_value:
                best_step, best_value = step, value
                state = model.classifier.state_dict().items()
                best_weights = {name: weight.clone() for name, weight in state}
    if best_step:
        model.classifier.load_state_dict(best_weights)
        logger.info("best %s at step %d", config.best_metric, best_step)
    return history, steps, best_step


def figures(model: Model, config: TrainingConfig, held_out: Sequence[Row]) -> dict[str, float]:
    """Return the scores and the loss on the held-out rows."""
    true, logits = [row.label for row in held_out], predict(model, config, held_out)
    scores = evaluate.scores(true, logits.argmax(axis=1).tolist(), config.labels)
    return {**scores, "loss": evaluate.cross_entropy(true, logits)}


def evaluation_steps(config: TrainingConfig, steps: int, per_epoch: int) -> set[int]:
    """Return the steps after which the held-out rows are predicted.

    The last one is among them only where the best is to be chosen: it is evaluated in any case,
    after the training. Else these points are for the curve only, nothing is chosen by them, and
    the final accuracy stays honest.
    """
    every = {"no": 0, "steps": config.eval_steps or config.logging_steps, "epoch": per_epoch}
    interval = every[config.eval_strategy]
    delay = config.eval_delay * (per_epoch if config.eval_strategy == "epoch" else 1)
    found = (
        {step for step in range(interval, steps, interval) if step >= delay} if interval else set()
    )
    return found | {steps} if config.load_best_model_at_end else found


def endless_batches(encoded: Sequence[Sequence[int]], size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of positions, epoch after epoch, in an order that depends on `seed` alone."""
    source = random.Random(seed)
    while True:
        order = list(range(len(encoded)))
        source.shuffle(order)
        batches = list(batches_by_length(encoded, order, size))
        source.shuffle(batches)
        yield from batches


def learning_rate_factor(config: TrainingConfig, steps: int) -> Callable[[int], float]:
    """Return the share of the learning rate at each step, from 0, as transformers' schedules do."""
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * steps)
    if config.lr_scheduler_type == "constant":
        warmup = 0

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.lr_scheduler_type.startswith("constant"):
            return 1.0
        left = (steps - step) / max(1, steps - warmup)
        if config.lr_scheduler_type == "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))
        return max(0.0, left)

    return factor


def mean_loss(history: Sequence[dict]) -> float:
    """Return the training loss over all steps."""
    points = [point for point in history if "loss" in point]
    weighted = sum(point["loss"] * point["steps"] for point in points)
    return weighted / sum(point["steps"] for point in points)


def predict(model: Model, config: TrainingConfig, rows: Sequence[Row]) -> Any:
    """Return the logits for held-out rows."""
    encoded, _ = model.encode([row.sentence for row in rows])
    return predict_logits(model, encoded, config.per_device_eval_batch_size, "evaluating")


def save_model(model: Model, directory: Path) -> None:
    """Write weights, configuration and tokenizer.

    Raises:
        WorkloadError: the place is full or cannot be written.
    """
    with heartbeat(f"saving the model to {directory}"):
        try:
            model.classifier.save_pretrained(directory, safe_serialization=True)
            model.tokenizer.save_pretrained(directory)
            # safetensors makes its file readable for the owner alone.
            (directory / WEIGHTS_FILE).chmod(0o644)
        except OSError:
            raise
        except Exception as error:
            # safetensors and tokenizers have errors of their own for a full disk.
            raise WorkloadError(f"cannot save the model: {one_line(error)}") from error


def write_reports(
    directory: Path,
    config: TrainingConfig,
    metrics: dict[str, float],
    history: Sequence[dict],
    origin: dict[str, str],
    rows: Counter[str],
) -> None:
    """Write what a person, the registry or the Trainer's tools want to know about the model.

    `rows` counts the training rows of each label.
    """
    plain = (
        "best_step",
        "train_loss",
        "train_samples",
        "eval_samples",
        "eval_loss",
        "steps",
        "seconds",
    )
    chosen = ""
    if "best_step" in metrics:
        chosen = CHOSEN.format(metric=config.best_metric, **metrics)
    trainer = {
        name if name in plain or name.startswith("baseline_") else f"eval_{name}": value
        for name, value in metrics.items()
    }
    state = {"global_step": metrics["steps"], "log_history": list(history)}
    for name, content in {
        METRICS_FILE: metrics,
        TRAINER_METRICS_FILE: trainer,
        HISTORY_FILE: state,
        ARGUMENTS_FILE: asdict(config),
        LINEAGE_FILE: origin,
    }.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    values = {
        **metrics,
        **origin,
        "base_model": config.model_name_or_path,
        "batch_size": config.per_device_train_batch_size * config.gradient_accumulation_steps,
        "max_seq_length": config.max_seq_length,
        "labels": ", ".join(config.labels),
        "rows": ", ".join(f"{name} {rows[name]}" for name in config.labels),
        "chosen": chosen or NOT_CHOSEN,
        "f1_of": "F1" if len(config.labels) == 2 else "F1, weighted by rows",
    }
    (directory / "README.md").write_text(model_card(values, origin), encoding="utf-8")
