"""What is left of a node whose processes end at this moment."""

import os
from pathlib import Path
from typing import Any

import pytest

from mlctl.cluster.embedded import cgroups


@pytest.mark.parametrize("gone", ["pods", "pods/one", "pods/two", "none"])
def test_a_group_that_goes_by_itself_is_not_in_the_way(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / "node" / "pods" / name).mkdir(parents=True)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [tmp_path])
    look = os.scandir

    def scandir(path: Any) -> Any:
        """Look into a directory, after which one of them is no more."""
        found = look(path)
        for below in ("pods/one", "pods/two", "pods"):
            if below.startswith(gone) and (tmp_path / "node" / below).is_dir():
                (tmp_path / "node" / below).rmdir()
        return found

    monkeypatch.setattr(os, "scandir", scandir)
    assert cgroups.remove("node") == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node" / "pods").mkdir(parents=True)
    (tmp_path / "node" / "pods" / "a-process").touch()
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [tmp_path])
    assert cgroups.remove("node") == [tmp_path / "node" / "pods", tmp_path / "node"]
    assert cgroups.remove("of-nobody") == []
