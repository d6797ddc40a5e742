"""Quality on held-out rows, and the plain model that a transformer has to beat."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from classic_example.data import Row, positive_of
from classic_example.progress import heartbeat

if TYPE_CHECKING:
    import numpy


def scores(
    labels: Sequence[int], predicted: Sequence[int], names: Sequence[str]
) -> dict[str, float]:
    """Return accuracy, macro-F1, and precision, recall, F1 and F0.5.

    Of two labels these are about the positive one, of more the mean, weighted by their rows.
    """
    from sklearn.metrics import accuracy_score, fbeta_score, precision_recall_fscore_support

    about = {"average": "weighted"}
    if len(names) == 2:
        about = {"average": "binary", "pos_label": positive_of(names)}
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, zero_division=0.0, **about
    )
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "f0.5": float(fbeta_score(labels, predicted, beta=0.5, zero_division=0.0, **about)),
        "macro_f1": float(fbeta_score(labels, predicted, beta=1, average="macro", zero_division=0)),
    }


def cross_entropy(labels: Sequence[int], logits: "numpy.ndarray") -> float:
    """Return the mean of -log softmax(logits)[label], in nats."""
    import numpy
    from scipy.special import log_softmax

    return float(-log_softmax(logits, axis=1)[numpy.arange(len(labels)), labels].mean())


def confusion(labels: Sequence[int], predicted: Sequence[int], count: int) -> list[list[int]]:
    """Return counts by [true label][predicted label] of `count` labels."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, predicted, labels=range(count)).tolist()


def baseline(
    train: Sequence[Row], held_out: Sequence[Row], names: Sequence[str]
) -> dict[str, float]:
    """Return the scores of tf-idf over words and word pairs with logistic regression.

    It is trained on all training rows, also where the transformer sees only a part of them.
    """
    with heartbeat(f"baseline: tf-idf and logistic regression on {len(train)} rows"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            LogisticRegression(C=4.0, max_iter=1000),
        )
        model.fit([row.sentence for row in train], [row.label for row in train])
        predicted = model.predict([row.sentence for row in held_out])
        return scores([row.label for row in held_out], predicted, names)
