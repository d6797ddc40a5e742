"""The fault drill: a fault in the middle of a training run costs a retry at most, and no data.

Five of the faults; `make drill` tries all of them, in three times the time.

The training is cut to a third: what is tried here is not how well it learns. Its memory is cut to
what it needs: one fault fills it.
"""

from collections.abc import Callable, Iterator

import pytest

from mlctl.clients.airflow import Airflow
from mlctl.release.release import Release
from mlctl.stack import Stack
from mlctl.trials.drill.__main__ import REPORT
from mlctl.trials.drill.drill import Drill
from mlctl.trials.drill.faults import Fault, chosen
from mlctl.trials.drill.report import Row, table, write
from tests.helpers.releases import SHORT_TRAINING

MEMORY = "pipelines.tasks.train_model.resources.limits.memory=2Gi"
NAMES = "scheduler-pod worker-pod task-pod api-server postgres"


@pytest.fixture(scope="module")
def drill(
    stack: Stack, release: Release, client: Airflow, aloud, request: pytest.FixtureRequest
) -> Iterator[Callable[[Fault], Row]]:
    """Strike, and return the row; the table is shown at the end, and in build/drill.json."""
    if stack.cluster.kind != "embedded":
        pytest.skip("the drill stops parts of the cluster: embedded only")
    with aloud("upgrade to a short training in little memory") as phase:
        release.deploy(phase, extra=("--set-string", f"{SHORT_TRAINING},{MEMORY}"))
    rows: list[Row] = []
    drill = Drill(stack, client)
    with aloud("a run without a fault") as phase:
        drill.measure(phase)

    def strike(fault: Fault) -> Row:
        with aloud(fault.what) as phase:
            rows.append(drill(fault, phase))
        return rows[-1]

    yield strike
    write(rows, REPORT)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n" + "\n".join(table(rows)), flush=True)


@pytest.mark.parametrize("fault", chosen(NAMES), ids=lambda fault: fault.name)
def test_fault_costs_a_retry_at_most_and_no_data(drill: Callable[[Fault], Row], fault) -> None:
    row = drill(fault)
    assert row.ok, "\n".join([*table([row]), row.shown])
