"""Parameters of one run: what the person who has started it asks for; and how any setting is read.

They go over the configuration file and over all other variables. The pipeline hands them on as one
JSON object; null, or no such key, is for what nobody has asked for.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from classic_example.errors import WorkloadError
from classic_example.files import json_object

VARIABLE = "ML_PIPELINES_PARAMS"


@dataclass(frozen=True)
class Parameters:
    """All that there are, those of training and of inference; None for what is not set."""

    max_steps: PositiveInt | None = None
    learning_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    base_model: str | None = None
    data_source: str | None = None
    sample_size: PositiveInt | None = None
    # Each shard has it as an argument.
    shards: PositiveInt | None = None
    # The registry's commands take these as arguments; here they are part of a result's lineage.
    model_name: str | None = None
    model_version: str | None = None

    def given(self) -> dict[str, Any]:
        """Return those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def of_this_run() -> Parameters:
    """Return the parameters of the run; none is set where a command is run by hand.

    Raises WorkloadError for one that is not known, of the wrong type or out of range.
    """
    content = json_object(os.environ.get(VARIABLE, "") or "{}", VARIABLE)
    kinds = get_type_hints(Parameters, include_extras=True)
    for name in content.keys() - kinds.keys():
        raise unknown("the run has an unknown parameter", name, kinds)
    return Parameters(**checked("parameters of the run", kinds, content))


def unknown(what: str, name: str, known: Iterable[str]) -> WorkloadError:
    """Return the error for a name that does not exist."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    there = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known[:20])}"
    return WorkloadError(f"{what} {name!r}; {there}")


def checked(origin: str, kinds: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with each value as the type that `kinds` has for its name.

    A text is a number where it reads as one, and a whole number may be written as 50.0: to JSON
    Schema, and so to Airflow, it is one, and Helm makes 1e+06 of a million. Raises WorkloadError
    for a value of another type or out of range.
    """
    found, config = {}, ConfigDict(arbitrary_types_allowed=True)
    for name, value in content.items():
        try:
            found[name] = TypeAdapter(kinds[name], config=config).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            said = f"{name} is {value!r}: {said[0].lower()}{said[1:]}"
            raise WorkloadError(f"{origin}: {said}") from None
    return found


def require_one_of(origin: str, name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise WorkloadError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise WorkloadError(f"{origin}: {name} is {value!r}, allowed: {', '.join(allowed)}")
