"""The pages, over the real Services, while a training is under way."""

import pytest
import requests

from mlctl.clients.airflow import Airflow, AirflowError

pytestmark = pytest.mark.usefixtures("training_started")


def test_login_with_the_generated_password(airflow: Airflow) -> None:
    session = airflow.login()
    home = session.get(f"{airflow.connection.url}/home", timeout=30)
    assert home.status_code == 200
    assert "/logout" in home.text


def test_a_wrong_password_is_refused(airflow: Airflow) -> None:
    stranger = Airflow(airflow.connection, airflow.user, "wrong")
    with pytest.raises(AirflowError, match="refuses the password"):
        stranger.login()


def test_without_login_nothing_is_shown(airflow: Airflow) -> None:
    url = airflow.connection.url
    page = requests.get(f"{url}/home", timeout=30, allow_redirects=False)
    assert page.status_code == 302
    assert "/login" in page.headers["Location"]
    assert requests.get(f"{url}/api/v1/dags", timeout=30).status_code in {401, 403}


def test_health(airflow: Airflow) -> None:
    health = requests.get(f"{airflow.connection.url}/health", timeout=30).json()
    assert health["metadatabase"]["status"] == "healthy"
    assert health["scheduler"]["status"] == "healthy"


@pytest.mark.parametrize("dag_id", ["training_dag", "inference_dag"])
def test_the_page_of_the_dag(airflow: Airflow, dag_id: str) -> None:
    page = airflow.page(f"dags/{dag_id}/grid")
    assert page.status_code == 200
    assert dag_id in page.text


def test_the_dags_are_the_documents(airflow: Airflow) -> None:
    dags = {dag["dag_id"]: dag["schedule_interval"] for dag in airflow.get("dags")["dags"]}
    assert dags["training_dag"] is None
    assert dags["inference_dag"]["value"] == "0 9 * * *"
    assert airflow.import_errors() == []


def test_the_page_of_the_registry(mlflow) -> None:
    page = mlflow.get("")
    assert "text/html" in page.headers["Content-Type"]
    assert "MLflow" in page.text
