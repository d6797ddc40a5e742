"""What is said of wrong settings: one line that names the setting, and one that may be meant."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from classic_example.errors import WorkloadError


def unknown(what: str, name: str, known: Iterable[str]) -> WorkloadError:
    """Return the error for a name that does not exist."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    there = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known[:20])}"
    return WorkloadError(f"{what} {name!r}; {there}")


def checked(origin: str, kinds: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with each value as the type that `kinds` has for its name.

    A text is a number where it reads as one, and a whole number may be written as 50.0: to JSON
    Schema, and so to Airflow, it is one, and Helm makes 1e+06 of a million.

    Raises:
        WorkloadError: a value has another type or is out of range.
    """
    found = {}
    for name, value in content.items():
        adapter = TypeAdapter(kinds[name], config=ConfigDict(arbitrary_types_allowed=True))
        try:
            found[name] = adapter.validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise WorkloadError(
                f"{origin}: {name} is {value!r}: {said[0].lower()}{said[1:]}"
            ) from None
    return found


def require_one_of(origin: str, name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise WorkloadError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise WorkloadError(f"{origin}: {name} is {value!r}, allowed: {', '.join(allowed)}")
