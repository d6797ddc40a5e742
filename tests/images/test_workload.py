from pathlib import Path

import pytest

from images.workload import PYTEST, pytest_lock, redirect_report
from tools.errors import UserError
from tools.paths import ROOT


def test_lock_for_the_image_is_pytest_with_its_hashes():
    part = pytest_lock((ROOT / "requirements" / "tools.txt").read_text())
    entries = [line.split("==")[0] for line in part.splitlines() if "==" in line]
    assert entries == list(PYTEST)
    assert part.count("--hash=sha256:") >= len(PYTEST)


def test_package_that_the_lock_lacks_is_named():
    with pytest.raises(UserError, match="pluggy"):
        pytest_lock("pytest==1 \\\n    --hash=sha256:00\niniconfig==1\npackaging==1\npygments==1\n")


def test_report_is_written_inside_and_belongs_outside(tmp_path: Path):
    inside, wanted = redirect_report(["-q", f"--junitxml={tmp_path}/build/report.xml", "-k", "x"])
    assert inside == ["-q", "--junitxml=/reports/report.xml", "-k", "x"]
    assert wanted == {"report.xml": tmp_path / "build" / "report.xml"}
