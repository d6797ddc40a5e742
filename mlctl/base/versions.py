"""The pins of versions.toml."""

import tomllib
from functools import cache
from typing import Any

from mlctl.base.paths import ROOT


@cache
def pins() -> dict[str, Any]:
    """Return versions.toml as nested dicts."""
    with (ROOT / "versions.toml").open("rb") as file:
        return tomllib.load(file)
