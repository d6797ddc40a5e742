"""How the lock files are made again."""

from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from tools.lock import REQUIREMENTS, command_of


@pytest.mark.parametrize("name", sorted(file.name for file in REQUIREMENTS.glob("*.txt")))
def test_every_lock_says_how_it_was_made(name: str) -> None:
    words = command_of(REQUIREMENTS / name)
    assert words[:2] == ["pip", "compile"]
    assert "--generate-hashes" in words
    assert f"requirements/{Path(name).stem}.in" in words
    assert f"requirements/{name}" in words


@pytest.mark.parametrize("name", sorted(file.name for file in REQUIREMENTS.glob("*.txt")))
def test_every_locked_package_has_hashes_and_no_index_is_named(name: str) -> None:
    text = (REQUIREMENTS / name).read_text()
    logical = [
        line
        for line in text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    assert logical
    assert [line for line in logical if "--hash=sha256:" not in line] == []
    assert [line for line in text.splitlines() if line.startswith("--")] == []


def test_a_lock_without_a_header_is_refused(tmp_path: Path) -> None:
    file = ROOT / "build" / "test" / "headless.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a==1\n")
    with pytest.raises(UserError, match="holds no `uv pip compile` command"):
        command_of(file)
    file.unlink()
