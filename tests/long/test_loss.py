"""A cluster is lost, and comes back from a backup.

`make test-long` runs it, on a cluster of its own that it deletes at the end.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from mlctl.base.errors import UserError
from mlctl.base.names import INFERENCE, MLFLOW_PORT, MLFLOW_SERVICE, TRAINING
from mlctl.base.progress import Phases
from mlctl.clients.forward import Forward
from mlctl.clients.mlflow import Mlflow
from mlctl.commands.backup import backup, restore
from mlctl.commands.bring_up import bring_up
from mlctl.commands.models import promote
from mlctl.commands.runs import infer, train
from mlctl.stack import Stack

STEPS = 20
CONNECTION = "postgresql://somebody:s3cret@store.example:5432/sales"
SECONDS = 120


def airflow(stack: Stack, *words: str) -> str:
    return stack.in_scheduler("airflow", *words, timeout=SECONDS)


def facts(stack: Stack) -> dict[str, Any]:
    """What people would miss: by the login, the pages and the models' files."""
    model = stack.settings["model"]
    with stack.airflow() as client:
        runs = [client.newest_run(dag_id) for dag_id in (TRAINING, INFERENCE)]
    with Forward(stack.kube, MLFLOW_SERVICE, MLFLOW_PORT) as forward:
        mlflow = Mlflow(forward)
        versions, aliases = mlflow.versions(model["name"]), mlflow.aliases(model["name"])
    connection = json.loads(airflow(stack, "connections", "get", "store", "--output", "json"))[0]
    return {
        "runs": [(one or {}).get("dag_run_id") for one in runs],
        "versions": [(one["version"], one["tags"]) for one in versions],
        "aliases": aliases,
        "variable": airflow(stack, "variables", "get", "answer").strip(),
        "password": connection["password"],
        "login": stack.credentials(),
    }


# Two clusters are made, one after the other.
@pytest.mark.timeout(5400)
def test_runs_secrets_and_models_come_back(stack: Stack, tmp_path: Path) -> None:
    bring_up(stack, Phases())
    assert train(stack, 1, {"max_steps": STEPS}) == 0
    promote(stack, "1", "whatever its gate says")
    airflow(stack, "variables", "set", "answer", "forty-two")
    airflow(stack, "connections", "add", "store", "--conn-uri", CONNECTION)
    before = facts(stack)
    assert (before["variable"], before["password"]) == ("forty-two", "s3cret")
    assert before["aliases"] == {stack.settings["model"]["alias"]: "v1"}
    backup(stack, tmp_path / "kept")

    stack.cluster.clean(Phases())
    again = Stack()
    bring_up(again, Phases())
    assert again.credentials() != before["login"]
    restore(again, tmp_path / "kept", replace=False)
    assert facts(again) == before

    # The model is whole, and the next runs go on behind those of before.
    assert infer(again, 1, {}) == 0
    with pytest.raises(UserError, match="which would be lost"):
        restore(again, tmp_path / "kept", replace=False)
