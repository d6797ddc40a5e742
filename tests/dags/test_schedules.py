"""Schedule and limits of any DAG by values, and `inferenceOnNewModel`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from airflow import DAG

from example_parts import model_dataset
from tests.dags.conftest import AIRFLOW_2, START
from tests.helpers.pipelines import stored

UPLOAD = "upload_model"
PRESETS = {"presets": {"registry": {}}}
MODEL = "x-ml-pipelines://models/airflow-pipeline"


def waited_for(dag: object) -> set[str]:
    """The datasets that start a DAG, by what its timetable says."""
    if AIRFLOW_2:
        condition = dag.dataset_triggers
        return {uri for uri, _ in condition.iter_datasets()} if condition else set()
    condition = getattr(dag.timetable, "asset_condition", None)
    return {asset.uri for asset in condition.objects} if condition else set()


def timetable(dag: object) -> dict[str, object]:
    """As the scheduler has it."""
    found = json.loads(stored(dag))["dag"]
    return {key: found.get(key) for key in ("timetable", "schedule_interval", "dataset_triggers")}


@pytest.mark.parametrize("cron", ["0 6 * * *", "@daily", "@once", "@yearly", None])
@pytest.mark.parametrize("before", ["0 9 * * *", None])
def test_a_schedule_is_what_airflow_makes_of_it(
    settings_file, as_stored, cron: str | None, before: str | None
) -> None:
    settings_file({"dags": {"anybodys": {"schedule": cron}}})
    dag = as_stored(DAG("anybodys", schedule=before, start_date=START))
    assert timetable(dag) == timetable(DAG("anybodys", schedule=cron, start_date=START))
    assert dag.timetable.can_be_scheduled is (cron is not None)


def test_a_schedule_is_in_the_time_zone_of_its_dag(settings_file, as_stored) -> None:
    settings_file({"dags": {"anybodys": {"schedule": "0 6 * * *"}}})
    start = datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Kyiv"))
    dag = as_stored(DAG("anybodys", schedule=None, start_date=start))
    assert "Europe/Kyiv" in json.dumps(timetable(dag))


def test_what_a_dag_waits_for_besides_the_clock_stays(settings_file, as_stored) -> None:
    def make(schedule: object = "waits") -> DAG:
        schedule = [model_dataset()] if schedule == "waits" else schedule
        return DAG("anybodys", schedule=schedule, start_date=START)

    settings_file({"dags": {"anybodys": {"schedule": None}}})
    assert timetable(as_stored(make())) == timetable(make())
    settings_file({"dags": {"anybodys": {"schedule": "@daily"}}})
    dag = as_stored(make())
    assert waited_for(dag) == {MODEL}
    assert dag.timetable.can_be_scheduled is True


def test_limits_of_a_dag(settings_file, as_stored) -> None:
    def make(**limits: object) -> DAG:
        return DAG("anybodys", schedule=None, start_date=START, **limits)

    limits = {"max_active_runs": 2, "max_active_tasks": 3}
    settings_file({"dags": {"anybodys": {**limits, "dagrun_timeout": 7200}}})
    timeout = timedelta(hours=2)
    assert stored(as_stored(make())) == stored(make(**limits, dagrun_timeout=timeout))


@pytest.mark.parametrize("content", [{"dags": {"another": {"schedule": "@daily"}}}, {}])
def test_a_dag_that_nothing_is_said_about_stays_as_it_is(
    settings_file, as_stored, content: dict[str, object]
) -> None:
    settings_file(content)
    dag = DAG("anybodys", schedule="@hourly", start_date=START)
    before = stored(dag)
    assert stored(as_stored(dag)) == before


def test_a_process_without_settings_reads_dags(as_stored, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ML_PIPELINES_SETTINGS", str(tmp_path / "none.json"))
    assert as_stored(DAG("anybodys", schedule="@hourly", start_date=START)).timetable


def test_a_schedule_that_cannot_be_is_an_import_error(settings_file, as_stored) -> None:
    settings_file({"dags": {"anybodys": {"schedule": "61 * * * *"}}})
    with pytest.raises(Exception, match="61"):
        as_stored(DAG("anybodys", schedule=None, start_date=START))


@pytest.fixture
def inference(load_dag, settings_file, as_stored):
    def load(cron: str | None, *, on_new_model: bool):
        dags = {"inference_dag": {"schedule": cron}}
        settings_file(PRESETS | {"dags": dags, "inferenceOnNewModel": on_new_model})
        return as_stored(load_dag("inference_dag"))

    return load


@pytest.mark.parametrize("cron", ["0 9 * * *", "@daily", "@once", None])
def test_without_the_switch_only_the_clock_counts(inference, cron: str | None) -> None:
    dag = inference(cron, on_new_model=False)
    assert waited_for(dag) == set()
    assert MODEL not in stored(dag)


@pytest.mark.parametrize("cron", ["0 9 * * *", "@daily", "@once"])
def test_with_the_switch_clock_and_models_count(inference, cron: str) -> None:
    dag = inference(cron, on_new_model=True)
    assert waited_for(dag) == {MODEL}
    # The clock is the one that Airflow itself makes of the expression.
    without = inference(cron, on_new_model=False)
    if AIRFLOW_2:
        assert dag.timetable.timetable == without.timetable
    else:
        clocks = [json.loads(stored(one))["dag"]["timetable"] for one in (dag, without)]
        assert clocks[0]["__var"]["timetable"] == clocks[1]
    assert dag.timetable.can_be_scheduled is True
    assert MODEL in stored(dag)
    assert dag.catchup is False


def test_with_the_switch_and_no_schedule_only_models_count(inference) -> None:
    dag = inference(None, on_new_model=True)
    assert waited_for(dag) == {MODEL}
    assert not hasattr(dag.timetable, "timetable")


@pytest.mark.parametrize("on_new_model", [True, False])
def test_upload_model_announces_the_model_that_inference_waits_for(
    load_dag, settings_file, on_new_model: bool
) -> None:
    settings_file(PRESETS | {"inferenceOnNewModel": on_new_model, "model": {"name": "größe"}})
    training, inference = load_dag("training_dag"), load_dag("inference_dag")
    announced = {task.task_id: {one.uri for one in task.outlets} for task in training.tasks}
    assert announced.pop("upload_model") == {"x-ml-pipelines://models/gr%C3%B6%C3%9Fe"}
    assert set().union(*announced.values()) == set()
    assert waited_for(inference) == (
        {"x-ml-pipelines://models/gr%C3%B6%C3%9Fe"} if on_new_model else set()
    )


def test_another_model_is_another_dataset(settings_file) -> None:
    settings_file({"model": {"name": "one"}})
    first = model_dataset()
    settings_file({"model": {"name": "two"}})
    assert first.uri != model_dataset().uri


if AIRFLOW_2:
    # Asks the scheduler of Airflow 2.9 itself: no interface, that of Airflow 3 has other methods.

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("on_new_model", [True, False])
    def test_a_registered_model_starts_one_run_with_the_switch_and_none_without(
        load_dag, settings_file, session, on_new_model: bool
    ) -> None:
        """The scheduler's own decisions, on a real (SQLite) database; no task is executed."""
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.models import DagModel, DagRun
        from airflow.models.serialized_dag import SerializedDagModel

        settings_file(PRESETS | {"inferenceOnNewModel": on_new_model})
        dags = {dag_id: load_dag(dag_id) for dag_id in ("training_dag", "inference_dag")}
        scheduler = SchedulerJobRunner(job=Job())
        scheduler.dagbag = SimpleNamespace(
            get_dag=lambda dag_id, session: dags[dag_id], dags_hash=dict.fromkeys(dags, "")
        )
        for dag in dags.values():
            dag.sync_to_db(session=session)
            SerializedDagModel.write_dag(dag, session=session)
            session.get(DagModel, dag.dag_id).is_paused = False

        def scheduled() -> list[str]:
            """Two passes of the scheduler; gives how the runs of inference_dag were started."""
            for _ in range(2):
                query, by_dataset = DagModel.dags_needing_dagruns(session)
                models = set(query)
                of_datasets = {model for model in models if model.dag_id in by_dataset}
                scheduler._create_dag_runs(models - of_datasets, session)
                scheduler._create_dag_runs_dataset_triggered(of_datasets, by_dataset, session)
                session.flush()
            runs = session.query(DagRun).filter(DagRun.dag_id == "inference_dag")
            return sorted(str(run.run_type) for run in runs)

        before = scheduled()
        next_by_clock = session.get(DagModel, "inference_dag").next_dagrun
        now = datetime.now(UTC)
        run = dags["training_dag"].create_dagrun(
            run_id="training",
            execution_date=now,
            data_interval=(now, now),
            run_type="manual",
            state="running",
            session=session,
        )
        (upload,) = [
            one for one in run.get_task_instances(session=session) if one.task_id == UPLOAD
        ]
        upload.task = dags["training_dag"].get_task(UPLOAD)
        upload.start_date = upload.end_date = now
        upload._register_dataset_changes(session=session)
        session.flush()

        assert scheduled() == ["dataset_triggered"] * on_new_model + before
        assert session.get(DagModel, "inference_dag").next_dagrun == next_by_clock
