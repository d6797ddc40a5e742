"""What holds for every image: who it runs as, and that nothing of this machine is in it."""

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import psutil
import pytest

from mlctl.base.errors import output
from mlctl.base.paths import CACHE, ROOT
from mlctl.base.progress import Phase
from mlctl.builder import buildah, debian, oci
from mlctl.builder.build import base_image
from mlctl.builder.catalog import Recipe, recipes
from mlctl.builder.containerfile import parse
from mlctl.builder.isolation import isolated, run_isolated
from tools.in_image.container import Image

USERS = {
    "airflow": "50000:0",
    "airflow3": "50000:0",
    "airflow3-environment": "50000:0",
    "classic-example": "10001:10001",
    "classic-example-environment": "10001:10001",
    "git-sync": "65533:0",
    "pause": "65535:65535",
    "postgres": "999:999",
    "statsd-exporter": "65534:65534",
}
NAMES = list(USERS)
FROM_DEBIAN = [name for name in NAMES if name not in ("pause", "statsd-exporter")]


@pytest.mark.parametrize("name", NAMES)
def test_user_is_the_contracts_and_not_root(images: dict[str, Image], name: str):
    assert images[name].config["User"] == USERS[name]


@pytest.mark.parametrize("name", FROM_DEBIAN)
def test_certificates_are_debians(images: dict[str, Image], name: str):
    bundle = images[name].file("/etc/ssl/certs/ca-certificates.crt").read_text()
    shipped = {
        certificate(path.read_text())
        for layer in images[name].layers
        for path in (layer / "usr/share/ca-certificates").rglob("*.crt")
    }
    blocks = re.findall(r"-----BEGIN.*?-----END CERTIFICATE-----", bundle, re.DOTALL)
    assert len(blocks) > 100
    assert {certificate(block) for block in blocks} <= shipped


def certificate(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", FROM_DEBIAN)
def test_package_settings_of_the_machine_are_not_in_the_image(images: dict[str, Image], name: str):
    forbidden = [
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/apt/apt.conf.d/build",
        "etc/apt/auth.conf",
        "etc/apt/sources.list",
        "etc/dpkg/dpkg.cfg.d/build",
        "etc/pip.conf",
        "etc/uv",
        "root/.config",
        "root/.cache",
        "root/.pip",
        "usr/local/bin/settings",
        "usr/local/bin/uv",
    ]
    empty = ["mnt", "srv", "var/lib/apt/lists", "var/cache/apt/archives", "run/secrets"]
    for layer in images[name].layers:
        present = [path for path in forbidden if os.path.lexists(layer / path)]
        assert present == []
        for path in empty:
            files = [p for p in (layer / path).rglob("*") if p.is_file() and p.name != "lock"]
            assert files == [], path


@pytest.mark.parametrize("name", FROM_DEBIAN)
def test_names_of_the_machine_are_not_in_the_image(images: dict[str, Image], name: str):
    for layer in images[name].layers:
        for path in ("etc/hosts", "etc/hostname", "etc/resolv.conf"):
            if (layer / path).exists():
                assert (layer / path).read_bytes() == b"", path


@pytest.mark.parametrize("name", NAMES)
def test_configuration_holds_no_setting_of_the_machine(images: dict[str, Image], name: str):
    text = str(images[name].layout.config()).lower()
    for word in ("proxy", "ssl_cert", "pip_", "uv_", "index-url", str(CACHE).lower()):
        assert word not in text


def test_build_uses_the_machines_settings_and_leaves_nothing_of_them(
    entries, disk: Path, monkeypatch
):
    """Every setting carries a word that is then looked for in all bytes of the image."""
    secret = "s3cret-of-this-machine"
    certificates = disk / "ca.crt"
    certificates.write_text(f"{secret}-certificate\n")
    monkeypatch.setenv("HTTP_PROXY", f"http://{secret}-proxy:3128")
    monkeypatch.setenv("no_proxy", f"{secret}-none")
    monkeypatch.setenv("PIP_INDEX_URL", f"https://user:{secret}-index@index.example/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    apt = f'Acquire::http::Proxy "http://{secret}-apt:3128";\n'
    monkeypatch.setattr(debian, "host_settings", lambda: apt)
    source = disk / "source"
    source.mkdir()
    (source / "Containerfile").write_text(
        "ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim\n"
        "FROM ${BASE_IMAGE}\n"
        "LABEL org.opencontainers.image.version=1\n"
        f'RUN test "$HTTP_PROXY" = http://{secret}-proxy:3128 \\\n'
        f"    && grep -q {secret}-apt /etc/apt/apt.conf.d/build \\\n"
        f"    && grep -q {secret}-index /usr/local/bin/uv \\\n"
        f"    && grep -q {secret}-certificate /usr/local/bin/settings/ca.crt \\\n"
        "    && uv --version > /opt/uv-version && id -u > /opt/uid \\\n"
        "    && env -i PATH=$PATH sh -c 'uv cache dir' > /opt/uv-cache\n"
        "USER 1:1\n"
    )
    recipe = Recipe("one", parse(source / "Containerfile"), source)
    before = Path("/proc/self/mounts").read_text()
    processes, strays = commands(), {path.name for path in Path("/tmp").glob("buildah*")}
    log, phase = disk / "log", Phase("test")
    built = buildah.build(
        recipe, "localhost/test/one:1", disk, [base_image("bookworm")], log, phase
    )
    assert Path("/proc/self/mounts").read_text() == before
    assert [line for line in commands() - processes if str(disk) in line] == []
    assert {path.name for path in Path("/tmp").glob("buildah*")} == strays

    top = built.blobs[-1].source
    assert isinstance(top, Path)
    assert b"opt/uv-version" in top.read_bytes()
    # The Containerfile itself, quoted in the history, is the only place for the words.
    texts = [built.manifest.source, top.read_bytes()]
    config = built.blobs[0].source
    assert isinstance(config, Path)
    history = re.sub(rb'"created_by":"(?:[^"\\]|\\.)*"', b"", config.read_bytes())
    assert b'"User":"1:1"' in history
    for text in (*texts, history):
        assert isinstance(text, bytes)
        assert secret.encode() not in text
        assert str(disk).encode() not in text
    assert names_in(top) == {"opt", "opt/uid", "opt/uv-cache", "opt/uv-version", "run"}


STAGES = """\
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
FROM ${BASE_IMAGE} AS environment
RUN echo lower > /opt/lower && echo gone > /opt/gone
ENV LOWER=yes
FROM environment
COPY code /opt/code
RUN test "$LOWER" = yes && cat /opt/lower > /opt/upper && rm /opt/gone
USER 1:1
"""


def test_stage_adds_a_layer_to_the_image_of_the_stage_below(entries, disk: Path):
    assert entries["git-sync"]  # The base is there.
    (disk / "Containerfile").write_text(STAGES)
    (disk / "code").write_text("code\n")
    foundations = [base_image("bookworm")]
    for number, (_, stage) in enumerate(parse(disk / "Containerfile").stages()):
        place = disk / str(number)
        (place / "context").mkdir(parents=True)
        staged = Recipe("one", stage, disk).stage(place / "context")
        name = f"localhost/test/one:{number}"
        log, phase = place / "log", Phase("test")
        built = buildah.build(staged, name, place, foundations, log, phase)
        oci.write_layout(place / "layout", name, built)
        buildah.discard(place, keep_store=True)
        foundations = [buildah.Foundation(name, place), *foundations]

    upper, lower, base = (oci.read_layout(one.layout) for one in foundations)
    assert upper.layers()[:-1] == lower.layers()
    assert lower.layers()[:-1] == base.layers()
    for digest in lower.layers():
        assert upper.blob(digest).samefile(lower.blob(digest))
    *_, top = upper.layers()
    assert names_in(upper.blob(top)) - {"run"} == {"opt", "opt/.wh.gone", "opt/code", "opt/upper"}
    assert "LOWER=yes" in upper.config()["config"]["Env"]
    assert upper.config()["config"]["User"] == "1:1"


def test_plain_buildah_builds_the_stages_of_a_containerfile_as_one(entries, images, disk: Path):
    """As with a registry: one command, one build argument. (What RUN does is left out.)"""
    image = images["classic-example"]
    parsed = parse(ROOT / "images" / "classic_example" / "Containerfile")
    lines = [f"{name} {'true' if name == 'RUN' else text}" for name, text in parsed.instructions]
    (disk / "Containerfile").write_text("\n".join(lines) + "\n")
    base, name = base_image("bookworm"), "localhost/test/plain:1"
    program = [
        *buildah.command(disk / "store"),
        *("--storage-opt", f"{buildah.storage_driver()}.imagestore={base.store / 'root'}"),
    ]
    options = ["--isolation", "chroot", "--pull-never", "--file", str(disk / "Containerfile")]
    options += ["--build-arg", f"BASE_IMAGE={base.name}", "--tag", name]
    env = os.environ | {"TMPDIR": str(disk)}
    build = [*program, "build", *options, str(ROOT)]
    run_isolated(build, log=disk / "log", phase=Phase("test"), env=env)
    shown = output(isolated([*program, "inspect", "--type", "image", name]))
    plain = json.loads(json.loads(shown)["Config"])
    assert plain["config"] == image.config
    assert len(plain["rootfs"]["diff_ids"]) == len(image.layers)


@pytest.mark.parametrize("index", ["", "https://index.example/cu126"])
def test_a_build_argument_takes_torch_from_another_index(tmp_path: Path, index: str):
    """What the instruction calls, told by programs that do nothing else."""
    parsed = parse(ROOT / "images" / "classic_example" / "Containerfile")
    _, last = parsed.stages()[-1]
    steps = [text for _, text in last.instructions if "TORCH" in text]
    assert steps[:2] == ["TORCH_INDEX=", "TORCH=torch"]
    for program in ("apt-get", "pip", "rm"):
        (tmp_path / program).write_text('#!/bin/sh\necho "${0##*/}" "$@"\n')
        (tmp_path / program).chmod(0o755)
    env = {"PATH": str(tmp_path), "TORCH_INDEX": index, "TORCH": "torch==2.6.0+cu126"}
    ended = subprocess.run(
        ["/bin/sh", "-euc", steps[2]], env=env, check=True, capture_output=True, text=True
    )
    called = [line.split() for line in ended.stdout.splitlines()]
    assert [words[0] for words in called] == (
        ["apt-get", "apt-get", "pip", "apt-get", "rm"] if index else []
    )
    if index:
        assert called[2][1:3] == ["--python", "/opt/venv/bin/python"]
        assert called[2][-3:] == ["-i", index, "torch==2.6.0+cu126"]


def commands() -> set[str]:
    """The command lines of all processes."""
    return {" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])}


def names_in(layer: Path) -> set[str]:
    with tarfile.open(layer) as tar:
        return set(tar.getnames())


def test_images_share_the_layers_that_are_the_same(entries, images: dict[str, Image]):
    # The base, what each stage of the Containerfile adds, nothing else.
    assert {name: len(images[name].layout.layers()) for name in FROM_DEBIAN} == {
        "airflow": 2,
        "airflow3": 3,
        "airflow3-environment": 2,
        "classic-example": 3,
        "classic-example-environment": 2,
        "git-sync": 2,
        "postgres": 2,
    }
    suites = {name: recipes()[name].suite() for name in FROM_DEBIAN}
    for suite in set(suites.values()):
        layouts = [images[name].layout for name in FROM_DEBIAN if suites[name] == suite]
        (base,) = {layout.layers()[0] for layout in layouts}
        assert len({layout.blob(base).stat().st_ino for layout in layouts}) == 1


def test_the_workloads_code_is_a_small_layer(entries, images: dict[str, Image]):
    image = images["classic-example"]
    (top,) = image.layout.layers()[2:]
    assert image.layout.blobs()[top] < 5_000_000
    inside = names_in(image.layout.blob(top))
    assert {"app/classic_example/cli.py", "opt/data/movie-reviews/train.csv"} <= inside
    assert {name.partition("/")[0] for name in inside} <= {"airflow", "app", "opt", "run"}


@pytest.mark.parametrize("name", NAMES)
def test_lock_names_the_image_and_its_digest(entries, name: str):
    entry = entries[name]
    opened = oci.read_layout(Path(entry["layout"]))
    assert opened.digest == entry["digest"]
    assert opened.name == f"{entry['repository']}:{entry['tag']}"
    assert entry["repository"] == f"localhost/ml-pipelines/{name}"
