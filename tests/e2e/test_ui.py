"""The pages, over the real Services, while a training is under way."""

import pytest
import requests

from mlctl.clients.airflow import Airflow, AirflowError

pytestmark = pytest.mark.usefixtures("training_started")


def test_login_with_the_generated_password(airflow: Airflow) -> None:
    session = airflow.login()
    # The pages of Airflow 3 are a program that asks the API.
    path, shown = ("api/v2/dags", "inference_dag") if airflow.is_3 else ("home", "/logout")
    home = session.get(f"{airflow.connection.url}/{path}", timeout=30)
    assert home.status_code == 200
    assert shown in home.text


def test_a_wrong_password_is_refused(airflow: Airflow) -> None:
    stranger = Airflow(airflow.connection, airflow.user, "wrong", version=airflow.version)
    with pytest.raises(AirflowError, match="refuses the password"):
        stranger.login()


def test_without_login_nothing_is_shown(airflow: Airflow) -> None:
    url = airflow.connection.url
    page = requests.get(f"{url}/home", timeout=30, allow_redirects=False)
    if airflow.is_3:
        assert "dag" not in page.text
        assert "password" in requests.get(f"{url}/auth/login/", timeout=30).text
    else:
        assert page.status_code == 302
        assert "/login" in page.headers["Location"]
    api = f"{url}/api/v{2 if airflow.is_3 else 1}"
    assert requests.get(f"{api}/dags", timeout=30).status_code in {401, 403}


def test_health(airflow: Airflow) -> None:
    path = "api/v2/monitor/health" if airflow.is_3 else "health"
    health = requests.get(f"{airflow.connection.url}/{path}", timeout=30).json()
    assert health["metadatabase"]["status"] == "healthy"
    assert health["scheduler"]["status"] == "healthy"


@pytest.mark.parametrize("dag_id", ["training_dag", "inference_dag"])
def test_the_page_of_the_dag(airflow: Airflow, dag_id: str) -> None:
    path = f"api/v2/dags/{dag_id}/details" if airflow.is_3 else f"dags/{dag_id}/grid"
    page = airflow.page(path)
    assert page.status_code == 200
    assert dag_id in page.text


def test_the_dags_are_the_documents(airflow: Airflow) -> None:
    dags = {dag["dag_id"]: dag for dag in airflow.get("dags")["dags"]}
    if airflow.is_3:
        assert dags["training_dag"]["timetable_summary"] is None
        assert dags["inference_dag"]["timetable_summary"] == "0 9 * * *"
    else:
        assert dags["training_dag"]["schedule_interval"] is None
        assert dags["inference_dag"]["schedule_interval"]["value"] == "0 9 * * *"
    assert airflow.import_errors() == []


def test_the_page_of_the_registry(mlflow) -> None:
    page = mlflow.get("")
    assert "text/html" in page.headers["Content-Type"]
    assert "MLflow" in page.text
