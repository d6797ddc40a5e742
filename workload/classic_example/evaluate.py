"""Quality on held-out rows, and the plain model that a transformer has to beat."""

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

import numpy

from classic_example.data import Row, positive_of
from classic_example.progress import heartbeat

# What the baseline may read, and how many words and pairs it may know: about 1 GB of memory.
BASELINE_CHARACTERS, BASELINE_FEATURES = 20_000_000, 500_000
# Of what is drawn at random here: the same rows give the same figures.
SEED = 42
# What `scores` returns.
SCORES = ("accuracy", "precision", "recall", "f1", "f0.5", "macro_f1")


def scores(
    labels: Sequence[int], predicted: Sequence[int], names: Sequence[str]
) -> dict[str, float]:
    """Return accuracy, macro-F1, and precision, recall, F1 and F0.5.

    Of two labels these are about the positive one, of more the mean, weighted by their rows.
    """
    from sklearn import metrics

    pair = {"y_true": labels, "y_pred": predicted}
    about = {**pair, "zero_division": 0.0, "average": "weighted"}
    if len(names) == 2:
        about |= {"average": "binary", "pos_label": positive_of(names)}
    found = (
        metrics.accuracy_score(**pair),
        metrics.precision_score(**about),
        metrics.recall_score(**about),
        metrics.f1_score(**about),
        metrics.fbeta_score(**about, beta=0.5),
        metrics.f1_score(**pair, average="macro", zero_division=0.0),
    )
    return dict(zip(SCORES, map(float, found), strict=True))


def baseline(
    train: Sequence[Row], held_out: Sequence[Row], names: Sequence[str]
) -> dict[str, float]:
    """Return the scores of baseline_predictions, and as `samples` how many rows it has read."""
    predicted, samples = baseline_predictions(train, held_out)
    found = scores([row.label for row in held_out], predicted, names)
    return {**found, "samples": samples}


def baseline_predictions(
    train: Sequence[Row], held_out: Sequence[Row]
) -> tuple[numpy.ndarray, int]:
    """Return what tf-idf over words and word pairs with logistic regression says.

    They are label numbers, shape (rows,); and how many rows it has read: all of `train`, or
    BASELINE_CHARACTERS at random.
    """
    rows = list(train)
    if sum(len(row.sentence) for row in rows) > BASELINE_CHARACTERS:
        random.Random(SEED).shuffle(rows)
        ends = accumulate(len(row.sentence) for row in rows)
        rows = rows[: bisect(list(ends), BASELINE_CHARACTERS)]
    what = f"{len(rows)} rows" if len(rows) == len(train) else f"{len(rows)} of {len(train)} rows"
    with heartbeat(f"baseline: tf-idf and logistic regression on {what}"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=BASELINE_FEATURES),
            LogisticRegression(C=4.0, max_iter=1000),
        )
        model.fit([row.sentence for row in rows], [row.label for row in rows])
        return model.predict([row.sentence for row in held_out]), len(rows)


def mcnemar(right: numpy.ndarray, other: numpy.ndarray) -> float:
    """Return the two-sided p value of McNemar's exact test of two models on the same rows.

    Each says for every row whether a model was right: booleans of shape (rows,). Rows that only one
    model has right fall to either with probability 1/2 if both are equally good. Quinn McNemar,
    Psychometrika 12 (1947), 153-157; with the binomial distribution in place of chi-square it holds
    for any number of rows.
    """
    from scipy.stats import binomtest

    only, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    return float(binomtest(only, only + only_other).pvalue) if only + only_other else 1.0


def interval(right: numpy.ndarray, other: numpy.ndarray | None = None) -> list[float]:
    """Return the ends of the 95 % interval of a model's accuracy, or of its lead on another model.

    The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
    13): rows are drawn anew with replacement, 10,000 times, both models' together. As a row counts
    1, 0 or -1, such a draw is one from the multinomial distribution of these.
    """
    of_rows = right.astype(int) - (0 if other is None else other)
    values, counts = numpy.unique(of_rows, return_counts=True)
    shares, source = counts / len(of_rows), numpy.random.default_rng(SEED)
    drawn = source.multinomial(len(of_rows), shares, size=10_000)
    ends = numpy.percentile(drawn @ values / len(of_rows), [2.5, 97.5])
    return [round(float(end), 6) for end in ends]
