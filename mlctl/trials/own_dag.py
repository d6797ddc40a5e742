"""A DAG of a trial's own, which exists only while the trial runs.

It is added to a clone of the checkout, which the cluster serves meanwhile, and is removed with all
that its runs have left.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mlctl.base.labels import label
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phase, Phases
from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from mlctl.cluster.embedded import dag_source
from mlctl.cluster.provider import breakable
from mlctl.publishing import DAG_SECONDS, publish
from mlctl.stack import Stack


@dataclass(frozen=True)
class OwnDag:
    """The file of a DAG in a clone of the checkout."""

    dag_id: str
    clone: Path

    def commit(self, text: str, dag_id: str = "") -> None:
        """Commit a text as the file, or as that of another DAG beside it."""
        self.commit_all({dag_id or self.dag_id: text})

    def commit_all(self, texts: Mapping[str, str]) -> None:
        """Commit the files of several DAGs at once, by their ids."""
        for dag_id, text in texts.items():
            (self.clone / "dags" / f"{dag_id}.py").write_text(text)
        somebody = dag_source.identity("trial", "trial@ml-pipelines.invalid")
        dag_source.run_git("add", "dags", at=self.clone)
        words = ["commit", "--quiet", "--message", f"Change {', '.join(islice(texts, 3))}"]
        dag_source.run_git(*words, at=self.clone, env=somebody)

    def wait(
        self, airflow: Airflow, phase: Phase, description: str, seconds: float = DAG_SECONDS
    ) -> None:
        """Wait until Airflow has it as described. Raises UserError after so many seconds."""
        phase.note(f"Airflow does not show {description} yet")
        until(
            seconds,
            lambda: (airflow.dag(self.dag_id) or {}).get("description") == description,
            f"Airflow does not show {description}",
            poll=0.2,
        )


@contextmanager
def published(
    stack: Stack, airflow: Airflow, dag_id: str, text: str, description: str, phases: Phases
) -> Iterator[OwnDag]:
    """Have Airflow show a DAG of this text, which describes itself so, for the time of a block.

    Raises UserError where no DAG can be published from here.
    """
    cluster = breakable(stack.cluster)
    with tempfile.TemporaryDirectory() as scratch:
        dag = OwnDag(dag_id, Path(scratch) / "clone")
        try:
            with phases.phase(f"publish {dag_id}") as phase:
                words = ["clone", "--quiet", "--no-hardlinks", str(ROOT), str(dag.clone)]
                dag_source.run_git(*words)
                dag.commit(text)
                cluster.serve(dag.clone)
                dag.wait(airflow, phase, description)
            yield dag
        finally:
            with phases.phase("publish the checkout again") as phase:
                publish(stack, phase)
                remove(stack, airflow, dag_id)


def remove(stack: Stack, airflow: Airflow, dag_id: str) -> None:
    """Remove what the runs of a DAG have left: pods that failed, files, logs, rows."""
    stack.kube.run("delete", "pods", "--selector", f"dag_id={label(dag_id)}")
    with stack.volume(read_only=False) as volume:
        volume.run("rm", "-rf", f"/volume/{label(dag_id)}")
    stack.in_scheduler("sh", "-c", 'rm -rf "$AIRFLOW_HOME/logs/dag_id=$0"', dag_id)
    airflow.request("DELETE", f"dags/{dag_id}", good=(404,))
