"""Parameters of one run: what the person who has started it asks for.

They go over the configuration file and over all other variables. The pipeline hands them on as one
JSON object; null, or no such key, is for what nobody has asked for.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import Field, PositiveInt

from classic_example.checks import checked, unknown
from classic_example.errors import WorkloadError

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

    Raises:
        WorkloadError: they are no JSON object, one of them is not known, or has a value of the
            wrong type or out of range.
    """
    try:
        content = json.loads(os.environ.get(VARIABLE, "") or "{}")
    except json.JSONDecodeError as error:
        raise WorkloadError(f"{VARIABLE} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise WorkloadError(f"{VARIABLE} must hold a JSON object, not {type(content).__name__}")
    kinds = get_type_hints(Parameters, include_extras=True)
    for name in content.keys() - kinds.keys():
        raise unknown("the run has an unknown parameter", name, kinds)
    return Parameters(**checked("parameters of the run", kinds, content))
