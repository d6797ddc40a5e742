"""The one command line: ``python -m mlctl COMMAND``. Every target of the Makefile is a line of it.

A command is a function of another module: its name, its docstring. An option is an environment
variable by another name (``--cluster`` is CLUSTER), and what stands on the command line goes over
what the environment says. Two variables have no option, because they are read before there is a
command line: ML_PIPELINES_CACHE and ML_PIPELINES_STATE.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import ROOT
from mlctl.cluster.provider import provider
from mlctl.commands import (
    backup,
    bring_up,
    building,
    cluster,
    look,
    models,
    new_dag,
    runs,
    upgrading,
)
from mlctl.stack import Stack
from mlctl.trials import bench, growth, soak
from mlctl.trials.drill import drill


def variable(name: str, text: str, **more: Any) -> click.Option:
    """Return an option that sets an environment variable, for all that reads it below."""

    def remember(_context: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is not None:
            os.environ[name] = value

    return click.Option(
        [f"--{name.lower().replace('_', '-')}"],
        **{"help": text, "envvar": name, "callback": remember, "hidden": True, **more},
        expose_value=False,
    )


VARIABLES = [
    variable("CLUSTER", "embedded, kind or existing; default: what fits this machine"),
    variable("CLUSTER_NAME", "several clusters beside each other; default: ml-pipelines"),
    variable("OUTBOUND", "embedded: 1 lets pods reach the network, 0 no more; kept until changed"),
    variable("API_PORT", "embedded: the API server's port on the loopback"),
    variable("POD_CIDR", "embedded: the pods' network inside the node"),
    variable("SERVICE_CIDR", "embedded: the Services' network inside the node"),
    variable("DAGS_REPO", "kind, existing: the git address that pods clone the DAGs from"),
    variable("DAGS_REF", "kind, existing: the branch there; default: main"),
    variable("AIRFLOW", "2 (2.9.3) or 3 (3.3.2); default: 2"),
    variable("ENV", "values/ENV.yaml: local, staging, production; default: local"),
    variable("VALUES", "a values file of your own, on top of that"),
    variable("HELM", "another helm than the pinned one"),
    variable("CHART_REPOSITORY", "where the official chart is: package, upstream or a URL"),
    variable("YES", "1: install and delete without asking", is_flag=True, flag_value="1"),
    variable("QUIET", "1: results and errors, no progress", is_flag=True, flag_value="1"),
]


class Group(click.Group):
    """Commands, and the options that all of them take."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options of all commands."""
        with formatter.section("Options of every command, and the variables that say the same"):
            formatter.write_dl(
                [(f"{one.opts[0]} {one.envvar}", one.help or "") for one in VARIABLES]
            )


PARAMS_EXAMPLE = """As an example: PARAMS='{"max_steps": 50}'"""
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
app = Group("mlctl", help="Airflow on Kubernetes, with pipelines on it.", context_settings=HELP)


def add(
    function: Callable[..., Any],
    given: Callable[[], Any] | None = None,
    *parameters: click.Parameter,
    to: click.Group = app,
    name: str = "",
) -> None:
    """Make a function a command of a group; its first argument is what ``given`` returns."""

    def call(**arguments: Any) -> Any:
        return function(given(), **arguments) if given else function(**arguments)

    name = name or function.__name__.replace("_", "-")
    epilog = "`mlctl --help` lists the options of all commands."
    text = inspect.getdoc(function)
    to.add_command(
        click.Command(
            name, callback=call, params=[*parameters, *VARIABLES], help=text, epilog=epilog
        )
    )


def count(default: int) -> click.Option:
    """Return the option N, how many runs go on at once."""
    number = click.IntRange(1, 100)
    return click.Option(
        ["--n", "count"], envvar="N", type=number, default=default, help="Runs at once (N)."
    )


def json_object(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> dict[str, Any]:
    """Return what the option PARAMS says. Raises BadParameter when it is no JSON object."""
    try:
        value = json.loads(text or "{}")
        json.dumps(value, allow_nan=False)  # NaN is no JSON, though Python reads it.
    except ValueError as error:
        raise click.BadParameter(f"{text}: no JSON ({error}). {PARAMS_EXAMPLE}") from None
    if not isinstance(value, dict):
        raise click.BadParameter(f"{text}: no JSON object. {PARAMS_EXAMPLE}")
    return value


def params() -> click.Option:
    """Return the option PARAMS, the parameters of a run."""
    text = "Parameters of the run, a JSON object (PARAMS)."
    return click.Option(["--params"], envvar="PARAMS", callback=json_object, help=text)


def dag(name: str, **more: Any) -> click.Option:
    """Return the option DAG, the id of one, as an argument of this name."""
    return click.Option(["--dag", name], envvar="DAG", help="Its id.", show_envvar=True, **more)


PICTURED = ("browser", "failures", "browser_later", "browser_form")
"""The end-to-end tests that take pictures, and the one that makes what they show."""


def tool(name: str, module: str, text: str, *parameters: click.Parameter) -> None:
    """Add a command that only a developer of this project runs: a module above this package."""

    def run(words: tuple[str, ...] = ()) -> None:
        os.chdir(ROOT)
        command = [sys.executable, "-m", *module.split(), *words]
        # Not a child: signals and the terminal are the tool's own.
        os.execv(command[0], command)

    run.__doc__ = text
    add(run, None, *parameters, name=name)


for function in (bring_up.run, bring_up.up, bring_up.sync, look.password, look.ui):
    add(function, Stack)
as_json = click.Option(
    ["--json", "as_json"], envvar="JSON", is_flag=True, help="One object (JSON)."
)
add(look.status, Stack, as_json)
add(runs.train, Stack, count(1), params())
add(runs.infer, Stack, count(1), params())
add(runs.trigger, Stack, dag("dag_id", required=True), count(1), params())
version = click.Option(["--v", "version"], envvar="V", required=True, help="Of the model (V).")
reason = click.Option(["--reason"], envvar="REASON", default="", help="Why (REASON).")
add(models.promote, Stack, version, reason)
add(models.rollback, Stack, reason)
run_id = click.Option(["--run"], envvar="RUN", help="Of training_dag; default: the newest (RUN).")
add(models.approve, Stack, run_id)
part = click.Option(["--c", "part"], envvar="C", help="A part of the cluster (C).")
add(look.logs, Stack, part, dag("wanted"))
new = click.Option(["--name"], envvar="NAME", required=True, help="Its id.", show_envvar=True)
add(new_dag.new_dag, None, new)
add(upgrading.upgrade_airflow, Stack)
add(building.uninstall, Stack)
directory = {"type": click.Path(path_type=Path, file_okay=False), "envvar": "DIR"}
where = "A new one (DIR); default: build/backups/TIME."
add(backup.backup, Stack, click.Option(["--dir", "directory"], **directory, help=where))
where = click.Option(["--dir", "directory"], **directory, required=True, help="The backup (DIR).")
replace = click.Option(["--replace"], envvar="YES", is_flag=True, help="Runs may be lost (YES).")
add(backup.restore, Stack, where, replace)

for function in (cluster.doctor, cluster.kubeconfig, cluster.down, cluster.clean):
    add(function, provider)
parts = Group("cluster", help="The cluster alone, without a release on it.")
app.add_command(parts)
add(cluster.up, provider, to=parts)
add(look.cluster_status, provider, to=parts, name="status")
for function in (cluster.stop, cluster.start, cluster.restart):
    add(function, provider, click.Argument(["part"]), to=parts)

for function in (building.chart, building.clean_cache):
    add(function)
path = click.Path(path_type=Path, exists=True, dir_okay=False)
signing = [
    click.Option(["--key"], envvar="KEY", help="Name of the key that signs it (KEY)."),
    click.Option(["--keyring"], envvar="KEYRING", type=path, help="The file with it (KEYRING)."),
    click.Option(
        ["--passphrase-file", "passphrase"], envvar="PASSPHRASE_FILE", type=path, help="Of the key."
    ),
]
add(building.package, None, *signing)
images = Group("images", help="The container images, built without a registry or an engine.")
app.add_command(images)
add(building.images, None, click.Argument(["names"], nargs=-1), to=images, name="build")
add(building.list_images, to=images, name="list")
add(building.show_images, to=images, name="show")
file = click.Argument(["file"], type=click.Path(path_type=Path))
add(building.save_image, None, click.Argument(["name"]), file, to=images, name="save")
archive = click.Option(
    ["--file"],
    type=click.Path(path_type=Path),
    envvar="FILE",
    required=True,
    help="The tar (FILE).",
)
where = "A registry, with a path or without (REGISTRY)."
registry = click.Option(["--registry"], envvar="REGISTRY", required=True, help=where)
add(building.save_all_images, None, archive, to=images, name="save-all")
add(building.load_images, None, archive, registry, to=images, name="load")

add(bench.main, Stack, name="bench")
add(growth.main, Stack, name="growth")
mapped = click.Option(
    ["--mapped"],
    type=click.IntRange(0, 100),
    default=soak.RUNS,
    help="Runs of the mapped DAG (MAPPED).",
    envvar="MAPPED",
)
add(soak.main, Stack, count(soak.RUNS), mapped, name="soak")
fault = click.Option(["--fault", "names"], envvar="FAULT", default="", help="Some of them (FAULT).")
add(drill.main, Stack, fault, name="drill")

suites = click.Argument(["words"], metavar="[SUITE]...", nargs=-1)
chosen = variable("K", "What pytest's -k takes (K).", hidden=False)
tool("test", "tools.test", "Run the tests, or the named suites of them.", suites, chosen)
tool("test-wandb", "tools.in_image.pytest_in_image wandb", "Try the W&B service (WANDB_API_KEY).")
text = "Kill 30 trainings at any moment, to the same model; predict ten million rows."
tool("test-trainings", "tools.in_image.pytest_in_image trainings", text)
text = "Lose a cluster and bring it back; go from Airflow 2 to 3; install in every way."
tool("test-loss", "pytest -v tests/long", text)
text = "Install values/production.yaml as its page fills it, on a cluster of its own."
words = "-m pytest tests/production --verbose --capture=no"
tool("test-production", f"tools.with_locks tools,browser {words}", text)
text = "Take the pictures of docs/pictures anew, on a cluster of its own."
files = " ".join(f"tests/e2e/test_{name}.py" for name in PICTURED)
options = "--pictures --verbose --capture=no"
tool("screenshots", f"tools.with_locks tools,browser -m pytest {files} {options}", text)
modules = click.Argument(["words"], metavar="[survivors] [MODULE]...", nargs=-1)
text = "Change dags/ml_pipelines in every small way, and see whether the DAG tests find it."
tool("mutation", "tools.mutation", text, modules)
tool("lock", "tools.lock", "Resolve requirements/*.in anew.")
tool("readme", "tools.values_table", "Write the table of values into the chart's README.")
words = "tools.with_locks airflow,dag-tests -m tools.dags_page"
tool("dags-page", words, "Write docs/dags.md of what the DAGs say of themselves.")


def main() -> int | None:
    """Run the command that the words name; a number that it returns is the exit status."""
    try:
        with app.make_context("mlctl", sys.argv[1:] or ["--help"]) as context:
            return app.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        raise UserError(error.format_message()) from None


if __name__ == "__main__":
    run_main(main)
