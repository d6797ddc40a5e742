"""What becomes of a run: the scheduler's own decisions, task by task, on a real (SQLite) database.

No task is executed. The loop below does what a scheduler does between two tasks: it asks the run
which tasks can start (`DagRun.update_state`), and lets those end as the test says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow import __version__

from tests.helpers.pipelines import EVERY_WORK_TASK, WORK

AIRFLOW_2 = __version__.startswith("2.")

# Of Airflow's own dependencies, when its whole database layer is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`"),
]

_run_numbers = itertools.count(1)

Outcomes = dict[str, str]


@pytest.fixture(autouse=True)
def values(chart_settings: dict[str, Any]) -> None:
    """The DAGs as the chart has them."""


@pytest.fixture(scope="session")
def start_run(database: None, load_dag: Callable[[str], Any]) -> Callable[[str, Any], Any]:
    """Start a run of a DAG, as the scheduler would; its tasks have no state yet."""
    from airflow.utils.types import DagRunType

    stored: dict[str, Any] = {}

    def start(dag_id: str, session: Any) -> Any:
        if dag_id not in stored and AIRFLOW_2:
            stored[dag_id] = load_dag(dag_id)
            stored[dag_id].sync_to_db(session=session)
        elif dag_id not in stored:
            stored[dag_id] = _store_on_airflow_3(dag_id, session)
        when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=next(_run_numbers))
        run = stored[dag_id].create_dagrun(
            run_id=f"test__{when.isoformat()}",
            data_interval=(when, when),
            run_type=DagRunType.MANUAL,
            state="running",
            start_date=when,
            session=session,
            **({"execution_date": when} if AIRFLOW_2 else _dates_of_airflow_3(when)),
        )
        run.dag = stored[dag_id] if AIRFLOW_2 else _dag_on_airflow_3(run, session)
        return run

    return start


def _dates_of_airflow_3(when: datetime) -> dict[str, Any]:
    from airflow.utils.types import DagRunTriggeredByType

    triggered_by = DagRunTriggeredByType.TEST
    return {"logical_date": when, "run_after": when, "triggered_by": triggered_by}


def _dag_on_airflow_3(run: Any, session: Any) -> Any:
    from airflow.models.dagbag import DBDagBag

    return DBDagBag().get_dag_for_run(run, session=session)


def _store_on_airflow_3(dag_id: str, session: Any) -> Any:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.models.serialized_dag import SerializedDagModel

    manager = DagBundlesManager()
    manager.sync_bundles_to_db(session=session)
    session.commit()
    (bundle,) = manager.get_all_dag_bundles()
    bundle.initialize()
    bag = BundleDagBag(
        dag_folder=str(bundle.path), bundle_path=bundle.path, bundle_name=bundle.name
    )
    sync_bag_to_db(bag, bundle.name, None, session=session)
    session.commit()
    return SerializedDagModel.get_dag(dag_id, session=session)


def step(run: Any, session: Any, outcomes: Outcomes) -> list[str]:
    """One pass of the scheduler: what can start ends as `outcomes` says; gives the task ids."""
    ready, _ = run.update_state(session=session, execute_callbacks=False)
    for instance in ready:
        instance.state = outcomes.get(instance.task_id, "success")
        # From here a retry waits for its delay.
        instance.end_date = datetime.now(UTC) if instance.state == "up_for_retry" else None
        session.merge(instance)
    session.flush()
    return sorted(instance.task_id for instance in ready)


def states(run: Any, session: Any) -> dict[str, str | None]:
    return {
        instance.task_id: None if instance.state is None else str(instance.state)
        for instance in run.get_task_instances(session=session)
    }


def finish(run: Any, session: Any, outcomes: Outcomes) -> dict[str, str | None]:
    """Let the run go to its end; gives the states of its tasks."""
    for _ in range(20):
        step(run, session, outcomes)
        if run.state in ("success", "failed"):
            return states(run, session)
    raise AssertionError(f"the run does not end: {states(run, session)}")


@pytest.mark.parametrize("dag_id", list(WORK))
def test_run_succeeds_when_every_task_does_and_cleans_up_at_its_end(
    start_run, session, dag_id: str
) -> None:
    run = start_run(dag_id, session)
    order: list[str] = []
    while run.state == "running":
        order += step(run, session, {})
    assert run.state == "success"
    assert states(run, session) == dict.fromkeys([*WORK[dag_id], "clean_up"], "success")
    assert (order[0], order[-1]) == ("clean_storage_before_start", "clean_up")
    assert sorted(order) == sorted([*WORK[dag_id], "clean_up"])


@pytest.mark.parametrize("cleaning", ["success", "failed"])
@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_WORK_TASK)
def test_failed_task_fails_the_run_and_its_files_are_cleaned(
    start_run, session, dag_id: str, task_id: str, cleaning: str
) -> None:
    run = start_run(dag_id, session)
    after = finish(run, session, {task_id: "failed", "clean_up": cleaning})
    assert run.state == "failed"
    assert (after[task_id], after["clean_up"]) == ("failed", cleaning)
    assert after[WORK[dag_id][-1]] in ("failed", "upstream_failed")


def test_a_refused_model_fails_no_run_and_its_files_are_cleaned(start_run, session) -> None:
    run = start_run("training_dag", session)
    after = finish(run, session, {"gate_model": "skipped"})
    assert run.state == "success"
    assert (after["gate_model"], after["clean_up"]) == ("skipped", "success")


@pytest.mark.parametrize("dag_id", list(WORK))
def test_failed_cleaning_shows_but_does_not_fail_a_run_that_did_its_work(
    start_run, session, dag_id: str
) -> None:
    run = start_run(dag_id, session)
    after = finish(run, session, {"clean_up": "failed"})
    assert run.state == "success"
    assert after["clean_up"] == "failed"


@pytest.mark.parametrize("state", ["queued", "running", "restarting", "up_for_retry"])
@pytest.mark.parametrize(
    ("failing", "sibling"), [("load_data", "load_model"), ("load_model", "load_data")]
)
def test_cleaning_waits_for_the_sibling_of_a_failed_task(
    start_run, session, failing: str, sibling: str, state: str
) -> None:
    run = start_run("inference_dag", session)
    assert step(run, session, {}) == ["clean_storage_before_start"]
    both = step(run, session, {failing: "failed", sibling: state})
    assert both == ["load_data", "load_model"]

    # As long as the sibling may write, nothing else starts and the run does not end.
    for _ in range(3):
        assert step(run, session, {}) == []
        assert states(run, session)["clean_up"] is None
        assert run.state == "running"

    (instance,) = [i for i in run.get_task_instances(session=session) if i.task_id == sibling]
    instance.state = "success"
    session.flush()
    after = finish(run, session, {})
    assert run.state == "failed"
    assert after["clean_up"] == "success"


def cleared(dag: Any, task_id: str, *, downstream: bool) -> set[str]:
    """The tasks that are cleared with a task, with or without "Downstream" in the page."""
    options = {"include_upstream": False, "include_downstream": downstream}
    try:
        subset = dag.partial_subset([task_id], **options)
    except TypeError:  # Airflow 3
        subset = dag.partial_subset(task_ids=[task_id], **options)
    return set(subset.task_dict)


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_WORK_TASK)
def test_a_task_is_cleared_alone_or_with_what_follows_and_the_cleaning(
    load_dag, dag_id: str, task_id: str
) -> None:
    dag = load_dag(dag_id)
    # Nothing before it, the first cleaning above all: that would remove what is still there.
    assert cleared(dag, task_id, downstream=False) == {task_id}
    after = {task.task_id for task in dag.get_task(task_id).get_flat_relatives(upstream=False)}
    assert cleared(dag, task_id, downstream=True) == {task_id} | after
    assert "clean_up" in after


def clear(run: Any, session: Any, task_ids: set[str]) -> None:
    """Clear tasks of a run that has ended; the scheduler takes it up again."""
    for instance in run.get_task_instances(session=session):
        if instance.task_id in task_ids:
            instance.state = None
    run.state = "running"
    session.flush()


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_WORK_TASK)
def test_a_cleared_task_that_finds_no_input_fails_the_run_and_is_cleaned_up_after(
    start_run, load_dag, session, dag_id: str, task_id: str
) -> None:
    run = start_run(dag_id, session)
    finish(run, session, {})
    clear(run, session, cleared(load_dag(dag_id), task_id, downstream=True))
    after = finish(run, session, {task_id: "failed"})
    assert run.state == "failed"
    assert after[task_id] == "failed"
    assert after[WORK[dag_id][-1]] in ("failed", "upstream_failed")
    assert after["clean_up"] == "success"


@pytest.mark.parametrize(("dag_id", "task_id"), EVERY_WORK_TASK)
def test_a_task_that_is_cleared_without_what_follows_is_red_by_itself(
    start_run, session, dag_id: str, task_id: str
) -> None:
    run = start_run(dag_id, session)
    finish(run, session, {})
    clear(run, session, {task_id})
    after = finish(run, session, {task_id: "failed"})
    assert after == dict.fromkeys([*WORK[dag_id], "clean_up"], "success") | {task_id: "failed"}
    # Airflow judges a run by its last step. What that has made, model or predictions, is there.
    assert run.state == ("failed" if task_id == WORK[dag_id][-1] else "success")
