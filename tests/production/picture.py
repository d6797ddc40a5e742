"""The dashboard as a picture, from what a Prometheus has scraped.

Grafana itself is under the AGPL and is no part of these tests: layout and colours are not its own;
titles, queries, legends and figures are.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure

from tests.helpers.metrics import panels, picture_text
from tests.helpers.prometheus import Prometheus

COLUMNS = 3
INCHES = (4.3, 2.4)
"""Width and height of a panel, of 100 pixels each."""


def draw(prometheus: Prometheus, dashboard: dict[str, Any], seconds: float, file: Path) -> None:
    """Draw the panels over the last seconds into a PNG that names them in its metadata."""
    shown = panels(dashboard)
    rows = -(-len(shown) // COLUMNS)
    size = (INCHES[0] * COLUMNS, INCHES[1] * rows)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.suptitle(dashboard["title"])
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    now = datetime.now(UTC)
    for axes, (title, queries) in zip(grid.flat, shown.items(), strict=False):
        axes.set_title(title, fontsize="medium")
        for legend, query in queries.items():
            for series in prometheus.over(query, seconds):
                times, values = zip(*series["values"], strict=True)
                moments = [datetime.fromtimestamp(at, UTC) for at in times]
                label = filled(legend, series["metric"])
                axes.plot(moments, [float(value) for value in values], label=label)
        # Room for the legend.
        axes.set_ylim(0, 1.4 * (axes.get_ylim()[1] or 1))
        axes.set_xlim(now - timedelta(seconds=seconds), now)
        axes.xaxis.set_major_locator(AutoDateLocator(maxticks=6))
        axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
        axes.tick_params(labelsize="small")
        axes.legend(fontsize="xx-small", loc="upper left", framealpha=0.6, ncols=2)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Description": picture_text(dashboard)})


def filled(legend: str, labels: dict[str, str]) -> str:
    """Return a legend as Grafana has it, with the labels of a series in it."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)
