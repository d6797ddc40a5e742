"""The pictures that go with a model. Figures are drawn without pyplot, which costs a second."""

from collections.abc import Sequence
from pathlib import Path

import numpy

DPI = 110


def draw_confusion_matrix(
    labels: Sequence[int], predicted: Sequence[int], names: Sequence[str], path: Path
) -> None:
    """Draw how many rows of each label got which, with their share of the true label."""
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

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
    from matplotlib.figure import Figure

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
