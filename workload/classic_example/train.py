"""Fine-tune a sentence classifier: what goes in, and the files that come out.

The training itself is transformers' (fine_tuning.py). On one kind of processor, with the same seed
and number of threads, two trainings give the same numbers to the last digit.
"""

import logging
import os
import random
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classic_example import evaluate, lineage, sources
from classic_example.data import Labels, Row, read_labelled
from classic_example.errors import WorkloadError
from classic_example.files import cannot_write, new_directory, remove, require_space
from classic_example.progress import heartbeat
from classic_example.text_model import Model, import_torch, load_tokenizer, new_classifier, resolve

if TYPE_CHECKING:
    from classic_example.config import TrainingConfig

logger = logging.getLogger(__name__)

# Settings that say when and where something is shown or kept, not what comes out.
WITHOUT_EFFECT = ("checkpoint_seconds", "disable_tqdm", "output_dir", "run_name")


def train(config_path: Path) -> dict[str, Any]:
    """Train as the configuration says, write the model to its output_dir, return the result.

    Started by `accelerate launch` there are several of these; the first writes, the others end.
    Raises WorkloadError for the configuration, the data, the base model or the output directory.
    """
    start = time.monotonic()
    import_torch()
    from classic_example.config import read_config
    from classic_example.fine_tuning import FineTuning, Tracking

    config = read_config(config_path)
    output, first = Path(config.output_dir), config.process_index == 0
    # Beside the output, in the directory of the run: a killed try leaves it to the next.
    begun = output.with_name(f".{output.name}.training")
    config.output_dir = str(begun)
    if not first:
        logging.getLogger("classic_example").setLevel(logging.WARNING)
    train_file, validation_file = Path(config.train_file), Path(config.validation_file)
    labels = Labels.named(config.labels) if config.labels else None
    train_rows, labels = read_labelled(train_file, labels)
    held_out, _ = read_labelled(validation_file, labels)
    train_rows = drawn(train_rows, config.max_train_samples, config.seed)
    held_out = drawn(held_out, config.max_eval_samples, config.seed)
    names = config.labels = labels.names
    origin = sources.describe(train_file, validation_file) | lineage.of_this_run()
    origin["device"] = config.hardware
    logger.info("%d training rows, %d held out; %s", len(train_rows), len(held_out), origin)
    logger.info("labels: %s", ", ".join(names))
    # A retry must not leave the model of an earlier attempt where a new one is expected.
    if first:
        try:
            remove(output)
        except OSError as error:
            raise cannot_write(output, error) from None

    with new_directory(output) if first else nullcontext(output) as directory:
        model = load_model(config)
        config.max_seq_length = model.tokenizer.model_max_length
        # Now, not after an hour of training. A checkpoint is three times the model.
        require_space({output: 4 * model.classifier.get_memory_footprint()})
        settings = {**config.said(), "output_dir": str(output), "device": config.hardware}
        key = {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}
        tracking = Tracking(settings, origin)
        try:
            if first:
                baseline = evaluate.baseline(train_rows, held_out, names)
                logger.info("baseline: held-out accuracy %.4f", baseline["accuracy"])
            trainer = FineTuning(model, config, train_rows, held_out)
            if os.environ.get("REGISTRY"):
                trainer.add_callback(tracking)
            trainer.fit({**key, "data": origin["data_sha256"]})
            figures, *others = trainer.held_out_figures()
            if not first:
                raise SystemExit(0)
            if tracking.run_id:
                origin[lineage.TRACKING_RUN] = tracking.run_id
            metrics = {
                **figures,
                **{f"baseline_{name}": value for name, value in baseline.items()},
                "train_samples": len(train_rows),
                "eval_samples": len(held_out),
            }
            with heartbeat(f"saving the model to {directory}"):
                from classic_example.reports import write_reports

                model.classifier.save_pretrained(directory)
                model.tokenizer.save_pretrained(directory)
            # safetensors makes its files readable for the owner alone.
            for weights in directory.glob("*.safetensors"):
                weights.chmod(0o644)
            metrics["seconds"] = round(time.monotonic() - start, 1)
            history = trainer.history()
            write_reports(directory, settings, metrics, history, origin, train_rows, others)
        except Exception:
            # The next try would meet the same.
            tracking.finish("FAILED")
            remove(begun)
            raise
        except SystemExit:
            # Asked to end, and maybe there is no next try.
            tracking.finish("KILLED")
            raise
        tracking.finish("FINISHED")
    remove(begun)
    text = "held-out accuracy {accuracy:.4f}, baseline {baseline_accuracy:.4f}, {seconds:.0f} s"
    logger.info("%s; model in %s", text.format(**metrics), output)
    told = ("accuracy", "baseline_accuracy", "f1", "eval_loss", "steps", "seconds")
    result = {name: round(metrics[name], 6) for name in told}
    shown = {"run_url": tracking.url} if tracking.url else {}
    return {**result, **shown, "device": config.hardware, "output_dir": str(output)}


def drawn(rows: list[Row], limit: int | None, seed: int) -> list[Row]:
    """Return at most so many rows, drawn by a seed: a file may be sorted by its labels."""
    return rows if limit is None or limit >= len(rows) else random.Random(seed).sample(rows, limit)


def load_model(config: "TrainingConfig") -> Model:
    """Return the base model with a new, seeded head; layers that shall not learn are frozen.

    Its tokenizer cuts at max_seq_length, here and wherever the model is used.
    """
    import torch

    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True)
    source = resolve(config.model_name_or_path)
    model = Model(
        load_tokenizer(resolve(config.tokenizer_name or config.model_name_or_path)),
        new_classifier(source, config.labels, config.config_name, config.dropout),
        config.precision,
        config.device.type,
    )
    tokenizer = model.tokenizer
    tokenizer.model_max_length = min(config.max_seq_length, tokenizer.model_max_length)
    freeze(model.classifier, config)
    return model


def freeze(classifier: Any, config: "TrainingConfig") -> None:
    """Keep the embeddings or the first layers as they are.

    The embeddings hold half of the weights of a small model but hardly change in a short training;
    without them an optimizer step costs half. Frozen layers save their backward pass.
    """
    import torch

    base = classifier.base_model
    if config.freeze_embeddings:
        getattr(base, "embeddings", base.get_input_embeddings()).requires_grad_(False)
    count = getattr(classifier.config, "num_hidden_layers", 0)
    lists = (one for one in base.modules() if isinstance(one, torch.nn.ModuleList))
    layers = next((one for one in lists if len(one) == count), ())
    if config.freeze_layers > len(layers):
        raise WorkloadError(
            f"freeze_layers is {config.freeze_layers}, the model "
            f"({classifier.config.model_type}) has {len(layers)} layers of its own weights"
        )
    for layer in layers[: config.freeze_layers]:
        layer.requires_grad_(False)
