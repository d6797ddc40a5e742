"""The Debian base image, and apt for the builds that start from it.

The machine's own apt settings (mirror, proxy, credentials) are used while building and are not
part of any image: they reach a build as directories mounted over the image's empty ones.
"""

import os
import re
import shutil
from pathlib import Path

from mlctl.base.cache import digest, lock
from mlctl.base.errors import output
from mlctl.base.paths import CACHE, ROOT
from mlctl.base.progress import Phase
from mlctl.builder import oci
from mlctl.builder.isolation import run_isolated

RECIPE = ROOT / "images" / "base"
APT_CACHE = CACHE / "apt"
"""Package lists and .deb files that earlier builds fetched."""

PASSED_ON = re.compile(
    r"^Acquire::(?:(?:http|https|ftp)(?:::[^ ]*)?|Check-Valid-Until|Check-Date|Retries|"
    r'ForceIPv[46]|AllowInsecureRepositories|AllowDowngradeToInsecureRepositories) "[^"]*";$'
)
"""The lines of `apt-config dump` that say how packages are reached."""

BUILD_SETTINGS = """\
Acquire::Languages "none";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
"""
# _apt cannot read the shared directories, and need not: the build is isolated as it is.

DPKG_SETTINGS = "force-unsafe-io\n"
"""A build that is cut off is thrown away: no fsync after each file."""


def packages() -> list[str]:
    """Return the packages of the base image beyond apt's own needs."""
    lines = (RECIPE / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def base_key(suite: str) -> str:
    """Return the cache key of the base image: a hash over all that decides what is in it."""
    return digest(RECIPE, suite, "layout 1")


def source_lines(index_targets: str, suite: str) -> list[str]:
    """Return the machine's ``deb`` lines, for a Debian suite in the place of its own.

    A mirror has all suites that are supported. ``index_targets``: output of
    ``apt-get indextargets`` in INDEX_FORMAT. Other vendors use Debian's suite names too: only what
    calls itself Debian counts, or, where the lists were never fetched and the origin is unknown,
    what lies where a Debian mirror lies.
    """
    found: dict[str, None] = {}
    for line in index_targets.splitlines():
        uri, release, component, origin = line.split("|")
        part = re.fullmatch(r"[a-z]+(|-updates|-security)", release)
        if not part or component != "main":
            continue
        unknown = not origin or origin.startswith("$(")
        if origin == "Debian" or (unknown and re.search(r"/debian(-security)?/?$", uri)):
            found[f"deb {uri} {suite}{part[1]} {component}"] = None
    return list(found)


INDEX_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"


def host_sources(suite: str) -> list[str]:
    """Return this machine's ``deb`` lines for a Debian suite; empty if it has none."""
    targets = output(["apt-get", "indextargets", "--format", INDEX_FORMAT, "Created-By: Packages"])
    return source_lines(targets, suite)


def host_settings() -> str:
    """Return apt.conf text: how this machine reaches packages, and how a build uses apt."""
    dump = output(["apt-config", "dump"]).splitlines()
    return "".join(f"{line}\n" for line in dump if PASSED_ON.match(line)) + BUILD_SETTINGS


def build_base(directory: Path, suite: str, phase: Phase, log: Path, name: str) -> None:
    """Make the base image: an OCI layout at ``directory/layout``, and ``directory/sources.list``.

    Raises UserError when mmdebstrap fails, for example because Debian is out of reach.
    """
    work = directory / "work"
    memory = work / "memory"
    for path in (memory, work / "lists"):
        path.mkdir(parents=True)
    settings = work / "apt.conf"
    settings.write_text(host_settings())
    archive = directory / "base.tar"
    command = [
        *("mmdebstrap", "--mode=root", "--variant=apt", "--format=tar"),
        f"--aptopt={settings}",
        f"--dpkgopt={DPKG_SETTINGS.strip()}",
        f"--include={','.join(packages())}",
        "--customize-hook=find \"$1/etc/apt\" -name '*.list' -exec cat {} + "
        f"> '{directory}/sources.list'",
        f"--customize-hook=cp -a \"$1/var/lib/apt/lists/.\" '{work}/lists/'",
        f"--customize-hook='{RECIPE / 'finish.sh'}' \"$1\"",
        suite,
        str(archive),
    ]
    if sources := host_sources(suite):
        mirrors = work / "mirrors.list"
        mirrors.write_text("\n".join(sources) + "\n")
        command.append(str(mirrors))
    # In memory, because dpkg waits for the disk after every package.
    env = os.environ | {"TMPDIR": str(memory)}
    run_isolated(command, tmpfs=memory, log=log, phase=phase, env=env)
    with lock("apt-cache"):
        _link_files(work / "lists", APT_CACHE / "lists")
    config = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    image = oci.image(config, [oci.blob(archive)], comment=f"mmdebstrap {suite}")
    oci.write_layout(directory / "layout", name, image)
    archive.unlink()
    shutil.rmtree(work)


class BuildApt:
    """Directories that give one build the machine's apt settings and the shared downloads.

    They are mounted over directories that exist and are empty or unused in the image, so that
    not even a mount point stays behind. The lists and packages are links to the shared files:
    a build that cleans up removes its own links only.
    """

    def __init__(self, work: Path, suite: str, fallback_sources: Path) -> None:
        self.etc, self.dpkg = work / "etc-apt", work / "dpkg.cfg.d"
        self.lists, self.archives = work / "lists", work / "archives"
        self._write_settings(suite, fallback_sources)
        with lock("apt-cache"):
            for name, target in (("lists", self.lists), ("archives", self.archives)):
                _link_files(APT_CACHE / name, target)

    def _write_settings(self, suite: str, fallback_sources: Path) -> None:
        for name in ("apt.conf.d", "preferences.d", "sources.list.d", "trusted.gpg.d"):
            (self.etc / name).mkdir(parents=True)
        sources = host_sources(suite)
        text = "\n".join(sources) + "\n" if sources else fallback_sources.read_text()
        (self.etc / "sources.list").write_text(text)
        (self.etc / "apt.conf.d" / "build").write_text(host_settings())
        machine = Path("/etc/apt")
        for name in ("auth.conf", "auth.conf.d", "trusted.gpg.d", "keyrings"):
            if (machine / name).is_dir():
                shutil.copytree(machine / name, self.etc / name, dirs_exist_ok=True)
            elif (machine / name).exists():
                shutil.copy2(machine / name, self.etc / name)
        self.dpkg.mkdir()
        shutil.copy2(RECIPE / "slim.cfg", self.dpkg / "slim")
        (self.dpkg / "build").write_text(DPKG_SETTINGS)

    def mounts(self) -> dict[Path, str]:
        """Return what to mount, and where in the image."""
        return {
            self.etc: "/etc/apt",
            self.dpkg: "/etc/dpkg/dpkg.cfg.d",
            self.lists: "/var/lib/apt/lists",
            self.archives: "/var/cache/apt",
        }

    def keep(self) -> None:
        """Hand what this build fetched to later builds."""
        with lock("apt-cache"):
            _link_files(self.lists, APT_CACHE / "lists")
            _link_files(self.archives, APT_CACHE / "archives")


def _link_files(source: Path, target: Path) -> None:
    """Link every finished download of a directory tree into another; newer lists replace."""
    target.mkdir(parents=True, exist_ok=True)
    if not source.is_dir():
        return
    for file in source.rglob("*"):
        if not file.is_file() or file.name == "lock" or file.parent.name == "partial":
            continue
        goal = target / file.relative_to(source)
        goal.parent.mkdir(parents=True, exist_ok=True)
        if goal.exists() and goal.samefile(file):
            continue
        fresh = goal.with_name(f".{goal.name}.{os.getpid()}")
        os.link(file, fresh)
        fresh.rename(goal)
