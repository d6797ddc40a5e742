"""`ct lint`, which repositories of charts run, finds nothing in the chart."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlctl.base.paths import CHART
from mlctl.base.progress import Phase
from mlctl.builder import go
from tests.helpers.helm import program

TOOLS = Path(sys.executable).parent
CALLED = ["helm version", "yamale", "yamllint", "yamllint", "helm lint"]
OPTIONS = [
    # Prints each call. What the programs print gets lost at times: ct does not wait for it.
    "--debug",
    # Their repository is not asked: the fixture official_chart has put the locked archive there.
    "--skip-helm-dependencies",
    # It looks each name up as an account where the git remote is; ours is nobody's account.
    "--validate-maintainers=false",
    # With a chart named, ct does not ask for a newer version than the main branch has: the number
    # goes up with a release, not with each commit.
    "--charts",
]


def lint(chart: Path, programs: Path) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Return what ct called, in this order, and how it ended."""
    programs.mkdir()
    helm = shutil.which(program())
    assert helm, program()
    (programs / "helm").symlink_to(Path(helm).absolute())
    env = os.environ | {
        "CT_CONFIG_DIR": str(go.module("ct") / "etc"),
        "KUBECONFIG": "/dev/null",
        "PATH": f"{programs}:{TOOLS}",
    }
    command = [go.program("ct", Phase("ct")), "lint", *OPTIONS, chart]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    return re.findall(r"^>>> (helm \w+|\w+)", done.stdout, re.MULTILINE), done


def test_nothing_is_found(tmp_path):
    called, done = lint(CHART, tmp_path / "bin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert called == CALLED


@pytest.mark.parametrize(
    ("file", "pattern", "broken", "calls"),
    [
        pytest.param("Chart.yaml", r"^version: .*\n", "", 2, id="a field is missing"),
        pytest.param("Chart.yaml", r"^keywords: .*", "keywords: airflow", 2, id="a wrong type"),
        pytest.param("Chart.yaml", r"^kubeVersion:", "kubeVersoin:", 2, id="an unknown field"),
        pytest.param("values.yaml", r"^profile: .*", r"\g<0>\n\g<0>", 4, id="a key twice"),
        pytest.param("templates/validate.yaml", r"\A", "{{ if }}", 5, id="no template"),
    ],
)
def test_a_broken_chart_is_refused(tmp_path, file, pattern, broken, calls):
    chart = shutil.copytree(CHART, tmp_path / CHART.name)
    text, count = re.subn(pattern, broken, (chart / file).read_text(), flags=re.MULTILINE)
    assert count == 1
    (chart / file).write_text(text)
    called, done = lint(chart, tmp_path / "bin")
    # Refused by the last program that it called, and not for want of it.
    assert called == CALLED[:calls]
    assert done.returncode == 1
    assert "failed waiting for process: exit status" in done.stdout
