"""Publishing the DAGs, and waiting until Airflow shows them."""

import json
from datetime import UTC, datetime
from typing import Any

from ml_pipelines.settings import DEFAULT_PATH as SETTINGS_PATH
from mlctl.base.errors import UserError
from mlctl.base.progress import Phase
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.clients.kube import KubectlError
from mlctl.stack import Stack

DAG_SECONDS = 180
"""How long Airflow may take to show a published commit, or settings that have changed."""

PARSE_SECONDS = 120

# Reads every file of the DAG directory as Airflow does, where it does so. What
# Airflow logs goes to the standard output too: the answer is the last line.
PARSE = """
import json
from pathlib import Path
from airflow import settings
folder = Path(settings.DAGS_FOLDER)
try:
    from airflow.dag_processing.dagbag import BundleDagBag
except ImportError:  # Airflow 2
    from airflow.models.dagbag import DagBag
    bag = DagBag(include_examples=False)
else:
    bag = BundleDagBag(bundle_path=folder, bundle_name="dags-folder")
errors = {str(folder / file): trace for file, trace in bag.import_errors.items()}
print()
print(json.dumps({"dags": sorted(bag.dags), "errors": errors}))
"""

# The answer is kept there: the same files and settings are read once.
PARSE_ONCE = """
kept=/tmp/ml-pipelines-dags-$1.json
if ! test -s $kept; then
    python -c "$0" 2>/dev/null | tail -n 1 > $kept.new || exit 1
    grep --quiet '"errors": {}' $kept.new || { cat $kept.new; exit; }
    mv $kept.new $kept
fi
cat $kept
"""


def publish(stack: Stack, phase: Phase, *, worktree: bool = False) -> str:
    """Publish the DAGs and wait until Airflow shows them, with the settings of the release.

    Every file of the commit is read before a DAG of it is waited for. Returns the commit.

    Raises UserError that names all files that can't be imported, or after DAG_SECONDS.
    """
    commit = stack.cluster.publish(worktree=worktree)

    def shown(airflow: Airflow) -> bool:
        nonlocal commit
        problem = _behind(stack, airflow, commit)
        phase.note(problem)
        if problem and not worktree:
            # A commit made meanwhile is served in place of the one before it.
            commit = stack.cluster.publish(worktree=False)
        return not problem

    with stack.airflow() as airflow:
        until(
            DAG_SECONDS,
            lambda: shown(airflow),
            lambda: (
                f"Airflow does not show the DAGs of {commit[:10]}: {phase.detail}. Its "
                "containers git-sync say more, and those of the scheduler and of the DAG processor "
                "(kubectl logs)"
            ),
        )
    return commit


def _behind(stack: Stack, airflow: Airflow, commit: str) -> str:
    """Return what Airflow lacks of a commit ('': nothing). Raises UserError for broken files."""
    there, settings, since = served(stack)
    if there != commit:
        return f"Airflow has {there[:10] or 'no commit'} yet, not {commit[:10]}"
    if settings != stack.installed_settings():
        return "the kubelet has not brought the new settings to Airflow yet"
    try:
        found = _parsed(stack, f"{there}-{since.timestamp():.0f}")
    except (KubectlError, ValueError) as error:
        return f"its files can't be read yet ({error})"
    if found["errors"]:
        raise UserError(broken(found["errors"]))
    for dag_id in found["dags"]:
        dag = airflow.dag(dag_id)
        if dag is None or not airflow.is_active(dag):
            return f"{dag_id} is not known yet"
        if datetime.fromisoformat(dag["last_parsed_time"]) <= since:
            return f"{dag_id} is not parsed yet"
    return ""


def _parsed(stack: Stack, state: str) -> dict[str, Any]:
    """Return ``{"dags": [id], "errors": {file: traceback}}`` of the files that are served.

    ``state`` names files and settings: what is known of the same state is not read again.
    """
    command = ["sh", "-c", PARSE_ONCE, PARSE, state]
    return json.loads(stack.in_dag_processor(*command, timeout=PARSE_SECONDS))


def broken(errors: dict[str, str]) -> str:
    lines = [f"{len(errors)} of the DAG files can't be imported:"]
    for file, trace in sorted(errors.items()):
        lines.append(f"  {file.rpartition('/repo/')[2]}:")
        lines += [f"    {line}" for line in trace.strip().splitlines()[-6:]]
    return "\n".join(lines)


def served(stack: Stack) -> tuple[str, dict[str, Any], datetime]:
    """Return commit and settings that Airflow reads, and since when it has both.

    ('', no settings and the present moment while one of them is missing.)
    """
    # git-sync swaps this link; its target is named after the commit, its own time says when. So the
    # kubelet does with ..data when the content of the ConfigMap has changed.
    link, (directory, name) = "/opt/airflow/dags/repo", SETTINGS_PATH.rsplit("/", 1)
    script = (
        f"readlink {link} && stat --format=%.Y {link} {directory}/..data && cat {directory}/{name}"
    )
    try:
        target, *stamps, settings = stack.in_dag_processor("sh", "-c", script).split("\n", 3)
        since = datetime.fromtimestamp(max(map(float, stamps)), UTC)
        return target.rsplit("/", 1)[-1], json.loads(settings), since
    except (KubectlError, ValueError):
        return "", {}, datetime.now(UTC)
