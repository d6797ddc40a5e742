"""A training as a person starts, approves and uses it, in the browser alone."""

import pytest
from playwright.sync_api import expect

from mlctl.clients.airflow import Airflow, Task
from mlctl.clients.mlflow import Mlflow
from tests.e2e.conftest import FollowRun, Picture, WithSettings
from tests.helpers.browser import Pages

pytestmark = pytest.mark.long

SECONDS = 1200
NAME = "made-in-the-browser"
"""Of the model: the one that other tests look at stays as it is."""

STEPS = 20
TO_APPROVE = {
    "model": {
        "approval": True,
        "gate": {"margin": -1, "tolerance": 1, "significance": 0, "data": "any"},
    }
}
"""A few steps are enough to pass, and then a person is asked."""


def test_from_the_form_to_a_champion_and_its_predictions(
    pages: Pages,
    airflow: Airflow,
    mlflow: Mlflow,
    with_settings: WithSettings,
    settle,
    follow_run: FollowRun,
    picture: Picture,
) -> None:
    def by_hand(dag_id: str) -> set[str]:
        """A DAG that is switched on gets a run of its schedule, too."""
        runs = airflow.all_runs(dag_id)
        return {run["dag_run_id"] for run in runs if run["run_type"] == "manual"}

    def start(dag_id: str, **parameters: object) -> str:
        before = by_hand(dag_id)
        pages.open_form(dag_id)
        for name, value in parameters.items():
            pages.field(name).fill(str(value))
        pages.send_form()
        expect(pages.field("model_name")).to_have_count(0)
        (run_id,) = by_hand(dag_id) - before
        return run_id

    def answer(task: Task) -> None:
        if task.waits_for_a_person:
            pages.approve("training_dag", training, task.name)

    with with_settings(TO_APPROVE):
        settle()
        training = start("training_dag", max_steps=STEPS, model_name=NAME)
        trained = follow_run("training_dag", training, SECONDS, answer)
    assert trained.state == "success", trained.told()
    assert trained.tasks["promote_model"].state == "success"
    assert mlflow.aliases(NAME) == {"champion": "v1"}

    inference = start("inference_dag", model_name=NAME)
    predicted = follow_run("inference_dag", inference, SECONDS)
    assert predicted.state == "success", predicted.told()
    pages.open_run("inference_dag", inference)
    expect(pages.status("success")).to_be_visible()
    picture("inference")
