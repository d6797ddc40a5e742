from pathlib import Path

import pytest

from images.containerfile import parse
from tools.errors import UserError


def containerfile(tmp_path: Path, text: str):
    path = tmp_path / "Containerfile"
    path.write_text(text)
    return parse(path)


def test_sources_are_all_that_copy_and_add_read(tmp_path: Path):
    text = """\
ARG BASE_IMAGE=debian
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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("ARG BASE_IMAGE=debian\nFROM ${BASE_IMAGE}\n", True),
        ("ARG BASE_IMAGE=debian\nFROM $BASE_IMAGE AS x\n", True),
        ("ARG BASE_IMAGE=debian\nFROM debian\n", False),
        ("FROM ${BASE_IMAGE}\n", False),
        ("ARG BASE_IMAGE=debian\nFROM ${BASE_IMAGES}\n", False),
    ],
)
def test_base_image_is_the_build_argument(tmp_path: Path, text: str, answer: bool):
    assert containerfile(tmp_path, text).takes_base_image() is answer
