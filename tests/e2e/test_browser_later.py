"""What the pages show of runs that have ended: notes, links into the registry, reasons."""

import pytest
from playwright.sync_api import Page, expect

from mlctl.clients.airflow import Airflow
from tests.e2e.conftest import Picture, Run
from tests.helpers.browser import Pages


def test_a_good_run_is_green_and_says_what_came_of_it(
    training_run: Run, pages: Pages, picture: Picture
) -> None:
    pages.open_run("training_dag", training_run.run_id)
    expect(pages.status("success")).to_be_visible()
    accuracy = training_run.results["train_model"]["accuracy"]
    for text in (f"accuracy {accuracy:.4f} on held-out rows", "is promoted"):
        expect(pages.note(text)).to_be_visible()
    picture("training")


def test_an_inference_says_where_the_predictions_are(inference_run: Run, pages: Pages) -> None:
    pages.open_run("inference_dag", inference_run.run_id)
    expect(pages.note("run_inference: 1000 rows by")).to_contain_text("pred.csv")


@pytest.fixture
def registry_run(training_run: Run, pages: Pages, picture: Picture) -> Page:
    """The page of the registry to which the task of the training leads."""
    pages.open_run("training_dag", training_run.run_id, "train_model")
    expect(pages.link("Run in the registry")).to_be_enabled()
    picture("task")
    with pages.page.expect_popup() as opened:
        pages.link("Run in the registry").click()
    return opened.value


def test_a_task_leads_to_its_run_in_mlflow_with_its_pictures(
    registry_run: Page, training_run: Run, picture: Picture
) -> None:
    expect(registry_run.get_by_role("heading", name=training_run.run_id)).to_be_visible()
    registry_run.get_by_role("tab", name="Artifacts").click()
    registry_run.get_by_text("plots").click()
    registry_run.get_by_text("confusion_matrix.png").click()
    matrix = registry_run.get_by_role("img", name="plots/confusion_matrix.png")
    expect(matrix).to_be_visible()
    picture("mlflow-run", registry_run)
    registry_run.close()


def test_a_task_leads_to_the_version_of_its_model(
    training_run: Run, pages: Pages, picture: Picture
) -> None:
    pages.open_run("training_dag", training_run.run_id, "upload_model")
    with pages.page.expect_popup() as opened:
        pages.link("Model version").click()
    version = opened.value
    expect(version.get_by_text("held-out accuracy")).to_be_visible()
    version.get_by_role("link", name="airflow-pipeline").first.click()
    expect(version.get_by_text("@ champion")).to_be_visible()
    picture("mlflow-model", version)
    version.close()


def test_a_failed_run_is_red_and_says_why(pages: Pages, airflow: Airflow, picture: Picture) -> None:
    """One of those that tests/e2e/test_failures.py has made."""
    failed = [run for run in airflow.all_runs("training_dag") if run["state"] == "failed"]
    if not failed:
        pytest.skip("no run has failed: test_failures was not run")
    pages.open_run("training_dag", failed[0]["dag_run_id"])
    expect(pages.status("failed")).to_be_visible()
    expect(pages.note("train_model: failed:")).to_be_visible()
    picture("failed")
