"""Loading labelled sentences: what is written, from where, and what bad files do."""

import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from classic_example import sources
from classic_example.data import read_labelled
from classic_example.errors import WorkloadError
from classic_example.files import sha256_of
from classic_example.movie_reviews import parse_ratings
from workload_helpers import HEADER, Cli, read_csv, sentences, write_csv

SPLITS = ("train", "val", "test", "gold")


@pytest.fixture
def glue_mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a small SST-2 as the hub does; yield its address."""
    import pyarrow
    import pyarrow.parquet

    root = tmp_path_factory.mktemp("hub")
    place = root / f"datasets/nyu-mll/glue/resolve/{sources.GLUE_REVISION}/sst2"
    place.mkdir(parents=True)
    for split, rows in (
        ("train", [(f"{text} ", label, idx) for text, label, idx in sentences(80)]),
        ("test", [(f"{text} ", -1, idx) for text, _, idx in sentences(9)]),
        # The first of them is a training row too.
        ("validation", [(f"{text} ", label, idx) for text, label, idx in sentences(8, offset=79)]),
    ):
        columns = dict(zip(HEADER, zip(*rows, strict=True), strict=True))
        file = place / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    files = partial(SimpleHTTPRequestHandler, directory=root)
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def bundled(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    directory = tmp_path_factory.mktemp("bundled") / "made" / "with" / "parents"
    ended = cli("load-sst2-data", directory, env={"DATA_SOURCE": "bundled"})
    return ended.result, directory


def test_bundled_data_keeps_the_contract(bundled: tuple[dict, Path]):
    result, directory = bundled
    assert result["rows"] == {"train": 8566, "val": 1000, "test": 1000, "gold": 1000}
    assert result["skipped"] == {}
    assert result["note"].startswith("train 8566, val 1000, test 1000, gold 1000 rows of ")
    seen: set[str] = set()
    for split in SPLITS[:3]:
        rows = read_csv(directory / f"{split}.csv")
        assert len(rows) == result["rows"][split]
        assert list(rows[0]) == HEADER
        assert len({row["idx"] for row in rows}) == len(rows)
        assert {row["label"] for row in rows} == ({"-1"} if split == "test" else {"0", "1"})
        assert all(row["sentence"].strip() for row in rows)
        # No held-out sentence may be among the training rows.
        texts = {row["sentence"].casefold() for row in rows}
        assert not texts & seen
        seen |= texts


def test_bundled_data_says_that_it_is_not_sst2(bundled: tuple[dict, Path]):
    result, directory = bundled
    assert "vaderSentiment 3.3.2" in result["source"]
    assert "not SST-2" in result["source"]
    assert json.loads((directory / "dataset.json").read_text())["source"] == result["source"]


def test_gold_has_the_labels_that_the_test_rows_lack(bundled: tuple[dict, Path]):
    gold, test = (read_csv(bundled[1] / f"{split}.csv") for split in ("gold", "test"))
    assert [row["sentence"] for row in gold] == [row["sentence"] for row in test]
    assert {row["label"] for row in gold} == {"0", "1"}
    assert sorted(path.name for path in bundled[1].iterdir()) == [
        "dataset.json",
        "gold.csv",
        "test.csv",
        "train.csv",
        "val.csv",
    ]


def test_description_has_the_hashes_of_the_files(bundled: tuple[dict, Path]):
    result, directory = bundled
    description = json.loads((directory / "dataset.json").read_text())
    assert description["files"] == {
        f"{split}.csv": sha256_of(directory / f"{split}.csv") for split in SPLITS
    }
    assert description["rows"] == result["rows"]


def test_the_same_data_has_the_same_hash(bundled: tuple[dict, Path], cli: Cli, tmp_path: Path):
    paths = [tmp_path / "a" / "one.csv", tmp_path / "b" / "two.csv", tmp_path / "three.csv"]
    # Also what is taken when nobody says which.
    ended = cli("load-sst2-data-file-input", *paths)
    without_gold = {split: bundled[0]["rows"][split] for split in SPLITS[:3]}
    note = {"note": bundled[0]["note"]}
    assert ended.result | note == bundled[0] | {"rows": without_gold}
    for split, path in zip(SPLITS, paths, strict=False):
        assert path.read_bytes() == (bundled[1] / f"{split}.csv").read_bytes()
    assert {path.name for path in tmp_path.rglob("*.*")} == {
        *("one.csv", "two.csv", "three.csv", "dataset.json")
    }


@pytest.mark.parametrize("mode", ["auto", "glue"])
def test_sst2_is_loaded_from_a_reachable_hub(cli: Cli, glue_mirror: str, tmp_path: Path, mode: str):
    ended = cli("load-sst2-data", tmp_path, env={"DATA_SOURCE": mode, "HF_ENDPOINT": glue_mirror})
    assert ended.result["source"] == "GLUE/SST-2 (nyu-mll/glue)"
    # What is in the validation set as well is not trained on.
    assert ended.result["skipped"] == {"overlap": 1}
    rows = {split: read_csv(tmp_path / f"{split}.csv") for split in SPLITS}
    assert {split: len(rows[split]) for split in ("test", "gold")} == {"test": 9, "gold": 8}
    expected = {(text, str(label), str(idx)) for text, label, idx in sentences(79)}
    assert {tuple(row.values()) for row in rows["train"] + rows["val"]} == expected
    assert 0 < len(rows["val"]) < 20
    assert {row["label"] for row in rows["test"]} == {"-1"}
    assert not list(tmp_path.glob(".*"))


def test_auto_falls_back_when_the_hub_refuses(cli: Cli, tmp_path: Path):
    ended = cli(
        "load-sst2-data", tmp_path, env={"DATA_SOURCE": "auto", "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert "GLUE/SST-2 is out of reach" in ended.stdout
    assert ended.result["source"] == sources.BUNDLED


def test_auto_falls_back_within_seconds_when_the_hub_hangs(
    cli: Cli, silent_server: str, tmp_path: Path
):
    ended = cli(
        "load-sst2-data", tmp_path, env={"DATA_SOURCE": "auto", "HF_ENDPOINT": silent_server}
    )
    assert ended.result["source"] == sources.BUNDLED
    assert ended.seconds < 15


def test_glue_is_not_replaced_when_it_was_asked_for(cli: Cli, tmp_path: Path):
    ended = cli(
        "load-sst2-data",
        tmp_path / "data",
        env={"DATA_SOURCE": "glue", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    assert "GLUE/SST-2 cannot be loaded" in ended.error
    assert "DATA_SOURCE=bundled" in ended.error
    assert not (tmp_path / "data").exists()


def test_trickling_download_ends_at_the_deadline(glue_mirror: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", glue_mirror)
    with pytest.raises(TimeoutError, match="did not arrive"):
        sources.download(sources.glue_url("train"), tmp_path, deadline=0)


def test_unknown_source_is_refused(cli: Cli, tmp_path: Path):
    ended = cli("load-sst2-data", tmp_path, env={"DATA_SOURCE": "imdb"})
    assert ended.error == (
        "ERROR: DATA_SOURCE='imdb' is not known; allowed: auto, glue, bundled, or an address of "
        "files"
    )


def test_image_without_data_says_so(cli: Cli, tmp_path: Path):
    ended = cli(
        "load-sst2-data",
        tmp_path,
        env={"DATA_SOURCE": "bundled", "BUNDLED_DATA": str(tmp_path / "none")},
    )
    assert "no bundled data" in ended.error


def test_ratings_become_labels():
    text = "1\t2.5\tFine film\r\n2\t-0.1\tBad film\r\n3\t0\tA film\r\n4\t1\tfine  FILM\r\n"
    assert parse_ratings(text) == [("Fine film", 1), ("Bad film", 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "is not a CSV file: Empty CSV file", id="empty"),
        pytest.param("sentence,label,idx\n", "has a header but no rows", id="no-rows"),
        pytest.param(
            "text,label,idx\na,1,0\n",
            "has no column sentence; its columns are text, label, idx",
            id="no-sentence",
        ),
        pytest.param("sentence,idx\na,0\n", "has no column label", id="no-label"),
        pytest.param(
            "sentence,label,idx\na,1,0\nb,2,1\n",
            "row 2: no other row has label '1'; where it is meant, name all labels",
            id="label-of-one-row",
        ),
        pytest.param(
            "sentence,label,idx\na,-1,0\n", "-1 marks a row without a label", id="unlabelled"
        ),
        pytest.param(
            "sentence,label,idx\na,0.5,0\n", "row 2: the label is not a whole number", id="half"
        ),
        pytest.param(
            "sentence,label,idx\na,good,0\nb,good,1\n", "all 2 rows have label good", id="text"
        ),
        pytest.param(
            "sentence,label,idx\na,nan,0\n", "row 2: the label is not a whole number", id="nan"
        ),
        pytest.param("sentence,label,idx\na,,0\n", "row 2: the label is empty", id="blank-label"),
        pytest.param("sentence,label,idx\n ,1,0\n", "row 2: the sentence is empty", id="blank"),
        pytest.param(
            "sentence,label,idx\na, b,1,0\n", "row 2: 4 fields, the header has 3", id="comma"
        ),
        pytest.param("sentence,label,idx\na,1,0\nb,1,1\n", "all 2 rows have label 1", id="one"),
        pytest.param(b"sentence,label\n\xff\xfe,1\n", "is not UTF-8 text", id="encoding"),
    ],
)
def test_bad_data_is_refused_in_plain_words(tmp_path: Path, content: str | bytes, message: str):
    path = tmp_path / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WorkloadError) as caught:
        read_labelled(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_is_told(tmp_path: Path):
    with pytest.raises(WorkloadError, match="does not exist; load-sst2-data makes it"):
        read_labelled(tmp_path / "none.csv")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(WorkloadError, match="has no labels; DATA_LABEL_COLUMN names"):
        read_labelled(tmp_path / "none.csv")


def test_quotes_line_feeds_and_commas_survive(tmp_path: Path):
    odd = ['say "no", twice', "two\nlines", "naïve — 映画", " padded "]
    path = write_csv(tmp_path / "odd.csv", HEADER, [[text, i % 2, i] for i, text in enumerate(odd)])
    assert [row.sentence for row in read_labelled(path)[0]] == odd


def test_bom_and_whole_numbers_as_floats_are_fine(tmp_path: Path):
    path = tmp_path / "excel.csv"
    path.write_text("\ufeffsentence,label\na,1.0\nb,0.0\n", encoding="utf-8")
    assert [row.label for row in read_labelled(path)[0]] == [1, 0]


def test_load_into_an_unwritable_place_fails_clearly(cli: Cli, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    ended = cli("load-sst2-data", tmp_path / "file", env={"DATA_SOURCE": "bundled"})
    assert f"cannot write {tmp_path}/file/train.csv: File exists" in ended.error
