"""What a training leaves for people, the registry and the Trainer's tools, beside the model.

Figures are drawn without pyplot, which costs a second.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib.figure import Figure
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

from classic_example import evaluate, model_files, statistics
from classic_example.data import Row, positive_of
from classic_example.files import fill_json

DPI = 110
NOT_CHOSEN = "The held-out rows took no part in training or in any choice during it."
CHOSEN = (
    "The held-out rows took no part in training, but the weights are those of step {best_step}, "
    "where their {metric} was best: the figures are a little too good."
)
TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-classification
base_model: {base_model}
metrics: [accuracy, f1]
---
# Text classification: {labels}

Fine-tuned from `{base_model}` on {train_samples} rows ({rows}) in {steps} steps of {batch_size}, in
{numbers} on {device}.

| | held out ({eval_samples} rows) | tf-idf + logistic regression on {baseline_samples} rows |
|---|---|---|
| accuracy | {accuracy:.4f} | {baseline_accuracy:.4f} |
| {f1_of} | {f1:.4f} | {baseline_f1:.4f} |
| macro-F1 | {macro_f1:.4f} | {baseline_macro_f1:.4f} |

{chosen}

Data: {data_source} (SHA-256 `{data_sha256}`).
{origin}
![Confusion matrix]({plots[0]})
![Training curve]({plots[1]})

## Use

```python
from transformers import pipeline

pipeline("text-classification", model=".", truncation=True)("a text of any length")
```

## Limits

Trained, measured and used on the first {max_seq_length} tokens of a text; the rest is cut.
Not tried on text of another kind than the data above.
"""


def write_reports(
    directory: Path,
    settings: dict[str, Any],
    metrics: dict[str, float],
    history: Sequence[dict],
    origin: dict[str, str],
    rows: Sequence[Row],
    held_out: tuple[Sequence[int], numpy.ndarray],
) -> None:
    """Write plots, card, figures, and what the texts of training look like, for drift.

    `rows` are the training rows, `held_out` labels and logits, shape (rows, labels), of the others.
    `origin` says which data and which run made the model.
    """
    names, (true, logits) = settings["labels"], held_out
    draw_confusion_matrix(true, logits.argmax(1), names, directory / model_files.CONFUSION_MATRIX)
    draw_training_curve(history, metrics, directory / model_files.TRAINING_CURVE)
    labels = [names[row.label] for row in rows]
    scores = statistics.scores_of(softmax(logits.astype(float), axis=1), positive_of(names))
    counts = statistics.count([row.sentence for row in rows], labels)
    trainer = {f"eval_{n}" if n in evaluate.SCORES else n: one for n, one in metrics.items()}
    for name, content in {
        model_files.STATISTICS_FILE: counts + statistics.count([], scores=scores),
        model_files.METRICS_FILE: metrics,
        model_files.TRAINER_METRICS_FILE: {**trainer, "device": origin["device"]},
        model_files.HISTORY_FILE: {"global_step": metrics["steps"], "log_history": list(history)},
        model_files.ARGUMENTS_FILE: settings,
        model_files.LINEAGE_FILE: origin,
    }.items():
        fill_json(directory / name, content)
    card = model_card(settings, metrics, origin, Counter(labels))
    (directory / "README.md").write_text(card, encoding="utf-8")


def model_card(
    settings: dict[str, Any],
    metrics: dict[str, float],
    origin: dict[str, str],
    rows: Counter[str],
) -> str:
    """Return README.md, a Hugging Face model card; `rows` counts the training rows by label."""
    keys = ("dag_id", "run_id", "dags_commit", "image", "parameters")
    made_by = [f"{key} `{origin[key]}`" for key in keys if key in origin]
    labels, chosen = settings["labels"], NOT_CHOSEN
    if "best_step" in metrics:
        metric = settings["metric_for_best_model"].removeprefix("eval_")
        chosen = CHOSEN.format(metric=metric, **metrics)
    steps = ("per_device_train_batch_size", "gradient_accumulation_steps")
    more = {
        "base_model": settings["model_name_or_path"],
        "batch_size": settings[steps[0]] * settings[steps[1]],
        "labels": ", ".join(labels),
        "numbers": settings["precision"],  # a metric has that name
        "rows": ", ".join(f"{name} {rows[name]}" for name in labels),
        "chosen": chosen,
        "f1_of": "F1" if len(labels) == 2 else "F1, weighted by rows",
        "origin": f"\nMade by {', '.join(made_by)}.\n" if made_by else "",
        "plots": model_files.PLOTS,
    }
    return TEMPLATE.format_map(settings | metrics | origin | more)


def draw_confusion_matrix(
    labels: Sequence[int], predicted: Sequence[int], names: Sequence[str], path: Path
) -> None:
    """Draw how many rows of each label got which, with their share of the true label."""
    counts = confusion_matrix(labels, predicted, labels=range(len(names)))
    larger = max(1, len(names) / 4)
    figure = Figure(figsize=(4.6 * larger, 4.2 * larger), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in numpy.ndenumerate(shares):
        text, color = f"{counts[row, column]}\n{share:.1%}", "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="true", title="Held-out sentences")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true label")
    figure.savefig(path, dpi=DPI)


def draw_training_curve(history: Sequence[dict], final: dict[str, float], path: Path) -> None:
    """Draw training loss, and held-out accuracy beside the baseline's.

    `history` holds points with `step` and either `loss` or `eval_accuracy`; `final` holds accuracy,
    baseline_accuracy and steps.
    """
    trained = [point for point in history if "loss" in point]
    held_out = [point for point in history if "eval_accuracy" in point]
    if "best_step" not in final:
        held_out.append({"step": final["steps"], "eval_accuracy": final["accuracy"]})
    steps = [point["step"] for point in trained]

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [point["loss"] for point in trained], marker=".", color="tab:blue")
    left.set(xlabel="step", ylabel="cross-entropy", title="Training loss")
    label, measured = "held out: {accuracy:.3f}".format(**final), [p["step"] for p in held_out]
    accuracies = [point["eval_accuracy"] for point in held_out]
    right.plot(measured, accuracies, marker="o", color="tab:green", label=label)
    label = "tf-idf baseline: {baseline_accuracy:.3f}".format(**final)
    right.axhline(final["baseline_accuracy"], linestyle="--", color="tab:red", label=label)
    right.set(xlabel="step", ylabel="accuracy", title="Accuracy", xlim=left.get_xlim())
    right.legend(loc="lower right", fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
