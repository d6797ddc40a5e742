"""README.md of a trained model, in the form of a Hugging Face model card."""

from collections.abc import Mapping
from typing import Any

from classic_example.model_files import CONFUSION_MATRIX, TRAINING_CURVE

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
![Confusion matrix]({confusion_matrix})
![Training curve]({training_curve})

## Use

```python
from transformers import pipeline

pipeline("text-classification", model=".", truncation=True)("a text of any length")
```

## Limits

Trained, measured and used on the first {max_seq_length} tokens of a text; the rest is cut.
Not tried on text of another kind than the data above.
"""


def model_card(
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    origin: Mapping[str, str],
    rows: Mapping[str, int],
) -> str:
    """Return the card.

    `origin` says which data and which run made the model, `rows` how many rows each label had.
    """
    keys = ("dag_id", "run_id", "dags_commit", "image", "parameters")
    made_by = [f"{key} `{origin[key]}`" for key in keys if key in origin]
    labels, chosen = settings["labels"], NOT_CHOSEN
    if "best_step" in metrics:
        metric = settings["metric_for_best_model"].removeprefix("eval_")
        chosen = CHOSEN.format(metric=metric, **metrics)
    return TEMPLATE.format(
        **metrics,
        **origin,
        base_model=settings["model_name_or_path"],
        batch_size=settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"],
        numbers=settings["precision"],
        max_seq_length=settings["max_seq_length"],
        labels=", ".join(labels),
        rows=", ".join(f"{name} {rows[name]}" for name in labels),
        chosen=chosen,
        f1_of="F1" if len(labels) == 2 else "F1, weighted by rows",
        origin=f"\nMade by {', '.join(made_by)}.\n" if made_by else "",
        confusion_matrix=CONFUSION_MATRIX,
        training_curve=TRAINING_CURVE,
    )
