"""A sentence classifier: loading, batching, predicting, and the hardware for it."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal

from classic_example.errors import WorkloadError, names, one_line
from classic_example.progress import heartbeat

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
# Pre-trained models that the image carries, by name, and those whose directory has another.
MODELS_DIRECTORY = "/opt/models"
CARRIED = {"sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}
# transformers' way to say that a tokenizer knows no limit is a number far above this.
LONGEST = 1_000_000
# Read together before they are cut into batches of like length.
POOL_BATCHES = 16
# What the driver brings into a container that may use a GPU.
GPU_FILE = Path("/dev/nvidiactl")


def import_torch() -> None:
    """Import torch and transformers, without scipy.optimize, which is for pictures and slow."""
    # cuBLAS gives the same numbers twice only so.
    # https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with heartbeat("loading torch and transformers"):
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        utils = transformers.utils
        known, utils.is_scipy_available = utils.is_scipy_available, lambda: False
        import transformers.modeling_utils

        utils.is_scipy_available = known


def resolve_device(wanted: str = "auto", cpu: bool = False) -> str:
    """Return `cpu` or `cuda`; `auto` is the GPU where there is one, unless `cpu` is asked for.

    Raises WorkloadError when a GPU is asked for, or given to the container, and cannot be used.
    """
    if wanted == "cpu" or cpu:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    # Images with CUDA say `all` on a machine without a GPU too.
    given = os.environ.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "all", "none", "void")
    if wanted == "cuda" or given or GPU_FILE.exists():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        raise WorkloadError(
            f"a GPU is asked for but torch {torch.__version__} {built} and finds none that it can "
            "use; take an image whose torch fits the node's driver, or set device to cpu"
        )
    return "cpu"


def computes_bf16(cpuinfo: str) -> bool:
    """Return whether /proc/cpuinfo lists instructions for bf16; without them it would be slower."""
    flags = cpuinfo.partition("flags")[2].partition("\n")[0].split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_precision(wanted: str, device: str = "cpu") -> str:
    """Return `fp32` or `bf16`: `auto` goes by the device.

    bf16 has the range of fp32 with 8 bits of precision. Weights and optimizer stay in fp32; on a
    core of Zen 4 a step takes 0.25 s instead of 0.41 s, prediction half as long, to equal results.
    """
    if wanted != "auto":
        return wanted
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if computes_bf16(Path("/proc/cpuinfo").read_text()) else "fp32"


@contextmanager
def in_threads(count: int, own: int = 1) -> Iterator[Any]:
    """Yield a `map` whose calls are made by so many threads, with `own` of torch's for each."""
    if count == 1:
        yield map
    else:
        import torch

        with ThreadPool(count, torch.set_num_threads, (own,)) as pool:
            yield pool.imap


def resolve(name: str) -> str:
    """Return where a pre-trained model is: a directory, one the image carries, or on the hub."""
    if Path(name).is_dir():
        return name
    directory = os.environ.get("MODELS_DIRECTORY", "") or MODELS_DIRECTORY
    carried = Path(directory, CARRIED.get(name, name))
    if carried.is_dir():
        logger.info("base model %s from %s", name, carried)
        return str(carried)
    return name


def load_pretrained(what: str, source: str, load: Any, **options: Any) -> Any:
    """Return `load(source, **options)`, or raise WorkloadError: it cannot be read."""
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


def from_safetensors(source: str, config: Any, **options: Any) -> Any:
    """Return the classifier in `source`, from safetensors only: a pickle runs code when loaded."""
    from transformers import AutoModelForSequenceClassification

    directory = Path(source)
    if any(directory.glob("*.bin")) and not any(directory.glob("*.safetensors")):
        raise WorkloadError(
            f"the model {source} has its weights in a .bin file, which can run code when it is "
            "loaded; where you trust it, make safetensors of it: "
            f"AutoModel.from_pretrained({source!r}).save_pretrained(...)"
        )
    load = AutoModelForSequenceClassification.from_pretrained
    # Weights that are kept in 16 bits are too coarse to be trained; what computes is `precision`.
    told = {"config": config, "dtype": "float32", "use_safetensors": True, **options}
    return load_pretrained("model", source, load, **told)


def load_classifier(source: str) -> Any:
    """Return a trained classifier as it is, with labels of its own.

    Raises WorkloadError as from_safetensors, or when it does not choose one of several labels.
    """
    classifier, about = from_safetensors(source, None, output_loading_info=True)
    if about["missing_keys"]:
        raise WorkloadError(
            f"{source} is not a trained classifier: it has no {names(about['missing_keys'])}"
        )
    config = classifier.config
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise WorkloadError(f"{source} does not choose one label of several")
    return classifier


def new_classifier(
    source: str, labels: Sequence[str], config_source: str | None, dropout: float | None
) -> Any:
    """Return a pre-trained model with a new head for `labels`.

    A head of as many labels is kept. `dropout` replaces the model's own, None keeps it; either way
    its configuration stays as it was, for whoever trains it further. Raises WorkloadError as
    from_safetensors, or when the model has no dropout to replace.
    """
    from transformers import AutoConfig

    what, load = "model configuration", AutoConfig.from_pretrained
    other_head = load_pretrained(what, source, load).num_labels != len(labels)
    options = {"num_labels": len(labels), "problem_type": "single_label_classification"}
    options["id2label"] = dict(enumerate(labels))
    options["label2id"] = {name: number for number, name in enumerate(labels)}
    config = load_pretrained(what, config_source or source, load, **options)
    own = {
        name: value
        for name, value in config.to_dict().items()
        if re.search("dropout|pdrop", name) and isinstance(value, float | int)
    }
    if dropout is not None:
        if not own:
            raise WorkloadError(f"dropout cannot be set: {config.model_type} models have none")
        config.update(dict.fromkeys(own, dropout))
    # Only where it is another: that draws the new head from other random numbers.
    classifier = from_safetensors(source, config, ignore_mismatched_sizes=other_head)
    classifier.config.update(own)
    return classifier


@dataclass
class Model:
    """A classifier with its tokenizer, whose `model_max_length` is the one that counts."""

    tokenizer: Any
    classifier: Any
    precision: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.classifier.to(self.device)
        if self.tokenizer.model_max_length > LONGEST:
            # Nobody has said it. RoBERTa's positions begin behind two that no token has.
            positions = getattr(self.classifier.config, "max_position_embeddings", 514)
            self.tokenizer.model_max_length = min(512, positions - 2)

    @property
    def labels(self) -> list[str]:
        """Names of the labels by number."""
        config = self.classifier.config
        return [str(config.id2label[number]) for number in range(config.num_labels)]

    def computing(self) -> Any:
        """Return a context in which torch computes in the model's precision."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def encode(self, sentences: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each sentence, and how many sentences were cut."""
        encoded = self.tokenizer(list(sentences), truncation=True)
        cut = sum(bool(one.overflowing) for one in encoded.encodings)
        return encoded["input_ids"], cut


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
