"""A small model at the W&B service that WANDB_API_KEY is for: `make test-wandb`.

It makes one model with two versions, named after the moment, in the project ml-pipelines-test
(WANDB_PROJECT, WANDB_ENTITY and WANDB_BASE_URL choose another place), and leaves them there to be
looked at.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from workload_helpers import Cli, Ended, everything_below

PLACE = {
    "WANDB_PROJECT": "ml-pipelines-test",
    **{
        name: os.environ[name]
        for name in ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT")
        if os.environ.get(name)
    },
}
PROXIES = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
KEY = os.environ["WANDB_API_KEY"].strip()
MODEL = f"ml-pipelines-test-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
# A service at the other end of the world, and a queue there.
SECONDS = 600

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def run(cli: Cli) -> Command:
    """Run a command against the service; the key is in no output."""

    def run(*arguments: object, key: str = KEY) -> Ended:
        env = {"REGISTRY": "wandb", "WANDB_API_KEY": key, **PLACE, **PROXIES}
        ended = cli(*arguments, env=env, timeout=SECONDS)
        assert key not in ended.output, "the key is in the output"
        return ended

    return run


@pytest.fixture(scope="module")
def uploaded(
    run: Command, trained: tuple[Ended, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Upload a model, the same again, and another one: version -> what was uploaded."""
    first = trained[1]
    second = shutil.copytree(first, tmp_path_factory.mktemp("second") / "results")
    (second / "README.md").write_text("# another card\n")
    versions = []
    for directory in (first, first, second):
        ended = run("upload-to-registry", MODEL, directory)
        versions.append(ended.result["version"])
    assert versions == ["v0", "v0", "v1"]
    print(f"W&B has {ended.result['uri']}, made by {ended.result['run_url']}")
    return {"v0": first, "v1": second}


@pytest.mark.parametrize(("alias", "version"), [("latest", "v1"), ("v0", "v0")])
def test_the_model_comes_back_as_it_was(
    run: Command, uploaded: dict[str, Path], tmp_path: Path, alias: str, version: str
):
    target = tmp_path / "results"
    ended = run("load-from-registry", f"{MODEL}:{alias}", target)
    assert ended.result["version"] == version
    source = uploaded[version]
    assert everything_below(target) == everything_below(source) | {"registry.json"}
    for name in everything_below(source):
        assert (target / name).read_bytes() == (source / name).read_bytes(), name
    known = json.loads((target / "registry.json").read_text())
    assert known["tags"]["dag_id"] == "training_dag"
    assert known["run_url"].startswith("http")


def test_unknown_version_lists_those_that_there_are(
    run: Command, uploaded: dict[str, Path], tmp_path: Path
):
    error = run("load-from-registry", f"{MODEL}:v7", tmp_path / "results").error
    assert f"model {MODEL!r} in W&B has no version or alias 'v7'" in error
    assert "there are: latest, v1, v0" in error


def test_a_wrong_key_is_refused_in_plain_words(run: Command, tmp_path: Path):
    error = run("load-from-registry", MODEL, tmp_path / "results", key="0" * 40).error
    assert "the API key" in error
