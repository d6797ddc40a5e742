"""Figures of drift: by hand, by SciPy, and of texts that do or do not differ."""

import json
import math
from collections import Counter

import pytest
from classic_example.statistics import count, drift, ks, psi
from workload_helpers import BUNDLED, read_csv


def test_counts_of_batches_add_up_and_survive_json():
    texts = ["", " \n", "A film, a FILM!", "caf\ufffd", "x" * 200_000, "映画 😀"]
    whole = count(texts, list("nnnppp"), [0, 1, 0.5, 0.049, 0.05, 0.999])
    parts = [count(texts[at : at + 2], "nnnppp"[at : at + 2]) for at in (0, 2, 4)]
    assert sum(parts, Counter()) == Counter({k: n for k, n in whole.items() if "score" not in k})
    assert (whole["rows"], whole["empty"]) == (6, 2)
    assert whole["unknown"] == 1
    assert {key: n for key, n in whole.items() if key.startswith("length")} == {
        "length:1": 1,
        "length:2": 1,
        "length:4": 2,
        "length:12": 1,
        "length:185364": 1,
    }
    assert {key: n for key, n in whole.items() if key.startswith("score")} == {
        "score:0.0": 2,
        "score:0.05": 1,
        "score:0.5": 1,
        "score:0.95": 2,
    }
    assert sum(n for key, n in whole.items() if key.startswith("tokens")) == 7
    assert Counter(json.loads(json.dumps(whole))) == whole
    assert count([])["rows"] == 0


def test_psi_is_the_formula():
    assert psi([49.5, 49.5], [49.5, 49.5]) == 0
    expected = (0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5)
    assert psi([49.5, 49.5], [29.5, 69.5]) == pytest.approx(expected)
    assert psi([29.5, 69.5], [49.5, 49.5]) == pytest.approx(expected)


def test_ks_is_that_of_scipy():
    from scipy.stats import ks_2samp

    one, other = [3, 0, 9, 4, 1], [1, 5, 2, 2, 7]
    rows = [[at for at, n in enumerate(counts) for _ in range(n)] for counts in (one, other)]
    assert ks(one, other) == pytest.approx(ks_2samp(*rows).statistic)


def test_drift_tells_other_texts_from_the_same():
    train, test = (
        [row["sentence"] for row in read_csv(BUNDLED / f"{name}.csv")] for name in ("train", "gold")
    )
    model = count(train, scores=[at / len(train) for at in range(len(train))])
    same = drift(model, count(test, scores=[at / len(test) for at in range(len(test))]))
    assert same.keys() == {
        *("empty", "unknown", "psi_length", "ks_length", "psi_tokens", "psi_score"),
    }
    assert max(same.values()) < 0.05
    short = drift(model, count([text[:40] for text in test]))
    assert short["psi_length"] > 0.25
    assert short["ks_length"] > 0.5
    assert "psi_score" not in short
    foreign = drift(model, count([f"映画は素晴らしい {at}" for at in range(100)] + ["", "\ufffd"]))
    assert foreign["psi_tokens"] > 0.25
    assert foreign["empty"] == foreign["unknown"] == pytest.approx(1 / 102, abs=1e-4)
    sure = drift(model, count(test, scores=[0.99] * len(test)))
    assert sure["psi_score"] > 0.25
    assert sure["psi_length"] == same["psi_length"]
