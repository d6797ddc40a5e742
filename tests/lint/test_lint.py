"""Form of the sources. Every check only reads; `ruff format` and `gofmt -w` mend what they find."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlctl.base.paths import CHART, ROOT
from mlctl.base.wheels import go_root

TOOLS = Path(sys.executable).parent


def tracked(*patterns: str) -> list[str]:
    """Return the files of the repository that match, new ones that are not ignored among them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in sorted(set(found.splitlines())) if (ROOT / name).is_file()]


def check(*command: str | Path, cwd: Path = ROOT) -> str:
    result = subprocess.run([str(w) for w in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def go_program() -> Path:
    found = shutil.which("go")
    return Path(found) if found else go_root() / "bin" / "go"


def test_python_is_linted() -> None:
    check(TOOLS / "ruff", "check", "--no-fix", ".")


def test_python_is_formatted() -> None:
    check(TOOLS / "ruff", "format", "--check", ".")


def test_yaml_is_linted() -> None:
    # Templates are no YAML before they are rendered; tests/chart checks what comes out.
    files = [name for name in tracked("*.yaml", "*.yml") if "/templates/" not in name]
    assert files
    check(TOOLS / "yamllint", "--strict", *files)


def test_go_is_formatted() -> None:
    files = tracked("*.go")
    assert files
    listed = check(go_program().parent / "gofmt", "-l", *files)
    assert listed == "", f"gofmt -w {listed}"


def test_shell_scripts_parse() -> None:
    scripts = [*tracked("*.sh"), ".ci/run", "tools/python"]
    for script in scripts:
        shell = "bash" if "bash" in (ROOT / script).read_text().splitlines()[0] else "sh"
        check(shell, "-n", script)


def test_every_make_target_is_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert phony is not None
    declared = set(phony[1].replace("\\", " ").split())
    described = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))
    assert declared == described
    shown = check("make", "--no-print-directory", "help")
    assert all(re.search(rf"^  {target} ", shown, re.MULTILINE) for target in described)


@pytest.mark.parametrize("path", [".ci/run", "tools/python"])
def test_entry_points_are_executable(path: str) -> None:
    assert (ROOT / path).stat().st_mode & 0o111 == 0o111


def test_an_argument_list_without_a_shell_holds_no_glob() -> None:
    """The source document's `["rm", "-rf", "/tmp/*"]` never removed anything."""
    pattern = re.compile(r"""["']rm["'],\s*["']-r?f?r?["'],[^]]*\*""")
    found = [
        name for name in tracked("*.py", "*.yaml") if pattern.search((ROOT / name).read_text())
    ]
    assert [name for name in found if not name.startswith("tests/")] == []


def test_values_files_are_plain_yaml() -> None:
    for name in tracked("values/*.yaml"):
        assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict), name


def test_links_of_the_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
    for name in tracked("*.md"):
        for target in link.findall((ROOT / name).read_text()):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_the_tests_that_the_documents_name_are_there() -> None:
    named = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
    for name in tracked("*.md"):
        for file, test in named.findall((ROOT / name).read_text()):
            tree = ast.parse((ROOT / file).read_text())
            there = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert test in there, f"{name}: {file}::{test}"


def test_each_public_case_is_open_or_has_a_test() -> None:
    page = (ROOT / "docs" / "public-cases.md").read_text()
    cases = re.findall(r"^\| (\d+) \| .* \| (.*) \| (.*)\|$", page, re.MULTILINE)
    assert [number for number, *_ in cases] == [str(number) for number in range(1, 21)]
    assert [number for number, here, by in cases if "*open*" not in here and "::" not in by] == []


def test_the_newest_changes_are_in_the_chart_too() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    text = (CHART / "CHANGELOG.md").read_text()
    version, newest = re.search(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S).group(1, 2)
    assert version == chart["version"]
    kinds = re.findall(r"^### (\w+)\n\n((?:- .*\n)+)", newest, re.M)
    told = [
        {"kind": kind.lower(), "description": line.removeprefix("- ")}
        for kind, lines in kinds
        for line in lines.splitlines()
    ]
    assert told == yaml.safe_load(chart["annotations"]["artifacthub.io/changes"])


SAYING = ("base", "clients", "cluster", "commands", "release", "publishing.py", "stack.py")
"""Parts of mlctl whose messages have rows. Those of recipes and trials are for who writes them."""


def said(node: ast.expr) -> str:
    """Return the text of an expression, `...` for what is known only when it runs."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(said, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return said(left) + said(right)
    return "..."


def messages() -> set[str]:
    """Return the first lines of the errors that commands end with."""
    found = set()
    for name in tracked(*(f"mlctl/{part}" for part in SAYING)):
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            match node:
                case ast.Call(func=ast.Name(id=kind), args=[text, *_]) if kind.endswith("Error"):
                    line = re.sub(r"(\.\.\.)+", "...", said(text)).partition("\n")[0]
                    if kind in {"UserError", "AirflowError", "KubectlError"}:
                        found.add(line)
    # Without those that pass on what others say.
    return {line for line in found if re.search(r"\w{3}", line)}


def test_each_message_of_the_commands_has_a_row() -> None:
    page = (ROOT / "docs" / "messages.md").read_text()
    rows = [row.strip("`") for row in re.findall(r"^\| (`+.*?`+) \| \S.* \|$", page, re.MULTILINE)]
    there = messages()
    assert [one for one in sorted(there) if not one.startswith(tuple(rows))] == []
    assert [row for row in rows if not any(one.startswith(row) for one in there)] == []
