"""Commands for the cluster alone: python -m cluster COMMAND (see `make help`)."""

import argparse
import subprocess
import sys

from rich.table import Table

from mlctl.base.errors import UserError, run_main
from mlctl.base.progress import Phases, console
from mlctl.cluster.provider import Provider, provider


def main() -> int:
    """Carry out one command."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument(
        "command",
        choices=[
            "up",
            "down",
            "clean",
            "status",
            "logs",
            "doctor",
            "kubeconfig",
            "stop",
            "start",
            "restart",
        ],
    )
    parser.add_argument("component", nargs="?", default="", help="for logs, stop, start, restart")
    arguments = parser.parse_args()
    cluster = provider()
    phases = Phases()
    match arguments.command:
        case "up":
            cluster.up(phases)
            console.print(f"ready: export KUBECONFIG={cluster.kubeconfig}")
        case "down":
            cluster.down(phases)
        case "clean":
            cluster.clean(phases)
        case "status":
            return show_status(cluster)
        case "logs":
            return show_logs(cluster, arguments.component)
        case "doctor":
            cluster.doctor()
            print(f"nothing is in the way of CLUSTER={cluster.kind}")
        case "kubeconfig":
            print(cluster.kubeconfig)
        case operation:
            if not hasattr(cluster, "component"):
                raise UserError(f"{operation} is for CLUSTER=embedded")
            cluster.component(operation, arguments.component)
    return 0


def show_status(cluster: Provider) -> int:
    """Print a table of the cluster's parts; status 1 when it is down."""
    rows = cluster.status()
    if not rows:
        print(f"cluster {cluster.name} ({cluster.kind}) is down: `make up`")
        return 1
    table = Table(title=f"cluster {cluster.name} ({cluster.kind})")
    columns = [key for key in rows[0] if key != "exit_codes"]
    for key in columns:
        table.add_column(key)
    for row in rows:
        table.add_row(*("" if row[key] is None else str(row[key]) for key in columns))
    console.print(table)
    for line in cluster.remarks():
        console.print(line, markup=False)
    return 0 if all(row["state"] == "running" for row in rows) else 1


def show_logs(cluster: Provider, component: str) -> int:
    """Show one log with the user's pager, or say which there are."""
    logs = cluster.log_files()
    if component not in logs:
        print(f"name one of: {' '.join(logs) or '(none yet)'}   (C=NAME make logs)")
        return 1
    viewer = ["less", "+G"] if sys.stdout.isatty() else ["tail", "-n", "200"]
    return subprocess.run([*viewer, str(logs[component])]).returncode


if __name__ == "__main__":
    run_main(main)
