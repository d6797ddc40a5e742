"""docs/dags.md, made of what the DAGs that ship say of themselves in Airflow's pages.

`tools/python -m mlctl dags-page` runs it where Airflow is.
"""

import json
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from mlctl.base.names import DAG_IDS
from mlctl.base.paths import ROOT

PAGE = ROOT / "docs" / "dags.md"
HEAD = """\
# The DAGs

Made by `tools/python -m mlctl dags-page` of what Airflow's pages show: of a DAG under "DAG Docs",
of a task in its tab (Airflow 3) or under "More Details" (2.9), of a parameter in the form.
`approve_model` and `promote_model` are there with `pipelines.model.approval: true` only.
"""
# What the chart's own values come to; tests/chart/test_settings.py holds it to them.
SETTINGS = ROOT / "tests" / "helpers" / "chart_settings.json"


def sections(dag: Any) -> Iterator[str]:
    """Yield the parts of the page about a DAG: itself, its parameters, its tasks in their order."""
    about = "\n".join(line for line in dag.doc_md.splitlines() if not line.startswith("#"))
    yield f"## {dag.dag_id}\n\n{dag.description}.\n\n{about.strip()}\n"
    rows = ["| parameter | in the form | what it is |", "|---|---|---|"]
    for name in dag.params:
        param = dag.params.get_param(name)
        rows.append(f"| `{name}` | {param.schema['title']} | {param.description} |")
    yield "\n".join([f"### Parameters of {dag.dag_id}", "", *rows, ""])
    for task in dag.topological_sort():
        yield f"### {dag.dag_id}: `{task.task_id}`\n\n{(task.doc_md or '').strip()}\n"


def page() -> str:
    """Return what docs/dags.md has to say, of DAGs with all tasks that they can have."""
    sys.path.insert(0, str(ROOT / "dags"))
    settings = json.loads(SETTINGS.read_text())
    settings["model"]["approval"] = True
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(settings, file)
        file.flush()
        os.environ["ML_PIPELINES_SETTINGS"] = file.name
        files = [str(ROOT / "dags" / f"{dag_id}.py") for dag_id in DAG_IDS]
        dags = [runpy.run_path(name)["dag"] for name in files]
    return "\n".join([HEAD, *(part for dag in dags for part in sections(dag))])


if __name__ == "__main__":
    PAGE.write_text(page())
