"""The MLflow of a release, through its REST API."""

from dataclasses import dataclass
from typing import Any, Protocol

import requests

PAGE = 100


class Connection(Protocol):
    """What leads to the server; mlctl.clients.forward.Forward is one."""

    @property
    def url(self) -> str:
        """Address of the server."""


@dataclass(frozen=True)
class Mlflow:
    """Requests to an MLflow server."""

    connection: Connection

    def get(self, path: str, /, **params: Any) -> requests.Response:
        """Return the answer to a GET. Raises requests.HTTPError on a refusal."""
        answer = requests.get(f"{self.connection.url}/{path}", params=params, timeout=60)
        answer.raise_for_status()
        return answer

    def version(self, name: str, version: str) -> dict[str, Any]:
        """Return the entry of a model's version (`vN`, as the steps call it).

        Its ``tags`` are a mapping here, not MLflow's list of pairs.
        """
        number = version.removeprefix("v")
        answer = self.get("api/2.0/mlflow/model-versions/get", name=name, version=number)
        return _with_tags(answer.json()["model_version"])

    def versions(self, name: str) -> list[dict[str, Any]]:
        """Return the entries of all versions of a model, as `version` does."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"filter": f"name='{name}'", "max_results": PAGE, "page_token": token}
            page = self.get("api/2.0/mlflow/model-versions/search", **query).json()
            found += map(_with_tags, page.get("model_versions", []))
            token = page.get("next_page_token", "")
            if not token:
                return found

    def aliases(self, name: str) -> dict[str, str]:
        """Return which version (`vN`) each alias of a model stands for."""
        answer = self.get("api/2.0/mlflow/registered-models/get", name=name).json()
        aliases = answer["registered_model"].get("aliases", [])
        return {one["alias"]: f"v{one['version']}" for one in aliases}

    def has_model(self, name: str) -> bool:
        """Say whether a model of that name has a version."""
        query = {"filter": f"name='{name}'", "max_results": 1}
        found = self.get("api/2.0/mlflow/model-versions/search", **query).json()
        return bool(found.get("model_versions"))


def _with_tags(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"tags": {tag["key"]: tag["value"] for tag in entry.get("tags", [])}}
