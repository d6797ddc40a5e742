"""Which version of the model inference loads, by a person's word."""

import getpass
from typing import Any

from mlctl.base.errors import UserError
from mlctl.base.names import APPROVAL, TRAINING
from mlctl.clients.task_pod import run_in_task_pod
from mlctl.commands.telling import say
from mlctl.stack import Stack


def promote(stack: Stack, version: str, reason: str) -> int:
    """Let inference load a version of the model, whatever its gate has said."""
    model = _model(stack)
    version = f"v{version}" if version.isdecimal() else version
    return _move(stack, reason, "promote", f"{model['name']}:{version}")


def rollback(stack: Stack, reason: str) -> int:
    """Let inference load the version again that the champion was promoted over."""
    return _move(stack, reason, "rollback", _model(stack)["name"])


def approve(stack: Stack, run: str | None) -> int:
    """Approve the version of a run that waits for it (pipelines.model.approval)."""
    with stack.airflow() as airflow:
        newest = airflow.newest_run(TRAINING)
        run = run or (newest["dag_run_id"] if newest else "")
        tasks = {task.task_id: task for task in airflow.tasks(TRAINING, run)} if run else {}
        task = tasks.get(APPROVAL)
        if task is None or not task.waits_for_a_person:
            raise UserError(
                f"the run {run or 'of ' + TRAINING} does not wait for an approval: {APPROVAL} is "
                f"{(task and task.state) or 'none of its tasks'}"
            )
        airflow.approve(TRAINING, run, APPROVAL)
    say(f"{run} goes on: its model will be the {stack.settings['model']['alias']}")
    return 0


def _model(stack: Stack) -> dict[str, Any]:
    model = stack.settings["model"]
    if model["alias"] == "latest":
        raise UserError(
            "pipelines.model.alias is latest: inference loads whatever was registered last. With "
            "champion in its place it loads what was promoted"
        )
    return model


def _move(stack: Stack, reason: str, command: str, reference: str) -> int:
    options = ["--alias", _model(stack)["alias"], "--by", _who(stack), "--reason", reason]
    moved = run_in_task_pod(stack.kube, stack.settings, "registry", [command, reference, *options])
    before = f", in place of {moved['before']}" if moved["before"] else ""
    if moved["before"] == moved["version"]:
        before = " already"
    say(f"{moved['name']} {moved['version']} is the {moved['alias']}{before}")
    return 0


def _who(stack: Stack) -> str:
    """Return who is here, and as whom the cluster knows them."""
    template = "jsonpath={.status.userInfo.username}"
    known = stack.kube.run("auth", "whoami", "--output", template, check=False).stdout.strip()
    return f"{getpass.getuser()} as {known}" if known else getpass.getuser()
