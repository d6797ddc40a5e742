"""What the cache forgets, and what it never does."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlctl.base import cache, paths, processes, prune
from mlctl.base.cache import cached, lock
from mlctl.base.errors import UserError
from mlctl.base.waiting import until
from tools import bootstrap

DAYS = 24 * 3600


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    for module in (cache, paths):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def entry(directory: Path, name: str, days: float, content: bytes = bytes(100_000)) -> Path:
    """An entry that was used so many days ago."""
    path = directory / name
    path.mkdir(parents=True)
    (path / "file").write_bytes(content)
    used = time.time() - days * DAYS
    os.utime(path, (used, used))
    return path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@contextmanager
def running(program: Path) -> Iterator[None]:
    """A process of a Python under this path."""
    with processes.started([program, "-c", "import time; time.sleep(60)"]) as process:
        # The kernel fills the command line in a moment after the start.
        line = Path(f"/proc/{process.pid}/cmdline")
        until(10, lambda: str(program) in line.read_text(), "it does not start", poll=0.01)
        yield
        process.kill()


def key(number: int) -> str:
    return f"{number:012x}"


def test_two_of_each_image_stay_and_the_older_ones_go(directory: Path, capsys) -> None:
    images = directory / "images"
    for number in range(4):
        entry(images, f"classic-example-{key(number)}", days=2 + number)
        entry(images, f"classic-example-environment-{key(number)}", days=10 - number)
    entry(images, f"airflow-{key(9)}", days=100)
    prune.prune()
    assert names(images) == {
        f"classic-example-{key(0)}",
        f"classic-example-{key(1)}",
        f"classic-example-environment-{key(3)}",
        f"classic-example-environment-{key(2)}",
        f"airflow-{key(9)}",
    }
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split(":")[1].strip() == "4 of images"


def test_nothing_is_said_when_nothing_goes(directory: Path, capsys) -> None:
    entry(directory / "images", f"airflow-{key(1)}", days=100)
    prune.prune()
    assert capsys.readouterr().out == ""


def test_what_was_used_within_a_day_stays(directory: Path) -> None:
    for number in range(5):
        entry(directory / "images", f"airflow-{key(number)}", days=0.9)
        entry(directory / "image-layers", f"layer{number}", days=0.9 if number else 1.1)
    prune.prune()
    assert len(names(directory / "images")) == 5
    assert names(directory / "image-layers") == {f"layer{number}" for number in range(1, 5)}


def test_use_makes_an_entry_young_again(directory: Path) -> None:
    for number in range(4):
        entry(directory / "node", key(number), days=2 + number)
    cached("node", key(3), lambda _: pytest.fail("built anew"))
    prune.prune()
    assert names(directory / "node") == {key(0), key(3)}


@pytest.mark.parametrize(
    ("kind", "stay", "go"),
    [
        ("node", ["000000000001-go1.26.8", "000000000002-go1.26.8"], ["000000000003-go1.26.3"]),
        (
            "venvs",
            ["tools-000000000001", "tools-000000000002", "airflow-dag-tests-000000000001"],
            ["tools-000000000003"],
        ),
        (
            "wheels",
            ["helm3-2.1.0-000000000001", "helm3-2.0.9-000000000001", "go-1.26.3-00000000000a"],
            ["helm3-2.0.8-00000000000b"],
        ),
    ],
)
def test_versions_of_the_same_thing_are_one_group(
    directory: Path, kind: str, stay: list[str], go: list[str]
) -> None:
    for age, name in enumerate([*stay, *go]):
        entry(directory / kind, name, days=2 + age)
    prune.prune()
    assert names(directory / kind) == set(stay)


def test_packages_that_debian_has_replaced_go(directory: Path) -> None:
    archives = directory / "apt" / "archives" / "archives"
    archives.mkdir(parents=True)
    stay = ["git_1%3a2.39.5_amd64.deb", "git_1%3a2.39.4_amd64.deb", "git_1%3a2.39.1_i386.deb"]
    stay += ["git-man_1_all.deb", "lock"]
    for age, name in enumerate([*stay, "git_1%3a2.39.2_amd64.deb"]):
        (archives / name).write_bytes(bytes(10_000))
        os.utime(archives / name, (time.time() - (2 + age) * DAYS,) * 2)
    prune.prune()
    assert names(archives) == set(stay)


def test_what_is_being_built_stays(directory: Path) -> None:
    for number in range(3):
        entry(directory / "images", f"airflow-{key(number)}", days=2 + number)
    work = entry(directory / "images", f".airflow-{key(2)}.abcd_123", days=2)
    with lock(f"images-airflow-{key(2)}"):
        prune.prune()
        assert work.is_dir()
        assert len(names(directory / "images")) == 4
    prune.prune()
    assert names(directory / "images") == {f"airflow-{key(0)}", f"airflow-{key(1)}"}


def test_what_a_process_runs_from_stays(directory: Path) -> None:
    for number in range(4):
        entry(directory / "venvs", f"tools-{key(number)}", days=2 + number)
    program = directory / "venvs" / f"tools-{key(3)}" / "python"
    program.symlink_to(sys.executable)
    os.utime(program.parent, (1, 1))
    with running(program):
        prune.prune()
    left = {name for name in names(directory / "venvs") if not name.startswith(".")}
    assert left == {f"tools-{key(number)}" for number in (0, 1, 3)}


def test_two_at_the_same_time_do_not_meet(directory: Path) -> None:
    entry(directory / "image-layers", "layer", days=2)
    with lock("prune"):
        prune.prune()
    assert names(directory / "image-layers") == {"layer"}
    prune.prune()
    assert names(directory / "image-layers") == set()


def test_environments_are_touched_when_they_are_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "CACHE", directory)

    def fake(final: Path, locks: list[Path], *, uv: bool) -> None:
        final.mkdir()
        (final / bootstrap.COMPLETE).touch()

    monkeypatch.setattr(bootstrap, "_make", fake)
    made = bootstrap.environment(["tools"]).parent.parent
    os.utime(made, (1, 1))
    bootstrap.environment(["tools"])
    assert time.time() - made.stat().st_mtime < 60


# The whole cache


def test_the_whole_cache_goes_after_its_sizes_are_said(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    entry(directory, "images", days=0)
    entry(directory, "go", days=0, content=bytes(2_000_000))
    (directory / "go").chmod(0o500)
    entry(directory, "somebody elses", days=0)
    monkeypatch.setattr(sys, "stdin", (directory.parent / "no-terminal").open("w+"))
    prune.clean()
    assert names(directory) == {"somebody elses"}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2].rpartition("/")[2] for line in lines[:-1]] == ["go", "images"]
    assert lines[0].split()[:2] == ["2", "MB"]


def test_the_whole_cache_stays_while_something_runs_from_it(directory: Path) -> None:
    program = entry(directory, "node", days=0) / "node"
    program.symlink_to(sys.executable)
    with running(program), pytest.raises(UserError, match="make down"):
        prune.clean()
    assert names(directory) == {"node"}


def test_every_part_of_the_cache_that_code_names_can_be_cleaned() -> None:
    text = "\n".join(
        file.read_text()
        for part in ("mlctl", "tools")
        for file in (paths.ROOT / part).rglob("*.py")
    )
    named = {
        *re.findall(r'(?<!_)CACHE / "([\w-]+)"', text),
        *re.findall(r'cached\("([\w-]+)"', text),
    }
    assert len(named) > 8
    assert named <= prune.PARTS
