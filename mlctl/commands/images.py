"""Command line of the image builder: ``python -m images COMMAND ...``, see ``--help``."""

import argparse
import json
from pathlib import Path

from mlctl.base.errors import UserError, run_main
from mlctl.base.paths import IMAGES_LOCK
from mlctl.base.progress import Phases
from mlctl.builder.build import build_all, report, save
from mlctl.builder.catalog import names


def main() -> int:
    """Run one command; ``build`` is the default."""
    parser = argparse.ArgumentParser(prog="python -m images", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    build = commands.add_parser("build", help="build the named images (default: all)")
    build.add_argument("names", nargs="*", metavar="NAME")
    commands.add_parser("list", help="the images that there are")
    commands.add_parser("lock", help="print build/images.json")
    tar = commands.add_parser("save", help="write a built image as a tar")
    tar.add_argument("name", metavar="NAME")
    tar.add_argument("file", metavar="FILE", type=Path)
    tests = {
        "test": "run tests/workload inside the classic-example image",
        "test-workload": "the same",
        "test-wandb": "run its test against the real W&B service (needs WANDB_API_KEY)",
    }
    for name, text in tests.items():
        test = commands.add_parser(name, help=text, add_help=False)
        test.add_argument("pytest", nargs=argparse.REMAINDER, metavar="PYTEST_ARGUMENT")
    arguments, rest = parser.parse_known_args()
    match arguments.command:
        case "list":
            print("\n".join(names()))
        case "lock":
            if not IMAGES_LOCK.exists():
                raise UserError(f"{IMAGES_LOCK} is not there yet: python -m images build")
            print(json.dumps(json.loads(IMAGES_LOCK.read_text()), indent=2))
        case "save":
            save(arguments.name, arguments.file)
        case "test" | "test-workload":
            from tools.in_image.pytest_in_image import test_workload

            return test_workload([*rest, *arguments.pytest])
        case "test-wandb":
            from tools.in_image.pytest_in_image import test_wandb

            return test_wandb([*rest, *arguments.pytest])
        case _:
            report(build_all(Phases(), getattr(arguments, "names", None) or None))
    return 0


if __name__ == "__main__":
    run_main(main)
