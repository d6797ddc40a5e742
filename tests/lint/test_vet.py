"""go vet over the node's own package, and not over the packages that it imports.

`go vet` looks through all of Kubernetes first, for functions that take a format string: 9 minutes
on an empty cache. Vet can do without. It is given what go would give it, from the cache that the
node's build has filled, but for that; so a call of a function of Kubernetes is checked by its
types, and not by its format string.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlctl.cluster.embedded.binary import SOURCE, build_environment, find_go

GO, VERSION = find_go()
FIELDS = "ImportPath,Dir,GoFiles,Export,Standard,DepOnly"


def go(*words: str, directory: Path) -> str:
    environment = build_environment(GO)
    command = [GO, *words]
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def packages(directory: Path) -> Iterator[dict[str, Any]]:
    """The packages of a module and all below them, with the compiler's export data of each."""
    words = ["list", "-export", "-deps", f"-json={FIELDS}", "./..."]
    rest = go(*words, directory=directory).lstrip()
    while rest:
        found, end = json.JSONDecoder().raw_decode(rest)
        yield found
        rest = rest[end:].lstrip()


def vet(directory: Path, place: Path) -> str:
    """What vet has to say about the packages of a module; `place` is for files."""
    found = list(packages(directory))
    exports = {one["ImportPath"]: one["Export"] for one in found if one.get("Export")}
    program = go("tool", "-n", "vet", directory=directory).strip()
    complaints = []
    for own in [one for one in found if not one.get("DepOnly")]:
        # The file that `go vet` writes for vet; its fields are those of unitchecker.Config.
        configuration = {
            "ID": own["ImportPath"],
            "Compiler": "gc",
            "Dir": own["Dir"],
            "ImportPath": own["ImportPath"],
            "GoVersion": "go" + ".".join(VERSION.split(".")[:2]),
            "GoFiles": [str(Path(own["Dir"]) / name) for name in own["GoFiles"]],
            "ImportMap": {name: name for name in [*exports, "unsafe"]},
            "PackageFile": exports,
            "Standard": {one["ImportPath"]: True for one in found if one.get("Standard")},
            "VetxOutput": str(place / "facts"),
        }
        file = place / "vet.cfg"
        file.write_text(json.dumps(configuration))
        result = subprocess.run([program, file], cwd=directory, capture_output=True, text=True)
        if result.returncode != 0:
            complaints.append(result.stderr or f"vet ended with status {result.returncode}")
    return "\n".join(complaints)


def test_go_is_vetted(tmp_path: Path) -> None:
    assert vet(SOURCE, tmp_path) == ""


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('fmt.Printf("%d\\n", "text")', 'has arg "text" of wrong type string'),
        ("value = value", "self-assignment"),
    ],
)
def test_a_fault_would_be_noticed(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "go.mod").write_text("module example\n\ngo 1.24\n")
    source = f'package main\n\nimport "fmt"\n\nfunc main() {{\n\tvalue := 1\n\t{line}\n'
    (tmp_path / "main.go").write_text(f"{source}\tfmt.Println(value)\n}}\n")
    assert complaint in vet(tmp_path, tmp_path)
