"""The table of values in the chart's README, made from values.yaml and its schema."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import CHART

TABLE_BEGIN = "<!-- values: begin (made by `mlctl readme`) -->"
TABLE_END = "<!-- values: end -->"


def rows(schema: dict[str, Any], values: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, description) for each leaf of values.schema.json, in its order.

    A leaf has no properties of its own, or refers to a definition (resources, tasks). The official
    chart's values are left out. Raises UserError when values.yaml lacks a key.
    """
    for name, entry in schema["properties"].items():
        key = f"{prefix}{name}"
        if key == "airflow":
            continue
        if name not in values:
            raise UserError(f"values.yaml has no {key}, values.schema.json has")
        if "properties" in entry:
            yield from rows(entry, values[name], f"{key}.")
        else:
            yield key, json.dumps(values[name]), " ".join(entry["description"].split())


def readme(*, check: bool) -> None:
    """Write the table of values into the chart's README, or refuse a stale one (UserError)."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = ["| Key | Default | What it is |", "|---|---|---|"]
    for key, default, description in rows(schema, values):
        text = description.replace("|", r"\|")
        lines.append(f"| `{key}` | `{default}` | {text} |")
    file = CHART / "README.md"
    old = file.read_text()
    before, rest = old.split(TABLE_BEGIN, 1)
    _, after = rest.split(TABLE_END, 1)
    new = f"{before}{TABLE_BEGIN}\n\n" + "\n".join(lines) + f"\n\n{TABLE_END}{after}"
    if check and new != old:
        raise UserError("charts/ml-pipelines/README.md is stale: tools/python -m mlctl readme")
    file.write_text(new)


if __name__ == "__main__":
    run_main(lambda: readme(check=False))
