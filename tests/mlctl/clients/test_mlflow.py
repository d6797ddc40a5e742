"""What the client of MLflow's REST API makes of its answers."""

from types import SimpleNamespace

from pytest_httpserver import HTTPServer

from mlctl.clients.mlflow import Mlflow

SEARCH = "/api/2.0/mlflow/model-versions/search"


def test_versions_of_all_pages_are_returned_with_their_tags(httpserver: HTTPServer) -> None:
    run = {"version": "2", "tags": [{"key": "run_id", "value": "r"}]}
    pages = {
        "": {"model_versions": [run], "next_page_token": "next"},
        "next": {"model_versions": [{"version": "1"}]},
    }
    for token, page in pages.items():
        query = {"filter": "name='m'", "max_results": "100", "page_token": token}
        asked = httpserver.expect_request(SEARCH, "GET", query_string=query)
        asked.respond_with_json(page)
    server = SimpleNamespace(url=httpserver.url_for("").rstrip("/"))
    assert Mlflow(server).versions("m") == [
        {"version": "2", "tags": {"run_id": "r"}},
        {"version": "1", "tags": {}},
    ]
