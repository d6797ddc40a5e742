"""What texts look like, in counts that are small however many there are, and how far two differ.

Counts are added up: of batches, of shards, over a retry. Their keys:

- `rows`, `empty` (nothing but white space), `unknown` (with U+FFFD, which stands for characters
  that could not be decoded)
- `length:n`: texts of n characters or more, up to the next n, which is sqrt(2) times as much
- `tokens:n`: words whose CRC-32, modulo TOKENS, is n
- `label:name`, and `score:s`: scores from s to s + 1 / SCORES
"""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy
import pyarrow
from pyarrow import compute

TOKENS = 64
SCORES = 20
# Share of the expected counts that each bin of an ordered figure has: about ten bins, of which the
# usual limits of the PSI are said (0.1 a shift, 0.25 a large one).
BIN = 0.1


def count(
    texts: Sequence[str] | pyarrow.Array, labels: Sequence[str] = (), scores: Sequence[float] = ()
) -> Counter[str]:
    """Return the counts of texts, and of their labels and scores where these are given.

    A score is the probability of the positive label, or of the predicted one where there is none.
    """
    if not isinstance(texts, pyarrow.Array | pyarrow.ChunkedArray):
        texts = pyarrow.array(texts, pyarrow.large_string())
    words = compute.split_pattern_regex(compute.utf8_lower(texts), r"[^\pL\pN]+").flatten()
    lengths = numpy.maximum(compute.utf8_length(texts).to_numpy(), 1)
    steps = numpy.floor(2 * numpy.log2(lengths)).astype(int).tolist()
    bins = numpy.minimum(numpy.asarray(scores) * SCORES, SCORES - 1).astype(int).tolist()
    counts = Counter(
        rows=len(texts),
        empty=compute.sum(compute.equal(compute.utf8_trim_whitespace(texts), "")).as_py() or 0,
        unknown=compute.sum(compute.match_substring(texts, "\ufffd")).as_py() or 0,
    )
    # The smallest whole number with such a logarithm.
    counts.update({f"length:{math.ceil(2 ** (at / 2))}": n for at, n in Counter(steps).items()})
    counts.update({f"score:{at / SCORES}": n for at, n in Counter(bins).items()})
    counts.update({f"label:{label}": n for label, n in Counter(labels).items()})
    for word in compute.value_counts(words).to_pylist():
        if word["values"]:
            counts[f"tokens:{zlib.crc32(word['values'].encode()) % TOKENS}"] += word["counts"]
    return counts


def scores_of(probabilities: numpy.ndarray, positive: int | None) -> numpy.ndarray:
    """Return the scores, shape (rows,), of probabilities of shape (rows, labels)."""
    return probabilities.max(1) if positive is None else probabilities[:, positive]


def psi(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Return the population stability index of counts in the same bins.

    The sum of (a - e) ln(a / e) over the bins' shares a and e (Siddiqi, "Credit Risk Scorecards",
    2006). So that no share is 0, each count is half a row more (Krichevsky & Trofimov, IEEE Trans.
    Inf. Theory 27, 1981). Without any drift it is about (bins - 1) (1 / n + 1 / m) for n and m rows
    (Yurdakul, "Statistical Properties of Population Stability Index", 2018).
    """
    e, a = (numpy.asarray(counts) + 0.5 for counts in (expected, actual))
    e, a = e / e.sum(), a / a.sum()
    return float(((a - e) * numpy.log(a / e)).sum())


def ks(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Return the statistic of Kolmogorov and Smirnov of counts in the same, ordered bins.

    The largest distance of the two cumulative distributions (Smirnov, Ann. Math. Stat. 19, 1948),
    here between the bins. Both must have counts.
    """
    e, a = (numpy.cumsum(counts) / numpy.sum(counts) for counts in (expected, actual))
    return float(numpy.abs(e - a).max())


def drift(model: Mapping[str, int], rows: Mapping[str, int]) -> dict[str, float]:
    """Return how far the counts of `rows` are from those that the model was made with.

    psi_length, ks_length, psi_tokens and psi_score, each where both have counts of it, and which
    shares of the rows are `empty` and `unknown`.
    """
    figures = {name: rows.get(name, 0) / rows["rows"] for name in ("empty", "unknown")}
    for name in ("length", "tokens", "score"):
        keys = [key for key in {**model, **rows} if key.startswith(f"{name}:")]
        keys.sort(key=lambda key: float(key.partition(":")[2]))
        e, a = ([counts.get(key, 0) for key in keys] for counts in (model, rows))
        if any(e) and any(a):
            figures[f"psi_{name}"] = psi(e, a) if name == "tokens" else psi(*merged(e, a))
            if name == "length":
                figures["ks_length"] = ks(e, a)
    return {name: round(figure, 4) for name, figure in figures.items()}


def merged(expected: Sequence[int], actual: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the counts with neighbouring bins put together until each has BIN of `expected`."""
    rest = sum(expected)
    least, e, a = rest * BIN, [0], [0]
    for one, other in zip(expected, actual, strict=True):
        if min(e[-1], rest) >= least:
            e.append(0)
            a.append(0)
        e[-1] += one
        a[-1] += other
        rest -= one
    return e, a
