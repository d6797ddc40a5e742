"""The files of a trained model's directory."""

import hashlib
from pathlib import Path

from classic_example.errors import WorkloadError, names, not_there
from classic_example.files import sha256_of

# What a model needs to predict. Weights may be in several files, and tokenizers have many forms.
NEEDED = {
    "config.json": ("config.json",),
    "*.safetensors": ("*.safetensors",),
    "tokenizer file": ("tokenizer.json", "vocab.*", "*.model"),
}
# One file with plain names for the registry and for people, one with the Trainer's for its tools.
METRICS_FILE, TRAINER_METRICS_FILE = "metrics.json", "all_results.json"
HISTORY_FILE, ARGUMENTS_FILE = "trainer_state.json", "training_args.json"
LINEAGE_FILE = "lineage.json"
# Counts of the texts that the model was trained on (statistics.py), for the drift of others.
STATISTICS_FILE = "statistics.json"
PLOTS = CONFUSION_MATRIX, TRAINING_CURVE = "confusion_matrix.png", "training_curve.png"
# Left by load-from-registry: which model this is.
REGISTRY_FILE = "registry.json"


def missing_files(directory: Path) -> list[str]:
    """Return what a directory lacks to be a model that can predict."""
    return [
        part
        for part, patterns in NEEDED.items()
        if not any(any(directory.glob(pattern)) for pattern in patterns)
    ]


def require_model(directory: Path, maker: str) -> None:
    """Raise WorkloadError unless a directory, made by the command `maker`, holds such a model."""
    if not directory.is_dir():
        raise not_there(directory, maker)
    if missing := missing_files(directory):
        raise WorkloadError(f"{directory} is not a trained model: it has no {names(missing)}")


def sha256_of_weights(directory: Path) -> str:
    """Return the hex SHA-256 of the weights.

    Of several files it is that of the lines `<SHA-256>  <name>`, as sha256sum prints them, by name.
    """
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()
