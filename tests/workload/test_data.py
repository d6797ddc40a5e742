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
from classic_example.data import read_labelled, read_table
from classic_example.errors import WorkloadError
from classic_example.movie_reviews import parse_ratings
from workload_helpers import BUNDLED, HEADER, Cli, read_csv, sentences, write_csv

SPLITS = ("train", "val", "test")


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
    assert result["rows"] == {"train": 8566, "val": 1000, "test": 1000}
    seen: set[str] = set()
    for split in SPLITS:
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


def test_labels_of_the_test_rows_stay_in_the_image(bundled: tuple[dict, Path]):
    gold = read_csv(BUNDLED / "test_gold.csv")
    test = read_csv(bundled[1] / "test.csv")
    assert [row["sentence"] for row in gold] == [row["sentence"] for row in test]
    assert {row["label"] for row in gold} == {"0", "1"}
    assert sorted(p.name for p in bundled[1].iterdir()) == [
        "dataset.json",
        "test.csv",
        "train.csv",
        "val.csv",
    ]


def test_the_same_data_has_the_same_hash(bundled: tuple[dict, Path], cli: Cli, tmp_path: Path):
    paths = [tmp_path / "a" / "one.csv", tmp_path / "b" / "two.csv", tmp_path / "three.csv"]
    ended = cli("load-sst2-data-file-input", *paths, env={"DATA_SOURCE": "bundled"})
    assert ended.result == bundled[0]
    for split, path in zip(SPLITS, paths, strict=True):
        assert path.read_bytes() == (bundled[1] / f"{split}.csv").read_bytes()


@pytest.mark.parametrize("mode", ["auto", "glue"])
def test_sst2_is_loaded_from_a_reachable_hub(cli: Cli, glue_mirror: str, tmp_path: Path, mode: str):
    ended = cli("load-sst2-data", tmp_path, env={"DATA_SOURCE": mode, "HF_ENDPOINT": glue_mirror})
    assert ended.result["source"] == "GLUE/SST-2 (nyu-mll/glue)"
    assert ended.result["rows"] == {"train": 60, "val": 20, "test": 9}
    loaded = read_csv(tmp_path / "train.csv") + read_csv(tmp_path / "val.csv")
    expected = {(text, str(label), str(idx)) for text, label, idx in sentences(80)}
    assert {tuple(row.values()) for row in loaded} == expected
    assert {row["label"] for row in read_csv(tmp_path / "test.csv")} == {"-1"}


def test_auto_falls_back_when_the_hub_refuses(cli: Cli, tmp_path: Path):
    ended = cli("load-sst2-data", tmp_path, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "GLUE/SST-2 is out of reach" in ended.stdout
    assert ended.result["source"] == sources.BUNDLED


def test_auto_falls_back_within_seconds_when_the_hub_hangs(
    cli: Cli, silent_server: str, tmp_path: Path
):
    ended = cli("load-sst2-data", tmp_path, env={"HF_ENDPOINT": silent_server})
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


def test_trickling_download_ends_at_the_deadline(glue_mirror: str):
    with pytest.raises(TimeoutError, match="did not arrive"):
        sources.download(
            f"{glue_mirror}{sources.glue_url('train')[len(sources.glue_endpoint()) :]}", 0
        )


def test_unknown_source_is_refused(cli: Cli, tmp_path: Path):
    ended = cli("load-sst2-data", tmp_path, env={"DATA_SOURCE": "imdb"})
    assert ended.error == ("ERROR: DATA_SOURCE='imdb' is not known; allowed: auto, glue, bundled")


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
        pytest.param("", "is empty: expected a header", id="empty"),
        pytest.param("sentence,label,idx\n", "has a header but no rows", id="no-rows"),
        pytest.param(
            "text,label,idx\na,1,0\n",
            "has no column sentence; its columns are text, label, idx",
            id="no-sentence",
        ),
        pytest.param("sentence,idx\na,0\n", "has no column label", id="no-label"),
        pytest.param(
            "sentence,label,idx\na,1,0\nb,2,1\n",
            "line 2: no other row has label '1'; where it is meant, name all labels",
            id="label-of-one-row",
        ),
        pytest.param(
            "sentence,label,idx\na,-1,0\n", "-1 marks a row without a label", id="unlabelled"
        ),
        pytest.param("sentence,label,idx\na,0.5,0\n", "label 0.5 is not a whole number", id="half"),
        pytest.param(
            "sentence,label,idx\na,good,0\nb,good,1\n", "all 2 rows have label good", id="text"
        ),
        pytest.param("sentence,label,idx\na,nan,0\n", "label nan is not a whole number", id="nan"),
        pytest.param("sentence,label,idx\na,,0\n", "line 2: the label is empty", id="blank-label"),
        pytest.param("sentence,label,idx\n ,1,0\n", "line 2: the sentence is empty", id="blank"),
        pytest.param(
            "sentence,label,idx\na, b,1,0\n", "line 2: 4 fields, the header has 3", id="comma"
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


def test_missing_file_and_directory_are_told_apart(tmp_path: Path):
    with pytest.raises(WorkloadError, match="does not exist; load-sst2-data makes it"):
        read_table(tmp_path / "none.csv", ("sentence",))
    with pytest.raises(WorkloadError, match="is a directory"):
        read_table(tmp_path, ("sentence",))


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
