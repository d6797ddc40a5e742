"""A BERT-like sentence classifier on the CPU: loading, batching, predicting."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classic_example.data import LABELS
from classic_example.errors import WorkloadError, one_line
from classic_example.progress import Ticker, heartbeat

if TYPE_CHECKING:
    import numpy
    import torch

logger = logging.getLogger(__name__)

# Pre-trained models that the image carries, by the last part of their name.
MODELS_DIRECTORY = "/opt/models"
# Read together before they are cut into batches of like length.
POOL_BATCHES = 16


def import_torch() -> Any:
    """Import torch with as many threads as OMP_NUM_THREADS says (1 when it is not set).

    More threads than free cores make OpenBLAS spin: 2 threads on a busy 2-core machine took 4.0 s
    for a step that one thread does in 0.4 s.
    """
    with heartbeat("loading torch and transformers"):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads())
    return torch


def threads() -> int:
    """Return OMP_NUM_THREADS as a number, 1 when it is not one."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(text)) if text.isdecimal() else 1


def computes_bf16(cpuinfo: str) -> bool:
    """Return whether /proc/cpuinfo lists instructions for bf16; without them it would be slower."""
    flags = cpuinfo.partition("flags")[2].partition("\n")[0].split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_precision(wanted: str) -> str:
    """Return `fp32` or `bf16`: `auto` goes by the processor.

    bf16 has the range of fp32 with 8 bits of precision. Weights and optimizer stay in fp32; a
    training step takes 0.25 s instead of 0.41 s (Zen 4, one core), with the same accuracy.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if computes_bf16(Path("/proc/cpuinfo").read_text()) else "fp32"


def resolve(name: str) -> str:
    """Return where a pre-trained model is: a directory, one the image carries, or `name` itself.

    Hugging Face's hub is asked for the rest.
    """
    if Path(name).is_dir():
        return name
    carried = Path(os.environ.get("MODELS_DIRECTORY", "") or MODELS_DIRECTORY, Path(name).name)
    if carried.is_dir():
        logger.info("base model %s from %s", name, carried)
        return str(carried)
    return name


def load_pretrained(what: str, source: str, load: Any, **options: Any) -> Any:
    """Return `load(source, **options)`.

    Raises:
        WorkloadError: the model or tokenizer is not there or cannot be read.
    """
    try:
        return load(source, **options)
    except Exception as error:
        raise WorkloadError(
            f"cannot load the {what} {source!r}: {one_line(error, 200)}; it must be a directory "
            f"with a Hugging Face model, a name below {MODELS_DIRECTORY}, or a model on the hub"
        ) from error


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a model."""
    from transformers import AutoTokenizer

    return load_pretrained("tokenizer", source, AutoTokenizer.from_pretrained)


def load_classifier(source: str, config_source: str | None = None, dropout: float | None = None):
    """Return a classifier for LABELS; where `source` has no such head, a new one is made.

    `dropout` replaces the model's own, None keeps it.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = load_pretrained(
        "model configuration",
        config_source or source,
        AutoConfig.from_pretrained,
        num_labels=len(LABELS),
        id2label=dict(LABELS),
        label2id={text: label for label, text in LABELS.items()},
    )
    if dropout is not None:
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if hasattr(config, name):
                setattr(config, name, dropout)
    return load_pretrained(
        "model", source, AutoModelForSequenceClassification.from_pretrained, config=config
    )


def encode(tokenizer: Any, sentences: Sequence[str], max_length: int) -> list[list[int]]:
    """Return the token ids of each sentence, cut at `max_length` tokens."""
    limit = min(max_length, tokenizer.model_max_length)
    return tokenizer(list(sentences), truncation=True, max_length=limit)["input_ids"]


def batches_by_length(
    encoded: Sequence[Sequence[int]], order: Sequence[int], size: int
) -> Iterator[list[int]]:
    """Yield batches of positions from `order`, those of like length together.

    Each batch is padded to its longest sentence only, which halves the work on short sentences.
    Sorting is within pools of 16 batches, so that the batches stay a random sample.
    """
    pool = size * POOL_BATCHES
    for start in range(0, len(order), pool):
        by_length = sorted(order[start : start + pool], key=lambda at: len(encoded[at]))
        for first in range(0, len(by_length), size):
            yield by_length[first : first + size]


def padded(encoded: Sequence[Sequence[int]], pad: int) -> dict[str, "torch.Tensor"]:
    """Return one batch as model input: token ids padded with `pad`, and the attention mask."""
    import torch

    width = max(len(ids) for ids in encoded)
    token_ids = torch.full((len(encoded), width), pad, dtype=torch.long)
    mask = torch.zeros((len(encoded), width), dtype=torch.long)
    for row, ids in enumerate(encoded):
        token_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return {"input_ids": token_ids, "attention_mask": mask}


def predict_logits(
    model: Any, encoded: Sequence[Sequence[int]], pad: int, size: int, what: str
) -> "numpy.ndarray":
    """Return the model's logits, shape (rows, labels), in the order of `encoded`."""
    import numpy
    import torch

    logits = numpy.zeros((len(encoded), model.config.num_labels), dtype=numpy.float32)
    was_training, ticker, done = model.training, Ticker(), 0
    model.eval()
    with torch.inference_mode():
        for batch in batches_by_length(encoded, range(len(encoded)), size):
            inputs = padded([encoded[at] for at in batch], pad)
            logits[batch] = model(**inputs).logits.numpy()
            done += len(batch)
            if ticker.due():
                logger.info("%s: %d of %d rows", what, done, len(encoded))
    model.train(was_training)
    return logits
