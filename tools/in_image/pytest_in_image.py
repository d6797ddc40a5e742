"""Run tests/workload inside the classic-example image: the Python that pods will run."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlctl.base.cache import cached, digest
from mlctl.base.errors import UserError, output, run_main
from mlctl.base.paths import ROOT
from mlctl.base.progress import Phases
from mlctl.builder.build import build_all
from mlctl.builder.network import uv_cache
from tools.in_image.container import Command, open_image

IMAGE = "classic-example"
PYTEST = (
    *("pytest", "iniconfig", "packaging", "pluggy", "pygments"),
    *("pytest-timeout", "pytest-xdist", "execnet"),
    # An S3 server for the tests; what else it needs comes with the image's MLflow.
    *("moto", "boto3", "botocore", "s3transfer", "jmespath"),
    *("py-partiql-parser", "responses", "xmltodict"),
)
"""pytest, its plugins and all that the tests need, by their names in requirements/tools.txt."""

TESTS, PYTEST_PLACE, REPORTS = "/src", "/opt/pytest", "/reports"
JANITOR = "charts/ml-pipelines/files"
SMALL_VOLUMES, SMALL_BYTES = ("/small", "/small-too"), 64 * 1024 * 1024
"""Volumes that tests can fill, one for each file of tests that does."""

WANDB_KEY = "WANDB_API_KEY"
WANDB_VARIABLES = (
    *("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"""What `make test-wandb` hands on besides the key."""


def test_wandb(arguments: list[str]) -> int:
    """Run the test against the W&B service that WANDB_API_KEY is for; return pytest's exit status.

    Raises UserError without a key, or when the image or pytest cannot be had.
    """
    if not os.environ.get(WANDB_KEY, "").strip():
        raise UserError(
            f"{WANDB_KEY} is not set: this test uploads a model to the W&B service. Say "
            f"`read -rs {WANDB_KEY} && export {WANDB_KEY}`, paste the key, then `make test-wandb` "
            "(WANDB_BASE_URL for a server of your own; WANDB_ENTITY and WANDB_PROJECT choose the "
            "place)"
        )
    env = {name: os.environ[name] for name in WANDB_VARIABLES if os.environ.get(name)}
    return run_pytest(
        # Not captured: where the model is, for whoever wants to look at it.
        ["-v", "--tb=short", "--capture=no", *arguments],
        "test_wandb_service.py",
        env,
        secrets=[WANDB_KEY],
        resolves=True,
    )


def test_trainings(arguments: list[str]) -> int:
    """Run the tests that take too long for every day; return pytest's exit status.

    Raises UserError when the image or pytest cannot be had.
    """
    told = ["-v", "--tb=short", "--capture=no", *arguments]
    return run_pytest(told, "test_long.py", {"LONG": "1"})


def run_pytest(
    arguments: Sequence[str],
    file: str = "",
    env: Mapping[str, str] | None = None,
    **more: Any,
) -> int:
    """Run pytest in the image on one file of tests/workload, or on all.

    ``more`` are fields of container.Command. A ``--junitxml=FILE`` is written here, on this
    machine.

    Raises UserError when the image or pytest cannot be had.
    """
    entry = build_all(Phases(), [IMAGE])[IMAGE]
    image = open_image(Path(entry["layout"]))
    with tempfile.TemporaryDirectory(prefix="ml-pipelines-reports-") as place:
        reports = Path(place)
        # The tests run as the image's user, who is nobody here.
        reports.chmod(0o777)
        inside, wanted = redirect_report(arguments)
        # The image's own packages come first: its tests are about them.
        start = (
            f"import sys; sys.path.append({PYTEST_PLACE!r}); "
            "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
        )
        plugins = ["-p", "no:cacheprovider", "-p", "xdist.plugin", "-p", "pytest_timeout"]
        # As in pyproject.toml.
        guard = ["--timeout=900", "--timeout-method=thread", "-o", "timeout_func_only=true"]
        options = [*plugins, *guard, f"--rootdir={TESTS}", "--import-mode=importlib"]
        tests = f"{TESTS}/tests/workload/{file}"
        command = Command(
            entrypoint=["/usr/bin/tini", "--"],
            arguments=["python", "-B", "-c", start, *options, *inside, tests],
            # No plugins of the image's Debian packages: hypothesis' one is there without its rest.
            env={
                "COLUMNS": "100",
                "ML_PIPELINES_IN_IMAGE": IMAGE,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                **(env or {}),
            },
            mounts={
                ROOT / "tests": f"{TESTS}/tests:ro",
                # Runs against the MLflow of this image.
                ROOT / JANITOR: f"{TESTS}/{JANITOR}:ro",
                # Whose commands are run.
                ROOT / "docs": f"{TESTS}/docs:ro",
                install_pytest(): f"{PYTEST_PLACE}:ro",
                reports: REPORTS,
            },
            memory=dict.fromkeys(SMALL_VOLUMES, SMALL_BYTES),
            **more,
        )
        status = subprocess.run(command.line(image), stdin=subprocess.DEVNULL, cwd=ROOT).returncode
        for name, target in wanted.items():
            if (reports / name).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(reports / name, target)
    return status


def redirect_report(arguments: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Return pytest's arguments for inside, and where its report belongs: name -> path here."""
    inside, wanted = [], {}
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option in {"--junitxml", "--junit-xml"} and value:
            wanted[Path(value).name] = Path(value).resolve()
            argument = f"{option}={REPORTS}/{Path(value).name}"
        inside.append(argument)
    return inside, wanted


def pytest_lock(lock: str) -> str:
    """Return the part of a hash lock that is about pytest.

    Raises UserError when a package is missing there.
    """
    entries = re.findall(r"^[\w.-]+==[^\n]*(?:\n[ \t]+--hash=[^\n]*)*", lock, re.MULTILINE)
    by_name = {re.split("==", entry)[0].lower(): entry for entry in entries}
    missing = [name for name in PYTEST if name not in by_name]
    if missing:
        raise UserError(f"requirements/tools.txt has no {', '.join(missing)}")
    return "\n".join(by_name[name] for name in PYTEST) + "\n"


def install_pytest() -> Path:
    """Return a directory with pytest for the image's Python, made from the tools' lock."""
    return install_lock(pytest_lock((ROOT / "requirements" / "tools.txt").read_text()))


def install_lock(lock: str) -> Path:
    """Return a directory with the packages of a lock's text for the image's Python."""

    def install(directory: Path) -> None:
        requirements = directory / "requirements.txt"
        requirements.write_text(lock)
        uv = Path(sys.executable).with_name("uv")
        pip = [str(uv), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        target = ["--python-version", "3.11", "--target", str(directory), "--link-mode", "copy"]
        command = [*pip, *target, "--cache-dir", str(uv_cache()), "-r", str(requirements)]
        output(command, "could not install packages for the image")

    return cached("pytest", digest(lock), install)


if __name__ == "__main__":
    # The first word may be one of these, the others are pytest's.
    first, *rest = [*sys.argv[1:], ""]
    others = {"wandb": test_wandb, "trainings": test_trainings}
    run_main(lambda: others[first](rest[:-1]) if first in others else run_pytest(sys.argv[1:]))
