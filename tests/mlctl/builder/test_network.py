from pathlib import Path

import pytest

from mlctl.builder.network import ca_bundle, uv_settings


@pytest.mark.parametrize(
    ("env", "pip_config", "expected"),
    [
        ({}, "", {}),
        (
            {},
            "global.index-url='https://index.example/simple'\nglobal.cert='/x.crt'\n",
            {"UV_DEFAULT_INDEX": "https://index.example/simple"},
        ),
        (
            {"PIP_INDEX_URL": "https://env.example/simple"},
            "global.index-url='https://index.example/simple'\n",
            {"UV_DEFAULT_INDEX": "https://env.example/simple"},
        ),
        (
            {"UV_INDEX_URL": "https://uv.example/simple", "UV_HTTP_TIMEOUT": "60"},
            "global.index-url='https://index.example/simple'\n",
            {"UV_INDEX_URL": "https://uv.example/simple", "UV_HTTP_TIMEOUT": "60"},
        ),
    ],
    ids=["nothing", "pip-config", "pip-variable", "uv-variable"],
)
def test_index_of_the_machine_reaches_uv(env: dict, pip_config: str, expected: dict):
    assert uv_settings(env, pip_config) == expected


def test_certificates_are_the_first_file_that_a_variable_names(tmp_path: Path):
    bundle = tmp_path / "bundle.crt"
    bundle.touch()
    env = {"SSL_CERT_FILE": str(tmp_path / "missing"), "PIP_CERT": str(bundle)}
    assert ca_bundle(env) == bundle
