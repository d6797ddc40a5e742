"""What starts inference_dag, with and without `inferenceOnNewModel`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import airflow
import pytest

from ml_pipelines.schedules import model_dataset
from tests.helpers.pipelines import stored

AIRFLOW_2 = airflow.__version__.startswith("2.")
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


@pytest.fixture
def inference(load_dag, settings_file):
    def load(cron: str | None, *, on_new_model: bool):
        schedule = {"inference_dag": cron}
        settings_file(PRESETS | {"schedule": schedule, "inferenceOnNewModel": on_new_model})
        return load_dag("inference_dag")

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
    settings_file(PRESETS | {"inferenceOnNewModel": on_new_model, "modelName": "größe"})
    training, inference = load_dag("training_dag"), load_dag("inference_dag")
    announced = {task.task_id: {one.uri for one in task.outlets} for task in training.tasks}
    assert announced.pop("upload_model") == {"x-ml-pipelines://models/gr%C3%B6%C3%9Fe"}
    assert set().union(*announced.values()) == set()
    assert waited_for(inference) == (
        {"x-ml-pipelines://models/gr%C3%B6%C3%9Fe"} if on_new_model else set()
    )


def test_another_model_is_another_dataset(settings_file) -> None:
    settings_file({"modelName": "one"})
    first = model_dataset()
    settings_file({"modelName": "two"})
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
