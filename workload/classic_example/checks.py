"""Settings that are declared as the fields of a dataclass, and what is said of wrong values."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from classic_example.errors import WorkloadError


def setting(default: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """Declare a field with the inclusive range of a number."""
    return field(default=default, metadata={"low": low, "high": high})


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` when a known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def checked(origin: str, declared: Any, value: Any) -> Any:
    """Return `value` as the declared type of its field.

    Raises:
        WorkloadError: it has another type or is out of range.
    """
    name, kind = declared.name, str(declared.type)
    if value is None and ("None" in kind or declared.default is None):
        return None
    if "bool" in kind:
        fits = isinstance(value, bool)
    elif "int" in kind:
        # 50.0 is a whole number to JSON Schema, and so to Airflow; Helm makes 1e+06 of a million.
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif "float" in kind:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif "tuple" in kind:
        fits = isinstance(value, list) and all(isinstance(one, str) and one for one in value)
        fits = fits and len(set(value)) == len(value) > 1
        value = tuple(value) if fits else value
    else:
        fits = isinstance(value, str)
    if not fits:
        raise WorkloadError(f"{origin}: {name} must be {described(kind)}, not {value!r}")
    low, high = declared.metadata.get("low", -math.inf), declared.metadata.get("high", math.inf)
    if not isinstance(value, bool | str | tuple) and not low <= value <= high:
        limit = f"at least {low:g}" if value < low else f"at most {high:g}"
        raise WorkloadError(f"{origin}: {name} is {value:g}, it must be {limit}")
    return value


def described(kind: str) -> str:
    """Return a plain name for a field's type."""
    if "bool" in kind:
        return "true or false"
    if "int" in kind:
        return "a whole number"
    if "tuple" in kind:
        return "a list of two or more different texts"
    return "a number" if "float" in kind else "a text"


def require_one_of(origin: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise WorkloadError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise WorkloadError(f"{origin}: {name} is {value!r}, allowed: {', '.join(allowed)}")
