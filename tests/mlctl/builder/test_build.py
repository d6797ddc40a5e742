"""What is built when, with a builder that is played: a layer holds what the stage copies."""

import json
import os
from pathlib import Path

import pytest

from mlctl.base import cache, paths
from mlctl.base.errors import UserError
from mlctl.base.progress import Phases
from mlctl.builder import build, oci
from mlctl.builder.buildah import Foundation
from mlctl.builder.catalog import Recipe, repository
from mlctl.builder.containerfile import parse
from mlctl.commands.building import save_image
from tests.helpers.layouts import layer

CONTAINERFILE = """\
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
FROM ${BASE_IMAGE} AS environment
COPY lock /
LABEL org.opencontainers.image.version=1.2
FROM environment
COPY code /app
"""


class Builder:
    """A checkout with one Containerfile of two stages, and a cache of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.built: list[str] = []
        self.ready: list[list[str]] = []
        for name, text in (("lock", "a==1"), ("code", "print()"), ("Containerfile", CONTAINERFILE)):
            (directory / name).write_text(text)
        self.base = Foundation("localhost/test/base:1", directory / "base")
        image = oci.image({}, [layer(directory, "base", b"debian")], comment="base")
        oci.write_layout(self.base.layout, self.base.name, image)

    def recipes(self) -> dict[str, Recipe]:
        below = None
        found = {}
        for stage, part in parse(self.directory / "Containerfile").stages():
            below = Recipe(f"one-{stage}" if stage else "one", part, self.directory, below)
            found[below.name] = below
        return found

    def play(self, recipe, name, directory, foundations, log, phase) -> oci.Image:
        self.built.append(recipe.name)
        content = b"".join(path.read_bytes() for path in recipe.files().values())
        below = oci.read_layout(foundations[0].layout)
        assert below.name == foundations[0].name
        layers = [oci.Blob(d, below.blobs()[d], below.blob(d)) for d in below.layers()]
        (directory / "store").mkdir()
        top = layer(self.directory, f"{recipe.name}-{len(self.built)}", content)
        return oci.image({}, [*layers, top], comment="played")

    def run(self, *names: str) -> dict[str, build.Entry]:
        """Build, and return the entries; `built` and `ready` say what happened."""
        self.built, self.ready = [], []
        return build.build_all(
            Phases(), names or None, lambda entries: self.ready.append(sorted(entries))
        )


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    played = Builder(tmp_path)
    for module in (build, cache, paths):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(build, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(build, "IMAGES_LOCK", tmp_path / "build" / "images.json")
    monkeypatch.setattr(build, "recipes", played.recipes)
    monkeypatch.setattr(build, "ALONE", {})
    monkeypatch.setattr(build, "prepare_machine", lambda _: None)
    monkeypatch.setattr(build, "_base", lambda *_: played.base)
    monkeypatch.setattr(build.buildah, "build", played.play)
    return played


def layers(entry: build.Entry) -> list[Path]:
    opened = oci.read_layout(Path(entry["layout"]))
    return [opened.blob(digest) for digest in opened.layers()]


def test_stages_are_built_in_order_and_are_ready_one_after_the_other(builder: Builder):
    entries = builder.run()
    assert builder.built == ["one-environment", "one"]
    assert builder.ready == [[], ["one-environment"], ["one"]]
    assert {name: entry["repository"] for name, entry in entries.items()} == {
        name: repository(name) for name in ("one", "one-environment")
    }
    assert all(entry["tag"].startswith("1.2-") for entry in entries.values())
    assert json.loads(build.IMAGES_LOCK.read_text()) == entries


def test_an_edit_of_the_code_builds_the_upper_stage_alone(builder: Builder):
    before = builder.run()
    (builder.directory / "code").write_text("print(1)")
    after = builder.run()
    assert builder.built == ["one"]
    assert builder.ready == [["one-environment"], ["one"]]
    assert after["one-environment"] == before["one-environment"]
    assert after["one"]["tag"] != before["one"]["tag"]
    # One file on the disk for each layer below, whoever has it.
    *below, top = layers(after["one"])
    assert all(a.samefile(b) for a, b in zip(below, layers(before["one"])[:-1], strict=True))
    assert not top.samefile(layers(before["one"])[-1])


def test_an_edit_of_the_lock_builds_both_stages(builder: Builder):
    builder.run()
    (builder.directory / "lock").write_text("a==2")
    builder.run()
    assert builder.built == ["one-environment", "one"]


def test_nothing_is_built_when_nothing_has_changed(builder: Builder):
    before = builder.run()
    assert builder.run() == before
    assert builder.built == []
    assert builder.ready == [["one", "one-environment"]]


def test_one_image_alone_brings_what_it_stands_on(builder: Builder):
    assert set(builder.run("one")) == {"one"}
    assert builder.built == ["one-environment", "one"]
    assert set(builder.run("one-environment")) == {"one-environment"}
    assert builder.built == []


def test_only_what_others_are_built_on_keeps_its_store(builder: Builder):
    entries = builder.run()
    stores = {n: Path(e["layout"]).with_name("store").is_dir() for n, e in entries.items()}
    assert stores == {"one": False, "one-environment": True}


def test_use_of_an_image_keeps_what_it_stands_on(builder: Builder):
    entries = builder.run()
    for entry in entries.values():
        os.utime(Path(entry["layout"]).parent, (1, 1))
    builder.run("one")
    ages = {Path(entry["layout"]).parent.stat().st_mtime for entry in entries.values()}
    assert 1 not in ages


def test_builds_leave_two_of_each_image_in_the_cache(builder: Builder):
    for number in range(4):
        (builder.directory / "code").write_text(f"print({number})")
        entry = builder.run()["one"]
        # Days ago, but in this order.
        os.utime(Path(entry["layout"]).parent, (number + 1,) * 2)
    kept = [path.name.rpartition("-")[0] for path in (builder.directory / "cache/images").iterdir()]
    # The newest was built when the second one was two builds old.
    assert sorted(kept) == ["one", "one", "one-environment"]


def test_a_built_image_is_saved_as_a_tar(builder: Builder, tmp_path: Path):
    with pytest.raises(UserError, match="images build one"):
        save_image("one", tmp_path / "one.tar")
    builder.run()
    save_image("one", tmp_path / "one.tar")
    assert (tmp_path / "one.tar").stat().st_size > 3 * 512


def test_an_unknown_name_is_refused_with_those_that_there_are(builder: Builder):
    with pytest.raises(UserError, match=r"no image 'two'; there are: one-environment, one"):
        builder.run("two")
