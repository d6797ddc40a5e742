"""Which images there are, what each is made from, and the name and key that follow from it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mlctl.base.cache import digest
from mlctl.base.errors import UserError
from mlctl.base.names import REPOSITORY
from mlctl.base.paths import ROOT
from mlctl.builder import containerfile, debian
from mlctl.builder.containerfile import Containerfile

LAYOUT = "3"
"""Counted up when the builder itself changes what comes out of the same inputs."""

IMAGES = ROOT / "images"
BASE = "base"


@dataclass(frozen=True)
class Recipe:
    """One stage of a Containerfile, with the repository's root as context."""

    name: str
    containerfile: Containerfile
    root: Path = ROOT
    below: "Recipe | None" = None
    """The stage that this one is built on; None: the Debian base."""

    def files(self) -> dict[str, Path]:
        """Return what the Containerfile copies: path in the context -> file.

        Raises UserError for a source that does not exist.
        """
        found: dict[str, Path] = {}
        for source in self.containerfile.sources():
            matches = sorted(self.root.glob(source))
            if not matches:
                path = self.containerfile.path
                raise UserError(f"{path} copies {source}, which is not in the checkout")
            for match in matches:
                for file in [match] if match.is_file() else sorted(match.rglob("*")):
                    if file.is_file() and "__pycache__" not in file.parts:
                        found[file.relative_to(self.root).as_posix()] = file
        return found

    def key(self) -> str:
        """Return a hash over everything that decides what is in the image."""
        below = self.below.key() if self.below else debian.base_key(self.suite())
        parts: list[Path | str] = [LAYOUT, below, self.containerfile.text()]
        for name, file in self.files().items():
            parts += [name, file]
        return digest(*parts)

    def suite(self) -> str:
        """Return the Debian release that the image stands on."""
        return self.containerfile.suite()

    def chain(self) -> list["Recipe"]:
        """Return the stages below, lowest first, and this one."""
        return [*(self.below.chain() if self.below else []), self]

    def version(self) -> str:
        """Return the version label, which may be that of a stage below.

        Raises UserError when no stage has one.
        """
        if self.below and not self.containerfile.is_labelled():
            return self.below.version()
        return self.containerfile.version()

    def stage(self, context: Path) -> "Recipe":
        """Copy the files into an empty directory, with modes that no umask decides.

        Returns the recipe of the copy: nobody edits it while it is being built.
        """
        for name, file in self.files().items():
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            target.chmod(0o755 if os.access(file, os.X_OK) else 0o644)
        own = context / self.containerfile.path.relative_to(self.root)
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(self.containerfile.text())
        own.chmod(0o644)
        for directory in [context, *(p for p in context.rglob("*") if p.is_dir())]:
            directory.chmod(0o755)
        return Recipe(self.name, containerfile.parse(own), context, self.below)


def recipes() -> dict[str, Recipe]:
    """Return the images of all Containerfiles: the folder ``git_sync`` is ``git-sync``.

    A stage is an image too: ``classic-example-environment``.
    """
    found = {}
    for path in sorted(IMAGES.glob("*/Containerfile")):
        name = path.parent.name.replace("_", "-")
        below: Recipe | None = None
        for stage, part in containerfile.parse(path).stages():
            below = Recipe(f"{name}-{stage}" if stage else name, part, below=below)
            found[below.name] = below
    return found


def repository(name: str) -> str:
    """Return the repository of an image: its full name without the tag."""
    return f"{REPOSITORY}/{name}"
