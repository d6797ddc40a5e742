"""Run Python in the environment of some lock files of requirements/, which is made if needed.

python -m tools.with_locks airflow,dag-tests -m pytest tests/dags
"""

import os
import sys

from mlctl.base.errors import run_main
from tools.bootstrap import environment


def main() -> None:
    """Become that Python, with the words that follow."""
    locks, *words = sys.argv[1:]
    python = str(environment(locks.split(",")))
    os.execv(python, [python, *words])


if __name__ == "__main__":
    run_main(main)
