"""How a build reaches the Python packages: the machine's own settings, for the build alone."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mlctl.base.errors import UserError
from mlctl.base.paths import CACHE

TOOLBOX = "/usr/local/bin"
"""Where the toolbox is mounted: on every PATH, and a directory that images have anyway."""

UV_CACHE = "/srv"
"""Where uv's cache is mounted: empty in every Debian image."""

REACH = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_HTTP_TIMEOUT",
    "UV_INSECURE_HOST",
    "UV_NATIVE_TLS",
    "UV_KEYRING_PROVIDER",
)
"""uv's variables about reaching packages: handed on as they are."""

CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def ca_bundle(env: Mapping[str, str]) -> Path | None:
    """Return the certificates that this machine trusts, as one file."""
    named = [Path(env[name]) for name in CA_VARIABLES if env.get(name)]
    return next((path for path in [*named, CA_BUNDLE] if path.is_file()), None)


def uv_settings(env: Mapping[str, str], pip_config: str) -> dict[str, str]:
    """Return the UV_* variables for a build.

    uv does not read pip's settings: the index that pip uses here (``pip_config``: output of
    ``pip config list``) counts where uv has none of its own.
    """
    pip = {}
    for line in pip_config.splitlines():
        key, _, value = line.partition("=")
        pip[key.rpartition(".")[2]] = value.strip("'\"")
    chosen = {
        "UV_DEFAULT_INDEX": env.get("PIP_INDEX_URL") or pip.get("index-url", ""),
        "UV_INDEX": env.get("PIP_EXTRA_INDEX_URL") or pip.get("extra-index-url", ""),
    }
    if any(env.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX")):
        chosen = {}
    chosen |= {name: env[name] for name in REACH if env.get(name)}
    return {name: value for name, value in chosen.items() if value}


def make_toolbox(directory: Path) -> None:
    """Fill a directory with ``uv`` for a build: the tools' own, wrapped in this machine's settings.

    Raises UserError when the tools' environment has no uv.
    """
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise UserError("no uv beside tools/python: is requirements/tools.txt installed?")
    settings = directory / "settings"
    settings.mkdir(parents=True)
    try:
        os.link(uv, settings / "uv")
    except OSError:  # On another file system.
        shutil.copy2(uv, settings / "uv")
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    variables = uv_settings(os.environ, pip.stdout) | {
        "UV_CACHE_DIR": UV_CACHE,
        "UV_LINK_MODE": "copy",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "UV_NO_CONFIG": "1",
    }
    certificates = ca_bundle(os.environ)
    if certificates is not None:
        shutil.copyfile(certificates, settings / "ca.crt")
        variables["SSL_CERT_FILE"] = f"{TOOLBOX}/settings/ca.crt"
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    wrapper = directory / "uv"
    wrapper.write_text(f'#!/bin/sh\n{"".join(lines)}exec {TOOLBOX}/settings/uv "$@"\n')
    wrapper.chmod(0o755)


def uv_cache() -> Path:
    """Return uv's cache directory on this machine, kept between builds."""
    path = CACHE / "uv"
    path.mkdir(parents=True, exist_ok=True)
    return path
