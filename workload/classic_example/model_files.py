"""Names of the files in a trained model's directory."""

WEIGHTS_FILE = "model.safetensors"
# What a model needs to predict, and its card. A directory without one of these is not a model.
MODEL_FILES = (
    "config.json",
    WEIGHTS_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
)
# One file with plain names for the registry and for people, one with the Trainer's for its tools.
METRICS_FILE = "metrics.json"
TRAINER_METRICS_FILE = "all_results.json"
HISTORY_FILE = "trainer_state.json"
ARGUMENTS_FILE = "training_args.json"
LINEAGE_FILE = "lineage.json"
CONFUSION_MATRIX = "confusion_matrix.png"
TRAINING_CURVE = "training_curve.png"
# Left by load-from-registry: which model this is.
REGISTRY_FILE = "registry.json"
