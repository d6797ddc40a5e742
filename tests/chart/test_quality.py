"""What catalogues and linters of charts look at."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from mlctl.base.errors import UserError
from mlctl.base.paths import CHART
from mlctl.release.images import in_render
from mlctl.release.release import package_chart
from tests.helpers.helm import MACHINE, HelmError, program, render, run

DESCRIPTION = yaml.safe_load((CHART / "Chart.yaml").read_text())
ANNOTATIONS = {
    name.removeprefix("artifacthub.io/"): yaml.safe_load(text)
    for name, text in DESCRIPTION["annotations"].items()
}


def test_the_catalogue_names_the_images_of_the_defaults():
    own = f"{MACHINE['images']['classicExample']['repository']}:"
    found = {i for i in in_render(render().text) if not i.startswith(own)}
    assert {image["image"] for image in ANNOTATIONS["images"]} == found
    assert all(set(image) == {"name", "image"} for image in ANNOTATIONS["images"])


def test_the_newest_version_is_in_the_list_of_changes():
    text = (CHART / "CHANGELOG.md").read_text()
    version, newest = re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)[0]
    assert version == DESCRIPTION["version"]
    sections = re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", newest, re.M | re.S)
    told = [
        {"kind": kind.lower(), "description": line}
        for kind, lines in sections
        for line in re.findall(r"^- (.*)$", lines, re.M)
    ]
    assert ANNOTATIONS["changes"] == told
    kinds = {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert {change["kind"] for change in told} <= kinds


def test_what_a_catalogue_shows_is_there():
    """Their forms are held by `ct lint`, which does not ask for them (test_ct.py)."""
    assert {"description", "home", "icon", "kubeVersion"} <= set(DESCRIPTION)
    assert [maintainer["name"] for maintainer in DESCRIPTION["maintainers"]]
    # Artifact Hub's: a version below 1 is not for everybody yet.
    assert ANNOTATIONS["prerelease"] is DESCRIPTION["version"].startswith("0.")
    assert ANNOTATIONS["license"] == "Apache-2.0"
    printed = run("lint", "--strict", CHART, "--set", "profile=local")
    assert "[INFO]" not in printed


@pytest.mark.parametrize("major", [3, 4])
def test_a_package_is_signed(tmp_path, monkeypatch, major):
    if not shutil.which("gpg"):
        pytest.skip("no gpg to make a key with")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    env = {**os.environ, "GNUPGHOME": str(home)}
    gpg = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "open"]
    subprocess.run([*gpg, "--quick-generate-key", "Test", "rsa2048"], env=env, check=True)
    for words in (["--export-secret-keys"], ["--export"]):
        with (tmp_path / words[0].strip("-")).open("wb") as out:
            subprocess.run([*gpg, *words], env=env, check=True, stdout=out)
    subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=env, check=True)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("open\n")
    monkeypatch.setattr("mlctl.release.release.BUILD", tmp_path)
    monkeypatch.setattr("mlctl.release.release.program", lambda: program(major))

    package = package_chart("Test", tmp_path / "export-secret-keys", passphrase)
    assert package.parent == tmp_path
    said = run("verify", package, "--keyring", tmp_path / "export", major=major)
    assert "Test" in said
    package.write_bytes(package.read_bytes() + b"x")
    with pytest.raises(HelmError):
        run("verify", package, "--keyring", tmp_path / "export", major=major)


def test_a_key_without_its_file_is_refused():
    with pytest.raises(UserError, match="KEYRING"):
        package_chart("Test")
