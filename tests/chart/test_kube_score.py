"""kube-score finds nothing but what kube-score.toml explains."""

import json
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from mlctl.base.progress import Phase
from mlctl.builder import go
from tests.helpers.helm import OPTIONAL_PARTS
from tests.helpers.metrics import metered

EXCEPTIONS = tomllib.loads(Path(__file__).with_name("kube-score.toml").read_text())["exception"]
GOOD = 10
EVERYTHING = {
    "airflow": OPTIONAL_PARTS,
    "janitor": {"database": {"keepDays": 30}},
    "networkPolicies": {"scrapers": [{"namespaceSelector": {}}]},
    "setup": {"dump": {"claimName": "dumps"}},
}


def findings(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield check, words and object of each finding in a render."""
    program = go.program("kube-score", Phase("kube-score"))
    command = [program, "score", "--output-format", "json", "-"]
    # Its status says that there are findings.
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    scored = json.loads(done.stdout)
    assert len(scored) > 10
    for found in scored:
        where = f"{found['type_meta']['kind']}/{found['object_meta']['name']}"
        for check in found["checks"]:
            if not check["skipped"] and check["grade"] < GOOD:
                assert check["comments"], check
                for comment in check["comments"]:
                    path = comment["path"] or ""
                    yield check["check"]["id"], comment["summary"], f"{where}/{path}"


@pytest.fixture(scope="module")
def found() -> set[tuple[str, str, str]]:
    renders = (metered(environment="local"), metered(EVERYTHING, environment="production"))
    return {one for manifests in renders for one in findings(manifests.text)}


def explained(exception: dict, found: tuple[str, str, str]) -> bool:
    check, says, where = found
    return (
        check == exception["check"]
        and fnmatchcase(says, exception["says"])
        and any(fnmatchcase(where, pattern) for pattern in exception["of"])
    )


def test_every_finding_is_explained(found):
    assert {one for one in found if not any(explained(e, one) for e in EXCEPTIONS)} == set()


def test_every_exception_is_needed(found):
    unused = [
        (exception["check"], pattern)
        for exception in EXCEPTIONS
        for pattern in exception["of"]
        if not any(explained(exception | {"of": [pattern]}, one) for one in found)
    ]
    assert unused == []
    assert all(exception["why"] for exception in EXCEPTIONS)
