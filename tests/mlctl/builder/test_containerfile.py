import re
from pathlib import Path

import pytest

from mlctl.base.errors import UserError
from mlctl.builder.containerfile import parse


def containerfile(tmp_path: Path, text: str):
    path = tmp_path / "Containerfile"
    path.write_text(text)
    return parse(path)


def test_sources_are_all_that_copy_and_add_read(tmp_path: Path):
    text = """\
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
FROM ${BASE_IMAGE} AS first
# COPY commented.out /
COPY --chmod=755 --chown=1:1 one two/ \\
    # a comment between continued lines
    /opt/
ADD ["three four", "/x"]
FROM debian
copy --from=first /opt /opt
COPY "five six" /y
"""
    assert containerfile(tmp_path, text).sources() == ["one", "two", "three four", "five six"]


@pytest.mark.parametrize("source", [".", "./", "/", "$NAME", "https://example.org/file"])
def test_source_that_cannot_be_followed_is_refused(tmp_path: Path, source: str):
    with pytest.raises(UserError, match="name the files"):
        containerfile(tmp_path, f"FROM x\nCOPY {source} /opt/\n").sources()


def test_here_document_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="here-documents"):
        containerfile(tmp_path, "FROM x\nRUN <<EOF\necho\nEOF\n")


def test_version_is_read_from_the_label(tmp_path: Path):
    text = 'FROM x\nLABEL a=b org.opencontainers.image.version="1.2-3"\n'
    assert containerfile(tmp_path, text).version() == "1.2-3"


@pytest.mark.parametrize("label", ["", "LABEL org.opencontainers.image.version=\n", "LABEL a=b\n"])
def test_missing_version_is_an_error_that_names_the_label(tmp_path: Path, label: str):
    with pytest.raises(UserError, match=r"org\.opencontainers\.image\.version"):
        containerfile(tmp_path, f"FROM x\n{label}").version()


STAGES = """\
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
FROM ${BASE_IMAGE} AS environment
COPY lock /
RUN install \\
    lock
FROM environment
COPY code /app
USER 1
"""


def test_each_stage_is_a_file_that_builds_on_the_argument(tmp_path: Path):
    stages = dict(containerfile(tmp_path, STAGES).stages())
    assert {name: stage.sources() for name, stage in stages.items()} == {
        "environment": ["lock"],
        "": ["code"],
    }
    head = "ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim\nFROM ${BASE_IMAGE}\n"
    assert stages["environment"].text() == f"{head}COPY lock /\nRUN install      lock\n"
    assert stages[""].text() == f"{head}COPY code /app\nUSER 1\n"


def test_what_is_written_for_the_builder_reads_as_the_same(tmp_path: Path):
    first = containerfile(tmp_path, STAGES)
    assert containerfile(tmp_path, first.text()).instructions == first.instructions


def test_a_file_of_one_stage_is_that_stage(tmp_path: Path):
    text = "ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim\nFROM $BASE_IMAGE AS x\nUSER 1\n"
    ((name, stage),) = containerfile(tmp_path, text).stages()
    assert name == ""
    assert stage.instructions[-1] == ("USER", "1")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim\nFROM debian\n", "FROM debian"),
        (
            "ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim\nFROM ${BASE_IMAGES}\n",
            "BASE_IMAGES",
        ),
        ("FROM ${BASE_IMAGE}\n", "must begin with ARG BASE_IMAGE"),
        ("USER 1\n", "must begin with ARG BASE_IMAGE"),
        (STAGES.replace("FROM environment", "FROM debian"), "FROM debian"),
        (STAGES.replace("FROM environment", "FROM ${BASE_IMAGE}"), "FROM the name of the stage"),
        (STAGES.replace("COPY code", "COPY --from=environment code"), "COPY --from"),
    ],
)
def test_stages_that_are_no_chain_on_the_base_are_refused(tmp_path: Path, text: str, named: str):
    with pytest.raises(UserError, match=re.escape(named)):
        containerfile(tmp_path, text).stages()
