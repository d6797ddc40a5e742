"""The gate in training_dag: its place, its rules, and what a refused model leaves behind."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from ml_pipelines import PodOperator
from tests.dags.cluster import Cluster, ended, until
from tests.dags.conftest import AIRFLOW_2, CHART_SETTINGS, hook_of
from tests.helpers.pipelines import CLI, stored

try:
    from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred
except ImportError:  # Airflow 2
    from airflow.exceptions import AirflowSkipException, TaskDeferred

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RESULTS = {"upload_model": {"version": "v3"}, "gate_model": {"decision": "passed"}}
PASSED = {"decision": "promoted", "reason": "no worse than v2"}
REFUSED = {"decision": "refused", "reason": "its accuracy of 0.5100 is too low"}
MODEL = "x-ml-pipelines://models/airflow-pipeline"


@pytest.fixture
def training(load_dag, settings_file):
    """Load training_dag with other values of `pipelines.model` than the chart's."""

    def load(**model: Any) -> Any:
        settings_file(CHART_SETTINGS | {"model": CHART_SETTINGS["model"] | model})
        return load_dag("training_dag")

    return load


def work(dag: Any) -> list[str]:
    """The tasks after the upload, in their order."""
    found, task = [], dag.get_task("upload_model")
    while following := [one for one in task.downstream_list if one.task_id != "clean_up"]:
        (task,) = following
        found.append(task.task_id)
    return found


def announcing(dag: Any) -> list[str]:
    return [task.task_id for task in dag.tasks if [one.uri for one in task.outlets] == [MODEL]]


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ({}, ["gate_model"]),
        ({"approval": True}, ["gate_model", "approve_model", "promote_model"]),
        ({"alias": "latest"}, []),
        ({"alias": "latest", "approval": True}, []),
    ],
)
def test_the_task_that_decides_for_inference_announces_the_model(
    training, model: dict[str, Any], tasks: list[str]
) -> None:
    dag = training(**model)
    assert work(dag) == tasks
    assert announcing(dag) == [(tasks or ["upload_model"])[-1]]
    assert {"upload_model", *tasks} <= dag.get_task("clean_up").upstream_task_ids


def test_inference_loads_what_the_alias_stands_for(load_dag, settings_file, context_of) -> None:
    settings_file(CHART_SETTINGS | {"model": {"name": "m", "alias": "blue"}})
    task = load_dag("inference_dag").get_task("load_model")
    task.render_template_fields(context_of(task, "run"))
    assert "m:blue" in task.cmds
    described = task.dag.params.get_param("model_version").description
    assert described.endswith("Empty: blue.")


def test_the_gate_gets_version_files_and_rules(training, render_pod) -> None:
    task = training(gate={"margin": 0.5, "data": "any"}, approval=True).get_task("gate_model")
    (container,) = render_pod(task, "run", results=RESULTS)["spec"]["containers"]
    assert container["command"] == [
        *(*CLI, "gate", "airflow-pipeline:v3"),
        *("/tmp/results", "/tmp/data"),
    ]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert json.loads(variables["GATE"]) == {
        "alias": "champion",
        "approval": True,
        "data": "any",
        "margin": 0.5,
    }
    assert {"WANDB_API_KEY", "ML_PIPELINES_PARAMS"} <= variables.keys()


@pytest.mark.parametrize("said", [PASSED, REFUSED])
def test_a_refused_model_is_a_skipped_task_with_its_result(
    training, clock, monkeypatch, context_of, said: dict[str, str]
) -> None:
    task = training().get_task("gate_model")
    cluster = Cluster(clock, until(10, ended(0, message=json.dumps(said))))
    monkeypatch.setattr(PodOperator, "hook", hook_of(cluster))
    context = context_of(task, "run", RESULTS)
    result = task.execute(context)
    if said is REFUSED:
        with pytest.raises(AirflowSkipException, match=r"refused: its accuracy of 0\.5100"):
            task._post_execute_hook(context, result)
    else:
        task._post_execute_hook(context, result)
    assert context["ti"].xcoms["return_value"].items() >= said.items()
    assert cluster.deleted == cluster.created


@pytest.mark.parametrize(
    ("answer", "by"),
    [
        ({"responded_by_user": {"id": "7", "name": "ann"}}, "ann"),
        (None, "somebody in Airflow"),
    ],
)
def test_who_has_approved_is_told(training, render_pod, answer: Any, by: str) -> None:
    task = training(approval=True).get_task("promote_model")
    pod = render_pod(task, "run", results={**RESULTS, "approve_model": answer})
    assert pod["spec"]["containers"][0]["command"] == [
        *(*CLI, "promote", "airflow-pipeline:v3"),
        *("--by", by, "--reason", "approved"),
    ]


def test_a_person_is_asked_with_the_figures(training, context_of) -> None:
    dag = training(approval=True)
    assert stored(dag)
    task = dag.get_task("approve_model")
    context = context_of(task, "run", RESULTS)
    task.render_template_fields(context)
    assert task.subject == "Shall inference load airflow-pipeline:v3?"
    assert json.loads(task.body) == RESULTS["gate_model"]
    assert task.response_timeout.days == 7
    if AIRFLOW_2:
        with pytest.raises(TaskDeferred) as waiting:
            task.execute(context)
        assert waiting.value.method_name == "give_up"
        with pytest.raises(AirflowSkipException, match="nobody has answered within 7 days"):
            task.give_up(context)


if AIRFLOW_2:

    def new_run(dag: Any, run_id: str, session: Any) -> Any:
        when = datetime.now(UTC)
        return dag.create_dagrun(
            run_id=run_id,
            execution_date=when,
            data_interval=(when, when),
            run_type="manual",
            state="running",
            start_date=when,
            session=session,
        )

    @pytest.mark.parametrize(("mark", "after"), [("success", None), ("failed", "upstream_failed")])
    def test_marking_the_waiting_task_lets_the_run_go_on_or_ends_it(
        training, session, mark: str, after: str | None
    ) -> None:
        """As the page and `make approve` do it, on a real (SQLite) database."""
        from airflow.utils.state import TaskInstanceState

        dag = training(approval=True)
        dag.sync_to_db(session=session)
        run = new_run(dag, f"approval-{mark}", session)
        for instance in run.get_task_instances(session=session):
            done = instance.task_id not in ("approve_model", "promote_model", "clean_up")
            state = "deferred" if instance.task_id == "approve_model" else None
            instance.state = "success" if done else state
        session.flush()
        assert run.update_state(session=session, execute_callbacks=False)[0] == []
        dag.set_task_instance_state(
            task_id="approve_model",
            run_id=run.run_id,
            state=TaskInstanceState(mark),
            commit=True,
            session=session,
        )
        run.dag = dag
        ready, _ = run.update_state(session=session, execute_callbacks=False)
        states = {one.task_id: one.state for one in run.get_task_instances(session=session)}
        assert states["promote_model"] == after
        assert [one.task_id for one in ready] == ([] if after else ["promote_model"])

    @pytest.mark.parametrize(
        ("said", "state", "events"), [(PASSED, "success", 1), (REFUSED, "skipped", 0)]
    )
    def test_airflow_keeps_the_result_and_announces_what_was_promoted(
        training, session, clock, monkeypatch, said: dict[str, str], state: str, events: int
    ) -> None:
        from airflow.models.dataset import DatasetEvent

        dag = training()
        dag.sync_to_db(session=session)
        run = new_run(dag, f"gate-{state}", session)
        session.commit()
        instances = {one.task_id: one for one in run.get_task_instances(session=session)}
        cluster = Cluster(clock, until(10, ended(0, message=json.dumps(said))))
        monkeypatch.setattr(PodOperator, "hook", hook_of(cluster))
        upload, gate = instances["upload_model"], instances["gate_model"]
        for instance in (upload, gate):
            instance.refresh_from_task(dag.get_task(instance.task_id))
        upload.xcom_push("return_value", RESULTS["upload_model"], session=session)
        gate.run(ignore_ti_state=True, ignore_all_deps=True, session=session)
        assert gate.state == state
        assert gate.xcom_pull("gate_model", session=session).items() >= said.items()
        found = session.query(DatasetEvent).filter(DatasetEvent.source_run_id == run.run_id)
        assert found.count() == events
