"""The official chart is the pinned one, wherever it comes from."""

import hashlib
import json

import pytest
import yaml

from mlctl.base.errors import UserError
from mlctl.base.paths import CHART, ROOT
from mlctl.base.versions import pins
from mlctl.release import chart

PIN = pins()["chart"]
WANTED = {
    "name": PIN["name"],
    "version": PIN["version"],
    "repository": "https://airflow.apache.org",
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A chart directory that a test may spoil."""
    monkeypatch.setattr(chart, "CHART", tmp_path)
    return tmp_path / "charts" / f"{PIN['name']}-{PIN['version']}.tgz"


def test_chart_lock_and_pin_name_the_same_version():
    lock = yaml.safe_load((CHART / "Chart.lock").read_text())
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["dependencies"] == [WANTED]
    assert lock["dependencies"] == [WANTED]


def test_lock_is_in_step_with_the_chart():
    """As helm computes it: over what Chart.yaml asks for and what the lock says."""
    text = json.dumps([[WANTED], [WANTED]], separators=(",", ":"))
    digest = yaml.safe_load((CHART / "Chart.lock").read_text())["digest"]
    assert digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_top_level_lock_is_the_charts():
    assert (ROOT / "Chart.lock").readlink().as_posix() == "charts/ml-pipelines/Chart.lock"


def test_archive_is_the_official_chart(official_chart):
    files = chart.read_archive(official_chart)
    assert chart.files_sha256(files) == PIN["files"]
    inside = yaml.safe_load(files["Chart.yaml"])
    assert (inside["name"], inside["version"]) == (PIN["name"], PIN["version"])


def test_same_files_make_the_same_archive(official_chart, tmp_path):
    files = chart.read_archive(official_chart)
    archives = [tmp_path / "a.tgz", tmp_path / "b.tgz"]
    for archive, order in zip(archives, (sorted(files), sorted(files, reverse=True)), strict=True):
        chart.write_archive({name: files[name] for name in order}, archive, PIN["name"])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    assert chart.read_archive(archives[0]) == files


@pytest.mark.parametrize("change", ["content", "name", "one more"])
def test_other_files_are_refused(change, official_chart):
    files = chart.read_archive(official_chart)
    if change == "content":
        files["values.yaml"] += b"\n"
    elif change == "name":
        files["values2.yaml"] = files.pop("values.yaml")
    else:
        files["templates/more.yaml"] = b""
    with pytest.raises(UserError, match="from a mirror is not the pinned one") as error:
        chart.verify(files, "a mirror")
    assert "versions.toml" in str(error.value)
    assert "CHART_REPOSITORY" in str(error.value)


@pytest.mark.parametrize("spoilt", ["other files", "cut off", "no archive"])
def test_spoilt_archive_is_replaced(spoilt, elsewhere, official_chart):
    elsewhere.parent.mkdir()
    elsewhere.with_name("airflow-0.0.1.tgz").write_bytes(b"older")
    files = chart.read_archive(official_chart)
    files["values.yaml"] += b"\n"
    if spoilt == "other files":
        chart.write_archive(files, elsewhere, PIN["name"])
    elif spoilt == "cut off":
        elsewhere.write_bytes(official_chart.read_bytes()[:5000])
    else:
        elsewhere.write_text("<html>not found</html>")
    assert chart.dependency() == elsewhere
    assert chart.files_sha256(chart.read_archive(elsewhere)) == PIN["files"]
    assert [file.name for file in elsewhere.parent.iterdir()] == [elsewhere.name]


def test_right_archive_is_kept(elsewhere, official_chart, monkeypatch):
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(official_chart.read_bytes())
    monkeypatch.setattr(chart, "_from_package", lambda pin: pytest.fail("fetched again"))
    assert chart.dependency() == elsewhere


@pytest.mark.parametrize("source", ["upstream", "http://127.0.0.1:9"])
def test_unreachable_source_says_what_else_there_is(source, elsewhere):
    if source == "upstream":
        # Its own repository, at a port where nobody listens.
        text = (CHART / "Chart.yaml").read_text()
        elsewhere.parent.parent.joinpath("Chart.yaml").write_text(
            text.replace(WANTED["repository"], "http://127.0.0.1:9")
        )
    with pytest.raises(UserError, match="the pinned package is used, which needs no chart repo"):
        chart.dependency(source)
    assert not elsewhere.exists()


def test_mirror_with_another_chart_is_refused(elsewhere, official_chart, monkeypatch):
    def pull(*arguments):
        files = chart.read_archive(official_chart) | {"templates/more.yaml": b""}
        chart.write_archive(files, elsewhere, PIN["name"])

    monkeypatch.setattr(chart, "_helm", pull)
    with pytest.raises(UserError, match="not the pinned one"):
        chart.dependency("https://charts.example.com")
    assert not elsewhere.exists()
