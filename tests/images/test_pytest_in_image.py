from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from tools.in_image import pytest_in_image as workload
from tools.in_image.container import Command, Image, run
from tools.in_image.pytest_in_image import PYTEST, pytest_lock, redirect_report


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


@pytest.mark.parametrize("key", [None, "", " "])
def test_the_test_of_the_service_asks_for_a_key(key: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(UserError, match=r"WANDB_API_KEY is not set.*`make test-wandb`"):
        workload.test_wandb([])


def test_a_secret_reaches_the_command_and_no_command_line(
    images: dict[str, Image], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PLANTED_KEY", "p1anted")
    command = Command(
        entrypoint=[], arguments=["sh", "-c", "echo $PLANTED_KEY"], secrets=["PLANTED_KEY"]
    )
    assert "p1anted" not in " ".join(command.line(images["git-sync"]))
    assert run(images["git-sync"], command).stdout.strip() == "p1anted"


@pytest.mark.parametrize("resolves", [True, False])
def test_names_resolve_as_here_where_they_are_asked_for(images: dict[str, Image], resolves: bool):
    command = Command(
        entrypoint=[], arguments=["sh", "-c", "cat /etc/resolv.conf"], resolves=resolves
    )
    ended = run(images["git-sync"], command)
    assert (ended.stdout == Path("/etc/resolv.conf").read_text()) is resolves
