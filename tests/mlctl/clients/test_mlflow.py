"""What the client of MLflow's REST API makes of its answers."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlctl.clients.mlflow import Mlflow


def test_versions_of_all_pages_are_returned_with_their_tags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = {"version": "2", "tags": [{"key": "run_id", "value": "r"}]}
    pages = {
        "": {"model_versions": [run], "next_page_token": "next"},
        "next": {"model_versions": [{"version": "1"}]},
    }
    asked: list[dict[str, Any]] = []

    def get(_: Mlflow, path: str, /, **params: Any) -> SimpleNamespace:
        assert path == "api/2.0/mlflow/model-versions/search"
        asked.append(params)
        return SimpleNamespace(json=lambda: pages[params["page_token"]])

    monkeypatch.setattr(Mlflow, "get", get)
    assert Mlflow(SimpleNamespace(url="")).versions("m") == [
        {"version": "2", "tags": {"run_id": "r"}},
        {"version": "1", "tags": {}},
    ]
    assert {one["filter"] for one in asked} == {"name='m'"}
