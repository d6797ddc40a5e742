"""The one command line: ``python -m mlctl COMMAND``. Every target of the Makefile is a line of it.

An option is an environment variable by another name (``--cluster`` is CLUSTER): what stands on the
command line goes over what the environment says. Two variables have no option, because they are
read before there is a command line: ML_PIPELINES_CACHE and ML_PIPELINES_STATE.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from mlctl.base import prune
from mlctl.base.errors import UserError, run_main
from mlctl.base.names import INFERENCE, RELEASE, TRAINING
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phases, console
from mlctl.builder.build import build_all, built, report, save
from mlctl.builder.catalog import recipes
from mlctl.cluster.provider import breakable, provider
from mlctl.commands import bring_up, look, runs
from mlctl.release import release
from mlctl.release.chart import dependency
from mlctl.stack import Stack
from mlctl.trials import bench, soak
from mlctl.trials.drill import drill


def variable(name: str, text: str, **more: Any) -> click.Option:
    """Return an option that sets an environment variable, for all that reads it below."""

    def remember(_context: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is not None:
            os.environ[name] = value

    option = f"--{name.lower().replace('_', '-')}"
    return click.Option(
        [option], help=text, envvar=name, expose_value=False, hidden=True, callback=remember, **more
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
    variable("ENV", "values/ENV.yaml: local, staging, production; default: local"),
    variable("VALUES", "a values file of your own, on top of that"),
    variable("HELM", "another helm than the pinned one"),
    variable("CHART_REPOSITORY", "where the official chart is: package, upstream or a URL"),
    variable("YES", "1: install and delete without asking", is_flag=True, flag_value="1"),
]


class Command(click.Command):
    """A command that takes every variable as an option."""

    def __init__(self, *words: Any, **settings: Any) -> None:
        super().__init__(*words, **settings, epilog="`mlctl --help` lists the options of all.")
        self.params += VARIABLES


class Group(click.Group):
    """Commands, and the options that all of them take."""

    command_class = Command
    group_class = type

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options of all commands."""
        with formatter.section("Options of every command, and the variables that say the same"):
            formatter.write_dl(
                [(f"{one.opts[0]} {one.envvar}", one.help or "") for one in VARIABLES]
            )


def count(default: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option N, the number of runs."""
    number = click.IntRange(1, 100)
    return click.option("--n", envvar="N", type=number, default=default, help="Runs at once (N).")


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def app() -> None:
    """Airflow on Kubernetes, and machine-learning pipelines on it."""


# Everything, and what runs on it


@app.command()
def run() -> int:
    """Cluster, images, chart, then training_dag and inference_dag, and what came out."""
    return bring_up.run(Stack())


@app.command()
def up() -> None:
    """The same as run, without the two DAG runs."""
    bring_up.up(Stack())


@app.command()
@count(1)
def train(n: int) -> int:
    """Trigger training_dag and wait."""
    return runs.trigger(Stack(), TRAINING, n)


@app.command()
@count(1)
def infer(n: int) -> int:
    """Trigger inference_dag and wait."""
    return runs.trigger(Stack(), INFERENCE, n)


@app.command()
def sync() -> None:
    """Publish uncommitted work under dags/, without touching branch or index."""
    bring_up.sync(Stack())


@app.command()
def status() -> int:
    """The cluster, the release, its pods and the newest DAG runs."""
    return look.status(Stack())


@app.command()
@click.option("--c", envvar="C", help="A part of the cluster, such as kubelet (C).")
def logs(c: str | None) -> int:
    """Task states and last log lines of the newest runs, or the log of a part of the cluster."""
    return look.part_log(provider(), c) if c else look.logs(Stack())


@app.command()
def password() -> None:
    """Print the password of the Airflow pages."""
    look.password(Stack())


@app.command()
def ui() -> None:
    """Forward the Airflow and MLflow pages until Ctrl-C."""
    look.ui(Stack())


# The cluster alone


@app.command()
def doctor() -> None:
    """Say whether this machine can run the cluster, and what to do if not."""
    cluster = provider()
    cluster.doctor()
    print(f"nothing is in the way of CLUSTER={cluster.kind}")


@app.command()
def kubeconfig() -> None:
    """Print the path of the kubeconfig."""
    print(provider().kubeconfig)


@app.command()
def down() -> None:
    """Stop the cluster; its data stays."""
    provider().down(Phases())


@app.command()
def clean() -> None:
    """Delete the cluster and its data."""
    provider().clean(Phases())


@app.group()
def cluster() -> None:
    """The cluster alone, without a release on it."""


@cluster.command("up")
def cluster_up() -> None:
    """Start the cluster."""
    found = provider()
    found.up(Phases())
    console.print(f"ready: export KUBECONFIG={found.kubeconfig}")


@cluster.command("status")
def cluster_status() -> int:
    """The parts of the cluster; status 1 unless all of them run."""
    return look.cluster_status(provider())


def _operation(name: str) -> None:
    @cluster.command(name, help=f"{name.capitalize()} one part of the embedded cluster.")
    @click.argument("component")
    def operate(component: str) -> None:
        breakable(provider()).component(name, component)


for _name in ("stop", "start", "restart"):
    _operation(_name)


# Chart, release and images


@app.command()
def chart() -> None:
    """Fetch the locked dependency of the chart."""
    print(dependency())


@app.command()
def package() -> None:
    """Package the chart into build/."""
    print(release.package())


@app.command()
def uninstall() -> None:
    """Remove the release; claims with data stay."""
    Stack().release().uninstall()
    console.print(f"the release {RELEASE} is gone; its claims and their data stay")


@app.group()
def images() -> None:
    """The container images, built without a registry or an engine."""


@images.command()
@click.argument("names", nargs=-1)
def build(names: tuple[str, ...]) -> None:
    """Build the named images, all if none is named (cached by content)."""
    report(build_all(Phases(), names or None))


@images.command("list")
def list_() -> None:
    """The images that there are."""
    print("\n".join(recipes()))


@images.command()
def show() -> None:
    """Print build/images.json."""
    print(json.dumps(built(), indent=2))


@images.command("save")
@click.argument("name")
@click.argument("file", type=Path)
def save_command(name: str, file: Path) -> None:
    """Write a built image as a tar for `docker load` or `ctr images import`."""
    save(name, file)


@app.command("prune")
def prune_command() -> None:
    """Delete what is outdated in the cache, as each build does."""
    prune.prune()


@app.command()
def clean_cache() -> None:
    """Delete what builds have left in the cache, after saying how much it is."""
    prune.clean()


# Trials


@app.command("bench")
def bench_command() -> None:
    """What a task costs, and when a commit shows in Airflow."""
    bench.main(Stack())


@app.command("soak")
@count(soak.RUNS)
def soak_command(n: int) -> int:
    """Many runs of both DAGs at once, each checked by what it left."""
    return soak.main(Stack(), n)


@app.command("drill")
@click.option("--fault", envvar="FAULT", default="", help="Some faults, with commas (FAULT).")
def drill_command(fault: str) -> int:
    """Break one part after the other in the middle of training runs."""
    return drill.main(Stack(), fault)


# What only a developer of this project runs: it lives in tools/, above this package


def _tool(name: str, *words: str) -> NoReturn:
    command = [sys.executable, "-m", f"tools.{name}", *words]
    # Not a child: signals and the terminal are the tool's own.
    os.chdir(ROOT)
    os.execv(command[0], command)


@app.command()
@click.argument("suites", nargs=-1)
@click.option("--k", envvar="K", default="", help="What pytest's -k takes (K).")
def test(suites: tuple[str, ...], k: str) -> None:
    """Run the tests, or the named suites of them."""
    os.environ["K"] = k
    _tool("test", *suites)


@app.command()
def test_wandb() -> None:
    """Upload and load a small model at the real W&B service (needs WANDB_API_KEY)."""
    _tool("in_image.pytest_in_image", "wandb")


@app.command()
def lock() -> None:
    """Resolve requirements/*.in anew."""
    _tool("lock")


@app.command()
def readme() -> None:
    """Write the table of values into the chart's README."""
    _tool("values_table")


def main() -> int | None:
    """Run the command that the words name; its result is the exit status."""
    try:
        with app.make_context("mlctl", sys.argv[1:] or ["--help"]) as context:
            return app.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        raise UserError(error.format_message()) from None


if __name__ == "__main__":
    run_main(main)
