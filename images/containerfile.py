"""What the builder has to know from a Containerfile: what it copies, and its version label."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tools.errors import UserError

VERSION_LABEL = "org.opencontainers.image.version"


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
        for name, arguments in self.instructions:
            if name == "LABEL":
                for word in shlex.split(arguments):
                    key, _, value = word.partition("=")
                    if key == VERSION_LABEL and re.fullmatch(r"[\w.-]{1,40}", value):
                        return value
        raise UserError(f"{self.path} has no LABEL {VERSION_LABEL}=<version>; the tag needs it")

    def takes_base_image(self) -> bool:
        """Whether the base is the build argument BASE_IMAGE."""
        argument = any(n == "ARG" and a.startswith("BASE_IMAGE=") for n, a in self.instructions)
        used = any(n == "FROM" and re.match(r"\$\{?BASE_IMAGE\b", a) for n, a in self.instructions)
        return argument and used


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
