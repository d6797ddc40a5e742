"""load-data: files of one's own, from every kind of place, into one data set or not at all."""

import csv
import gzip
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from classic_example.data import read_labelled
from classic_example.errors import WorkloadError
from classic_example.sources import load_data, load_sst2_data
from pyarrow import fs, parquet
from workload_helpers import APP, HEADER, Cli, everything_below, read_csv, sentences, write_csv

Rows = list[list]


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIN_FREE_BYTES", "0")


@pytest.fixture(scope="module")
def s3() -> Iterator[fs.FileSystem]:
    """Run an S3 server, which the environment names; yield it with an empty bucket `box`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-told-to-anybody")
        filesystem, _ = fs.FileSystem.from_uri("s3://box?allow_bucket_creation=true")
        filesystem.create_dir("box")
        yield filesystem
    server.stop()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serve the directory `web` of the test; yield its address."""
    (tmp_path / "web").mkdir()
    files = partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def reviews(count: int = 100, offset: int = 0) -> Rows:
    """Return rows of a text and one of two text labels."""
    return [[text, ["bad", "good"][n]] for text, n, _ in sentences(count, offset)]


def table_of(rows: Rows, *names: str) -> pyarrow.Table:
    return pyarrow.table(dict(zip(names or HEADER[:2], zip(*rows, strict=True), strict=True)))


def write_parquet(path: Path, rows: Rows) -> Path:
    parquet.write_table(table_of(rows), path)
    return path


def loaded(directory: Path) -> dict[str, list[tuple[str, str]]]:
    """Return text and label of each row of each split."""
    return {
        path.stem: [(row["sentence"], row["label"]) for row in read_csv(path)]
        for path in directory.glob("*.csv")
    }


def test_one_file_is_split_by_its_texts(tmp_path: Path):
    rows = reviews()
    # The same text in other letters, later and with another distance of its words.
    rows += [[f" {text.upper().replace(' ', '  ')}\n", label] for text, label in rows]
    result = load_data(str(write_csv(tmp_path / "a.csv", HEADER[:2], rows)), tmp_path / "out")
    found = loaded(tmp_path / "out")
    texts = {
        split: {text.casefold().replace("  ", " ") for text, _ in found[split]} for split in found
    }
    assert result["rows"] == {
        split: len(found[split]) for split in ("train", "val", "test", "gold")
    }
    assert sum(result["rows"][split] for split in ("train", "val", "gold")) == 200
    assert 120 <= len(found["train"]) <= 190
    assert not texts["train"] & texts["val"] | texts["train"] & texts["gold"]
    assert not texts["val"] & texts["gold"]
    assert [(text, "-1") for text, _ in found["gold"]] == found["test"]
    assert {label for split in ("train", "val", "gold") for _, label in found[split]} == {
        "bad",
        "good",
    }
    assert list(read_csv(tmp_path / "out" / "val.csv")[0]) == HEADER
    # A training takes it as it is.
    _, labels = read_labelled(tmp_path / "out" / "train.csv")
    assert labels.names == ("bad", "good")
    # Again, the same: by the texts alone.
    again = write_parquet(tmp_path / "b.parquet", rows)
    assert load_data(str(again), tmp_path / "again")["sha256"] == result["sha256"]


def test_directory_keeps_its_splits(tmp_path: Path):
    source = tmp_path / "in"
    (source / "train").mkdir(parents=True)
    write_parquet(source / "train" / "part-0.parquet", reviews(40))
    write_csv(source / "train" / "part-1.csv", HEADER[:2], reviews(40, 40))
    write_csv(source / "validation.csv", HEADER[:2], reviews(10, 80))
    write_csv(source / "test.csv", HEADER[:2], reviews(10, 90))
    (source / "_SUCCESS").touch()
    (source / "README.md").write_text("not data")
    result = load_data(str(source), tmp_path / "out")
    # The labels of a test file judge.
    assert result["rows"] == {"train": 80, "val": 10, "test": 10, "gold": 10}
    found = loaded(tmp_path / "out")
    assert [list(row) for row in found["gold"]] == reviews(10, 90)
    assert found["test"] == [(text, "-1") for text, _ in found["gold"]]
    write_csv(source / "test.csv", HEADER[:2], [["unlabelled", ""], ["too", "-1"]])
    result = load_data(str(source), tmp_path / "out")
    assert result["rows"]["test"] == 2
    assert result["rows"]["train"] + result["rows"]["gold"] == 80
    (source / "other.csv").write_text("sentence\na\n")
    with pytest.raises(WorkloadError, match=r"other\.csv is for no split, others are"):
        load_data(str(source), tmp_path / "out")


def test_what_is_held_out_is_not_trained_on(tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    train = write_csv(source / "train.csv", HEADER[:2], reviews(20))
    write_csv(source / "val.csv", HEADER[:2], [*reviews(10, 18), ["A  Twin", "bad"]])
    write_csv(source / "gold.csv", HEADER[:2], [*reviews(10, 40), ["a twin", "bad"]])
    with pytest.raises(WorkloadError) as caught:
        load_data(str(source), tmp_path / "out")
    assert f"{source}/val.csv row 12: the text is held out too, one of 3" in str(caught.value)
    assert everything_below(tmp_path / "out") == set()
    result = load_data(str(source), tmp_path / "out", on_bad_row="skip")
    assert result["skipped"] == {"overlap": 3}
    assert result["rows"] == {"train": 18, "val": 10, "test": 11, "gold": 11}
    assert train.exists()


def test_without_labels_all_rows_are_test_rows(tmp_path: Path, cli: Cli):
    source = write_csv(tmp_path / "in.csv", ["text"], [["one"], ["two"]])
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.csv").write_text("of before")
    ended = cli("load-data", source, out, "--text-column", "text", env={"MIN_FREE_BYTES": "0"})
    assert ended.result["rows"] == {"test": 2}
    assert "WARNING: no row has a label" in ended.stdout
    assert loaded(out)["test"] == [("one", "-1"), ("two", "-1")]
    assert not (out / "train.csv").exists()


BAD = "text,stars\na fine film,2\n ,2\nno label,\nodd,x\n\xff\xfe,2\na,b,c\nhalf,0.5\n"


def test_bad_rows_end_the_step_or_are_counted(tmp_path: Path):
    source = tmp_path / "in.csv"
    good = "".join(f"film {n},{n % 2}\r\n" for n in range(60))
    source.write_bytes(BAD.replace("2\n", "1\n").encode("latin-1") + good.encode())
    options = {"text_column": "text", "label_column": "stars", "labels": "0,1"}
    with pytest.raises(WorkloadError) as caught:
        load_data(str(source), tmp_path / "out", **options)
    assert f"{source} row 7: 3 fields, the header has 2" in str(caught.value)
    assert "--on-bad-row skip (DATA_ON_BAD_ROW)" in str(caught.value)
    assert everything_below(tmp_path / "out") == set()
    result = load_data(str(source), tmp_path / "out", **options, on_bad_row="skip")
    assert result["skipped"] == {
        "the text is empty": 1,
        "the label is empty": 1,
        "the label is unknown": 1,
        "the label is not a whole number": 1,
        "the row is not readable": 2,
    }
    assert sum(result["rows"][split] for split in ("train", "val", "gold")) == 61
    assert (
        json.loads((tmp_path / "out" / "dataset.json").read_text())["skipped"] == result["skipped"]
    )


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([["", "1"]], {}, "in.csv row 2: the text is empty"),
        ([["a", ""]], {}, "in.csv row 2: the label is empty"),
        ([["a", "1"], ["b", "z"]], {"labels": "0,1"}, "in.csv row 3: the label is unknown"),
        ([["a", "1"]], {"text_column": "body"}, "in.csv has no column body; its columns are sent"),
        ([["a", "1"]], {"label_column": "stars"}, "in.csv has no column stars; its columns are s"),
        ([["a", "1"]], {"on_bad_row": "mend"}, "on_bad_row is 'mend', allowed: fail, skip"),
        ([["a", "1"]], {"format": "xml"}, "format is 'xml', allowed: , csv, parquet"),
        ([["a", "1"]], {}, "there is none for"),
        ([], {}, "no row can be used"),
        ([[f"film {n}", str(n)] for n in range(1200)], {}, "label has over 1000 different labels"),
        ([*reviews(), ["one", "odd"]], {}, "label 'odd' is that of "),
    ],
)
def test_what_makes_no_data_set_is_refused(
    tmp_path: Path, rows: Rows, options: dict[str, str], message: str
):
    out = tmp_path / "out"
    load_data(str(write_csv(tmp_path / "a.csv", HEADER[:2], reviews())), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(WorkloadError) as caught:
        load_data(str(write_csv(tmp_path / "in.csv", HEADER[:2], rows)), out, **options)
    assert message in str(caught.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_texts_of_every_kind_arrive(tmp_path: Path):
    odd = [
        "x" * 200 * 1024,
        "😀 film",
        'say "no", twice',
        "two\r\nlines\nmore",
        "naïve — 映画",
        "NUL \0",
    ]
    quoted = [text.replace('"', '""') for text in odd]
    lines = [f'"{text}",{n % 2}' for n, text in enumerate(quoted)]
    lines += [f"film {n},{n % 2}" for n in range(60)]
    source = tmp_path / "in.csv"
    source.write_bytes(("\ufeffsentence,label\r\n" + "\r\n".join(lines)).encode())
    csv.field_size_limit(1 << 20)
    load_data(str(source), tmp_path / "csv")
    found = loaded(tmp_path / "csv")
    assert set(odd) <= {text for split in ("train", "val", "gold") for text, _ in found[split]}
    rows = [[text, n % 2 == 1] for n, text in enumerate([*odd, *(f"film {n}" for n in range(60))])]
    write_parquet(tmp_path / "in.parquet", rows)
    load_data(str(tmp_path / "in.parquet"), tmp_path / "parquet")
    again = loaded(tmp_path / "parquet")
    assert [text for text, _ in again["train"]] == [text for text, _ in found["train"]]
    assert {label for _, label in again["train"]} == {"true", "false"}


def test_files_in_s3_are_loaded(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli):
    parts = [reviews(40, 40 * n) for n in range(3)]
    for n, rows in enumerate(parts):
        table = table_of(rows, "text", "stars")
        parquet.write_table(table, f"box/day/part-{n}.parquet", filesystem=s3)
    with s3.open_output_stream("box/day/notes.csv") as file:
        file.write(b"something else\n1\n")
    # As a run has it: the document's command, and the values in the environment.
    monkeypatch.setenv("DATA_SOURCE", "s3://box/day/part-*.parquet")
    monkeypatch.setenv("DATA_TEXT_COLUMN", "text")
    monkeypatch.setenv("DATA_LABEL_COLUMN", "stars")
    result = load_sst2_data(tmp_path / "a")
    assert result["source"] == "s3://box/day/part-*.parquet"
    assert sum(result["rows"][split] for split in ("train", "val", "gold")) == 120
    # A parameter of the run goes over them.
    monkeypatch.setenv("DATA_SOURCE", "glue")
    monkeypatch.setenv("ML_PIPELINES_PARAMS", '{"data_source": "s3://box/day/part-1.parquet"}')
    result = load_sst2_data(tmp_path / "b")
    assert sum(result["rows"][split] for split in ("train", "val", "gold")) == 40
    for address, message in (
        ("s3://box/none.csv", "s3://box/none.csv does not exist"),
        ("s3://box/none/*.csv", "s3://box/none/*.csv does not exist"),
        ("s3://box/day/*.json", "there is no file s3://box/day/*.json"),
        ("s3://nobox/a.csv", "s3://nobox/a.csv does not exist"),
        ("s3://me:secret@box/a.csv", "s3://***@box/a.csv holds a password"),
        ("s4://box/a.csv", "cannot use the address s4://box/a.csv"),
    ):
        with pytest.raises(WorkloadError) as caught:
            load_data(address, tmp_path / "c")
        assert message in str(caught.value)
        assert "secret" not in str(caught.value)
        assert everything_below(tmp_path / "c") == set()


def test_directories_and_compressed_files_in_s3_are_loaded(s3, tmp_path: Path):
    rows = reviews()
    expected = load_data(str(write_csv(tmp_path / "a.csv", HEADER[:2], rows)), tmp_path / "a")
    # As Spark leaves a table.
    for n in range(4):
        part = pyarrow.table(
            dict(zip(HEADER[:2], zip(*rows[25 * n :][:25], strict=True), strict=True))
        )
        parquet.write_table(part, f"box/table/part-{n}.snappy.parquet", filesystem=s3)
    # Compressed by its name.
    for place in ("box/table/_SUCCESS", "box/zipped/a.csv.gz"):
        with s3.open_output_stream(place) as file:
            file.write((tmp_path / "a.csv").read_bytes())
    for place in ("table", "zipped", "zipped/*.gz"):
        found = load_data(f"s3://box/{place}", tmp_path / "out")
        assert (found["rows"], found["sha256"]) == (expected["rows"], expected["sha256"])


def test_server_that_is_gone_is_named(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(WorkloadError, match=r"cannot read s3://box/a\.csv: .*connect") as caught:
        load_data("s3://box/a.csv", tmp_path / "out")
    assert "not-told-to-anybody" not in str(caught.value)


def test_files_of_a_web_server_are_loaded(web: str, tmp_path: Path):
    write_csv(tmp_path / "web" / "a.csv", HEADER[:2], reviews())
    write_parquet(tmp_path / "web" / "a.parquet", reviews())
    packed = gzip.compress((tmp_path / "web" / "a.csv").read_bytes())
    (tmp_path / "web" / "a.csv.gz").write_bytes(packed)
    results = [
        load_data(f"{web}/{name}?token=private", tmp_path / name)
        for name in ("a.csv", "a.csv.gz", "a.parquet")
    ]
    assert len({one["sha256"] for one in results}) == 1
    assert results[0]["source"] == f"{web}/a.csv"
    assert everything_below(tmp_path / "a.csv") == {
        *("train.csv", "val.csv", "test.csv", "gold.csv", "dataset.json")
    }
    with pytest.raises(WorkloadError) as caught:
        load_data(f"{web}/none.csv?token=private", tmp_path / "out")
    assert f"cannot fetch {web}/none.csv: 404" in str(caught.value)
    assert "private" not in str(caught.value)


def test_commands_of_the_page_run(s3, tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"^```sh\n(python classic_example/cli\.py .*?)^```", page, re.M | re.S)
    write_csv(tmp_path / "reviews.csv", ["text", "stars"], reviews())
    (tmp_path / "splits").mkdir()
    write_csv(tmp_path / "splits" / "train.csv", HEADER[:2], reviews())
    s3.create_dir("my-bucket")
    parquet.write_table(table_of(reviews()), "my-bucket/reviews/1.parquet", filesystem=s3)
    commands = block.replace("/tmp/", f"{tmp_path}/")
    done = subprocess.run(
        ["sh", "-euxc", commands], cwd=APP, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    hashes = {json.loads(line.removeprefix("RESULT "))["sha256"] for line in results}
    assert len(results) == 3
    assert len(hashes) == 1
