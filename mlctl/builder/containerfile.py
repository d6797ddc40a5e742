"""What the builder has to know from a Containerfile: its stages, what they copy, its version."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from mlctl.base.errors import UserError

VERSION_LABEL = "org.opencontainers.image.version"
FROM_BASE = "FROM ${BASE_IMAGE}"
BASE_ARGUMENT = re.compile(r"BASE_IMAGE=\S+/debian:(\w+)-slim")


@dataclass(frozen=True)
class Containerfile:
    """The parsed instructions: ``(NAME, arguments)``, continuation lines joined."""

    path: Path
    instructions: tuple[tuple[str, str], ...]

    def sources(self) -> list[str]:
        """Return the context paths that COPY and ADD read, in order (globs as written).

        Raises UserError for a source the builder cannot follow: a variable or a URL.
        """
        found: list[str] = []
        for name, arguments in self.instructions:
            if name not in {"COPY", "ADD"}:
                continue
            flags, words = _split(arguments)
            if any(flag.startswith("--from=") for flag in flags):
                continue
            for word in words[:-1]:
                if "$" in word or "://" in word or word in {".", "./", "/"}:
                    raise UserError(
                        f"{self.path}: {name} {word}: name the files, so that a change of them "
                        "(and of nothing else) rebuilds the image"
                    )
                found.append(word.strip("/"))
        return found

    def version(self) -> str:
        """Return the value of the label org.opencontainers.image.version.

        Raises UserError when there is none.
        """
        for word in self._labels():
            key, _, value = word.partition("=")
            if key == VERSION_LABEL and re.fullmatch(r"[\w.-]{1,40}", value):
                return value
        raise UserError(f"{self.path} has no LABEL {VERSION_LABEL}=<version>; the tag needs it")

    def is_labelled(self) -> bool:
        """Say whether there is a label of the version."""
        return any(word.startswith(f"{VERSION_LABEL}=") for word in self._labels())

    def _labels(self) -> list[str]:
        texts = [text for name, text in self.instructions if name == "LABEL"]
        return [word for text in texts for word in shlex.split(text)]

    def suite(self) -> str:
        """Return the Debian release of BASE_IMAGE, which the builder makes itself.

        Raises UserError unless the file begins with ``ARG BASE_IMAGE=.../debian:SUITE-slim``.
        """
        for name, text in self.instructions:
            if name == "FROM":
                break
            if name == "ARG" and (found := BASE_ARGUMENT.fullmatch(text)):
                return found[1]
        raise UserError(
            f"{self.path} must begin with ARG BASE_IMAGE=docker.io/library/debian:SUITE-slim "
            f"and {FROM_BASE}"
        )

    def stages(self) -> list[tuple[str, "Containerfile"]]:
        """Return (name, file) of each stage, lowest first; the last one is the image, named ''.

        Each file is one that builds on the argument BASE_IMAGE: Debian for the first stage, for
        another one the image of the stage before it. So a stage is built when it changes, and
        not when a stage above it does.

        Raises UserError as suite, and unless the first stage is FROM ${BASE_IMAGE} and each other
        one FROM the name of the one before it, without COPY --from.
        """
        starts = [place for place, (name, _) in enumerate(self.instructions) if name == "FROM"]
        head = self.instructions[: starts[0]] if starts else ()
        self.suite()
        found: list[tuple[str, Containerfile]] = []
        below = ""
        for start, end in zip(starts, [*starts[1:], len(self.instructions)], strict=True):
            words = self.instructions[start][1].split()
            below_is = [FROM_BASE.split()[1], "$BASE_IMAGE"] if start == starts[0] else [below]
            if words[0] not in below_is or len(words) not in {1, 3}:
                raise UserError(
                    f"{self.path}: FROM {' '.join(words)}: the first stage is {FROM_BASE}, each "
                    "other one FROM the name of the stage before it"
                )
            below = words[2] if len(words) == 3 else ""
            body = self.instructions[start + 1 : end]
            if any("--from=" in text for name, text in body if name in {"COPY", "ADD"}):
                raise UserError(f"{self.path}: COPY --from: each stage is built on the one before")
            own = (*head, ("FROM", FROM_BASE.split()[1]), *body)
            found.append((below, Containerfile(self.path, own)))
        return [*found[:-1], ("", found[-1][1])]

    def text(self) -> str:
        """Return the instructions, a line each: what counts in the file."""
        return "".join(f"{name} {arguments}\n" for name, arguments in self.instructions)


def _split(arguments: str) -> tuple[list[str], list[str]]:
    words = arguments.split()
    flags = []
    while words and words[0].startswith("--"):
        flags.append(words.pop(0))
    rest = " ".join(words)
    return flags, json.loads(rest) if rest.startswith("[") else shlex.split(rest)


def parse(path: Path) -> Containerfile:
    """Parse the file: comments dropped, continuation lines joined, here-documents refused.

    Raises UserError for a here-document (``<<``), which buildah 1.28 does not know either.
    """
    instructions: list[tuple[str, str]] = []
    pending = ""
    for line in path.read_text().splitlines():
        if line.lstrip().startswith("#") or (not line.strip() and not pending):
            continue
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + " "
            continue
        name, _, arguments = (pending + line).strip().partition(" ")
        pending = ""
        if name.upper() in {"RUN", "COPY", "ADD"} and re.match(r"<<[-\w'\"]", arguments.strip()):
            raise UserError(f"{path}: here-documents are not understood by Debian 12's buildah")
        instructions.append((name.upper(), arguments.strip()))
    return Containerfile(path, tuple(instructions))
