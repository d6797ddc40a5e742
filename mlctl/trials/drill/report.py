"""What a drill came to: a row for each fault, as a table and as build/drill.json."""

import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

RETRIES = 1
"""A fault may cost that many retries, of all tasks together."""

_SHOWN_WIDTH = 60
_NOT_WRITTEN = ("shown", "without_effect")


@dataclass(frozen=True)
class Row:
    """What one fault did."""

    fault: str
    dag_state: str
    """As Airflow showed the run at its end."""
    retries: int
    seconds_lost: float
    """Seconds that the run took longer than a lone undisturbed one."""
    data_lost: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    shown: str = ""
    """What Airflow said about the try that was lost."""
    without_effect: bool = False
    """The fault met nothing: a run that goes well then proves nothing."""

    @property
    def ok(self) -> bool:
        """Say whether the run came to its end with a retry at most, and all data is there."""
        return (
            self.dag_state == "success"
            and self.retries <= RETRIES
            and not self.data_lost
            and not self.leftovers
            and not self.without_effect
        )

    def entry(self) -> dict[str, Any]:
        """Return the row as it is in build/drill.json."""
        entry = asdict(self) | {"ok": self.ok}
        return {key: value for key, value in entry.items() if key not in _NOT_WRITTEN}


COLUMNS = ("fault", "run", "retries", "s lost", "data lost", "leftovers", "", "Airflow said")


def cells(row: Row) -> list[str]:
    """Return the row as it is shown below COLUMNS."""
    said = "the fault met nothing" if row.without_effect else row.shown
    return [
        row.fault,
        row.dag_state,
        str(row.retries),
        f"{row.seconds_lost:.0f}",
        "; ".join(row.data_lost) or "none",
        "; ".join(row.leftovers) or "none",
        "ok" if row.ok else "NOT OK",
        textwrap.shorten(said, _SHOWN_WIDTH, placeholder=" ...") or "-",
    ]
