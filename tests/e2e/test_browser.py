"""The first look: list of DAGs, form, a log that grows. Beside the training in its full length."""

import pytest
from playwright.sync_api import expect

from mlctl.base.waiting import until
from mlctl.clients.airflow import Airflow
from tests.e2e.conftest import Picture
from tests.helpers.browser import Pages

SECONDS = 600
pytestmark = pytest.mark.usefixtures("training_started")


def test_both_dags_are_listed_without_an_import_error(pages: Pages, picture: Picture) -> None:
    errors = pages.list_dags()
    for dag_id in ("training_dag", "inference_dag"):
        expect(pages.dag(dag_id)).to_be_visible()
    expect(errors).to_have_count(0)
    picture("dags")


def test_the_form_says_what_a_parameter_is(pages: Pages, picture: Picture) -> None:
    pages.open_form("training_dag")
    pages.field("learning_rate").scroll_into_view_if_needed()
    expect(
        pages.page.get_by_text("Optimizer steps, 1 to 100000. Empty: as configured.")
    ).to_be_visible()
    pages.field("max_steps").fill("50")
    picture("form")


@pytest.mark.parametrize(
    ("parameter", "value"), [("data_source", "nonsense"), ("base_model", "a b")]
)
def test_a_wrong_parameter_is_refused(
    pages: Pages, airflow: Airflow, parameter: str, value: str
) -> None:
    before = airflow.all_runs("training_dag")
    pages.open_form("training_dag")
    pages.field(parameter).fill(value)
    pages.send_form()
    expect(pages.refusal(parameter)).to_be_visible()
    assert len(airflow.all_runs("training_dag")) == len(before)


def test_a_log_is_shown_while_its_task_runs(
    pages: Pages, airflow: Airflow, training_started: str
) -> None:
    def runs() -> bool:
        tasks = airflow.tasks("training_dag", training_started)
        return ("train_model", "running") in [(one.name, one.stage) for one in tasks]

    until(SECONDS, runs, "train_model does not run")
    pages.open_run("training_dag", training_started, "train_model", "logs")
    expect(pages.page.get_by_text("sentences/s").first).to_be_visible()
    assert runs()
