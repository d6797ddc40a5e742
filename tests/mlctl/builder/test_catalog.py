import re
from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.base.paths import ROOT
from mlctl.builder.catalog import Recipe, recipes
from mlctl.builder.containerfile import parse

HEAD = "ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim\nFROM ${BASE_IMAGE}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("print()\n")
    (tmp_path / "app" / "__pycache__").mkdir()
    (tmp_path / "app" / "__pycache__" / "main.pyc").write_bytes(b"x")
    (tmp_path / "start.sh").write_text("#!/bin/sh\n")
    (tmp_path / "other").write_text("not copied\n")
    (tmp_path / "Containerfile").write_text(HEAD + "COPY app *.sh /opt/\n")
    return Recipe("one", parse(tmp_path / "Containerfile"), tmp_path)


def test_there_are_the_images_that_the_chart_names():
    assert set(recipes()) == {
        "airflow",
        "airflow3",
        "airflow3-environment",
        "classic-example",
        "classic-example-environment",
        "git-sync",
        "postgres",
    }


def test_every_containerfile_stands_on_its_own_and_copies_files_that_exist():
    for recipe in recipes().values():
        assert recipe.version()
        assert recipe.files()
        assert recipe.suite() in {"bookworm", "trixie"}


@pytest.mark.parametrize("name", ["airflow", "airflow3"])
def test_airflows_label_is_the_version_in_the_lock(name: str):
    lock = (ROOT / "requirements" / f"{name}.txt").read_text()
    (locked,) = re.findall(r"^apache-airflow(?:\[[^]]*\])?==(\S+)", lock, re.MULTILINE)
    assert recipes()[name].version() == locked


def test_files_are_what_is_copied_without_caches(recipe: Recipe):
    assert set(recipe.files()) == {"app/main.py", "start.sh"}


def test_key_follows_content_name_and_mode_of_the_files(recipe: Recipe):
    keys = [recipe.key()]
    (recipe.root / "other").write_text("still not copied\n")
    assert recipe.key() == keys[0]
    (recipe.root / "app" / "main.py").write_text("print(1)\n")
    keys.append(recipe.key())
    (recipe.root / "start.sh").chmod(0o755)
    keys.append(recipe.key())
    (recipe.root / "app" / "main.py").rename(recipe.root / "app" / "renamed.py")
    keys.append(recipe.key())
    assert len(set(keys)) == 4


def test_key_follows_the_containerfile(recipe: Recipe):
    before = recipe.key()
    path = recipe.root / "Containerfile"
    path.write_text(path.read_text() + "USER 1\n")
    assert Recipe("one", parse(path), recipe.root).key() != before


def test_comments_and_empty_lines_do_not_count(recipe: Recipe):
    before = recipe.key()
    path = recipe.root / "Containerfile"
    path.write_text(f"# Why.\n{HEAD}\nCOPY app *.sh /opt/\n")
    assert Recipe("one", parse(path), recipe.root).key() == before


def test_key_follows_the_stage_below_and_not_the_one_above(recipe: Recipe):
    text = HEAD + "COPY other /\n"
    (recipe.root / "Above").write_text(text)
    above = Recipe("two", parse(recipe.root / "Above"), recipe.root, recipe)
    keys = (recipe.key(), above.key())
    (recipe.root / "other").write_text("changed\n")
    assert recipe.key() == keys[0]
    assert above.key() != keys[1]
    keys = (recipe.key(), above.key())
    (recipe.root / "start.sh").write_text("#!/bin/sh\nexit\n")
    assert recipe.key() != keys[0]
    assert above.key() != keys[1]


def test_the_workloads_code_is_in_the_upper_stage_alone():
    """An edit of it must not install Python packages again."""
    workload = recipes()["classic-example"]
    code = {name for name in workload.files() if name.endswith(".py")}
    assert "workload/classic_example/cli.py" in code
    assert workload.below is not None
    assert workload.chain() == [recipes()["classic-example-environment"], workload]
    assert [name for name in workload.below.files() if name.endswith((".py", ".json"))] == []


def test_staged_copy_has_the_same_key_and_modes_of_no_umask(recipe: Recipe, tmp_path: Path):
    (recipe.root / "start.sh").chmod(0o700)
    (recipe.root / "app" / "main.py").chmod(0o600)
    context = tmp_path / "context"
    context.mkdir()
    staged = recipe.stage(context)
    assert staged.key() == recipe.key()
    modes = {
        path.relative_to(context).as_posix(): path.stat().st_mode & 0o777
        for path in context.rglob("*")
    }
    assert modes == {
        "Containerfile": 0o644,
        "app": 0o755,
        "app/main.py": 0o644,
        "start.sh": 0o755,
    }


def test_missing_source_is_named(tmp_path: Path):
    (tmp_path / "Containerfile").write_text(HEAD + "COPY nowhere /opt/\n")
    recipe = Recipe("one", parse(tmp_path / "Containerfile"), tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        recipe.files()
