"""What long work shows while it runs."""

import pytest

from mlctl.base.errors import UserError
from mlctl.base.progress import Phases, show_table


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_can_be_left_out_but_no_result_and_no_failure(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUIET", "1" if quiet else "")
    phases = Phases()
    with phases.phase("build") as phase:
        phase.say("half of it")
    with pytest.raises(UserError, match="full"), phases.phase("load"):
        raise UserError("the disk is full")
    show_table(["image"], [["airflow"]])
    shown = capsys.readouterr().out
    assert ("==> build" in shown, "half of it" in shown, "ok  build" in shown) == (not quiet,) * 3
    assert "xxx load failed" in shown
    assert "airflow" in shown
    assert [one["name"] for one in phases.report()] == ["build"]
