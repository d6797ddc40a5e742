"""The examples of docs/gitops.md install what the other page does."""

import pytest
import yaml

from mlctl.base.paths import CHART, ROOT
from tests.chart.test_production import mentioned
from tests.helpers.helm import production, render, run
from tests.helpers.pages import blocks


@pytest.fixture(scope="module")
def examples():
    made = (yaml.safe_load(block.text) for block in blocks("docs/gitops.md", "yaml"))
    return {example["kind"]: example for example in made}


@pytest.fixture
def filled(tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(production()))
    return file


def rendered_with(name, files, filled):
    words = [word for file in [*files, filled] for word in ("--values", file)]
    return run("template", name, CHART, "--namespace", "ml-pipelines", *words)


def test_argo_cd_renders_production(examples, filled):
    spec = examples["Application"]["spec"]
    source = spec["source"]
    chart = ROOT / source["path"]
    assert chart == CHART
    # Its files are relative to the chart.
    files = [(chart / file).resolve() for file in source["helm"]["valueFiles"]]
    text = rendered_with(source["helm"]["releaseName"], files, filled)
    assert spec["destination"]["namespace"] == "ml-pipelines"
    assert text == render(environment="production").text


def test_flux_renders_production(examples, filled):
    release = examples["HelmRelease"]
    spec = release["spec"]["chart"]["spec"]
    assert ROOT / spec["chart"] == CHART
    # Relative to the repository; the chart's own values are not among them by default.
    files = [ROOT / file for file in spec["valuesFiles"]]
    assert files[0] == CHART / "values.yaml"
    text = rendered_with(release["metadata"]["name"], files, filled)
    assert release["metadata"]["namespace"] == "ml-pipelines"
    assert text == render(environment="production").text


def test_the_external_secret_is_one_that_the_release_reads(examples):
    found = examples["ExternalSecret"]
    keys = {entry["secretKey"] for entry in found["spec"]["data"]}
    manifests = render({"extraObjects": [found]}, environment="production")
    assert mentioned(manifests)[found["spec"]["target"]["name"]] == keys
    assert manifests.one("ExternalSecret", "ml-pipelines-metadata") == found
