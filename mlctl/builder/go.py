"""Go, and the programs of others that are built from Go modules (versions.toml)."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from mlctl.base.cache import cached, digest
from mlctl.base.errors import UserError, output
from mlctl.base.paths import CACHE
from mlctl.base.progress import Phase, run
from mlctl.base.versions import pins
from mlctl.base.wheels import go_root

KIND = "go-programs"


def find_go(needed: str, *, download: bool = True) -> tuple[str, str]:
    """Return a Go command that is at least of the version ``needed``, and its version.

    The machine's own Go is preferred; else the pinned one is fetched.

    Raises UserError when neither can be had.
    """
    own = shutil.which("go")
    if own:
        version = _version(own)
        if _numbers(version) >= _numbers(needed):
            return own, version
    if not download and not (CACHE / "wheels").is_dir():
        raise UserError(f"no Go {needed} or newer")
    go = str(go_root() / "bin" / "go")
    return go, _version(go)


def build_environment(go: str) -> dict[str, str]:
    """Return the environment of every call of go: caches of our own, nothing of the host's C."""
    return os.environ | {
        "CGO_ENABLED": "0",
        "GOCACHE": str(CACHE / "go" / "build"),
        # Not to make debug tables in the first place saves 8 % of the processor time.
        "GOFLAGS": "-trimpath -buildvcs=false -mod=readonly -gcflags=all=-dwarf=false",
        "GOMODCACHE": str(CACHE / "go" / "modules"),
        "GOROOT": _run([go, "env", "GOROOT"]) or str(Path(go).parent.parent),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def module(name: str) -> Path:
    """Return the directory of a module that versions.toml pins, fetched unless it is there.

    Raises UserError when it cannot be fetched, or is not the pinned one.
    """
    pin = pins()["go"][name]
    go, _ = find_go(pin["go"])
    wanted = f"{pin['module']}@{pin['version']}"
    env = build_environment(go) | {"GOFLAGS": ""}
    why = f"the Go module {wanted} cannot be fetched: is the module proxy reachable?"
    found = json.loads(output([go, "mod", "download", "-json", wanted], why, env=env))
    if found["Sum"] != pin["sum"]:
        raise UserError(f"{wanted} is {found['Sum']}, not {pin['sum']} as versions.toml has it")
    return Path(found["Dir"])


def program(name: str, phase: Phase) -> Path:
    """Return a program that versions.toml pins, built unless the cache has it.

    Its modules are those that its own go.sum names.

    Raises UserError when they cannot be fetched or do not compile.
    """
    pin = pins()["go"][name]
    go, version = find_go(pin["go"])

    def build(directory: Path) -> None:
        command = [go, "build", "-ldflags=-s -w", "-o", str(directory / name), pin["package"]]
        log = CACHE / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        run(command, log=log, phase=phase, env=build_environment(go), cwd=module(name))

    key = digest(json.dumps(pin, sort_keys=True), version)
    return cached(KIND, f"{name}-{key}", build) / name


def _version(go: str) -> str:
    return _run([go, "env", "GOVERSION"]).removeprefix("go").split()[0]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _run(command: list[str]) -> str:
    env = os.environ | {"GOTOOLCHAIN": "local"}
    return subprocess.run(command, capture_output=True, text=True, env=env).stdout.strip()
