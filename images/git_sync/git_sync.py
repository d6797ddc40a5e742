"""Keep a checkout of a git repository up to date: a stand-in for git-sync v4.

Reads the same environment variables (https://github.com/kubernetes/git-sync, v4):

    GITSYNC_REPO      what to fetch: git://, http(s):// or file:// (no ssh here)
    GITSYNC_REF       branch, tag or commit, default HEAD
    GITSYNC_ROOT      directory to work in, default /git
    GITSYNC_LINK      symlink below it that always names a complete checkout, default: last part
                      of the repository's name
    GITSYNC_PERIOD    time between tries, default 10s
    GITSYNC_DEPTH     commits of history to begin with, 0 for all, default 1
    GITSYNC_ONE_TIME  exit after the first checkout (also the flag --one-time)
    GITSYNC_SUBMODULES  recursive (the default), shallow: without those of submodules, or off
    GITSYNC_USERNAME, GITSYNC_PASSWORD      for http(s)
    GITSYNC_SYNC_TIMEOUT                    for one git command, default 120s
    GITSYNC_STALE_WORKTREE_TIMEOUT          how long an old checkout stays for its readers,
                                            default 5m
    GITSYNC_MAX_FAILURES                    give up after that many failures in a row

Other variables of git-sync are ignored. It differs where a local cluster is better off: with
GITSYNC_MAX_FAILURES=0, the Airflow chart's default, it goes on trying for ever, and for a minute
with --one-time, where git-sync gives up at once. Asking for what is there already costs nothing
here: a fetch with a depth has the server pack all files again, each time.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
ONE_TIME_PATIENCE = 60.0
"""Seconds of tries before --one-time fails: a worker whose init container fails, fails its task."""
REPEAT_SECONDS = 60.0
"""The same failure is said again after this time."""

SUBMODULES = {"recursive": ["--recursive"], "shallow": [], "off": None}
"""Options of `git submodule update`, by the value of GITSYNC_SUBMODULES."""

SYNCED = "refs/synced"
"""Names what was fetched last: the next fetch brings what is new since then."""

CREDENTIALS = '!f() { echo "username=$GITSYNC_USERNAME"; echo "password=$GITSYNC_PASSWORD"; }; f'
"""A git credential helper: the password never stands on a command line."""


class ConfigError(Exception):
    """A variable that cannot work, however often it is tried."""


class SyncError(Exception):
    """A try that failed; the next may work."""


def seconds(text: str) -> float:
    """Return the seconds of a Go duration (``1m30s``, ``100ms``), or of a plain number.

    Raises ValueError for anything else.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration like 5s, 100ms or 1m30s")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


@dataclass(frozen=True)
class Settings:
    """What the environment asks for."""

    repo: str
    ref: str
    root: Path
    link: str
    period: float
    depth: int
    submodules: str
    one_time: bool
    timeout: float
    keep_old: float
    max_failures: int
    has_password: bool


def settings(env: Mapping[str, str], arguments: list[str]) -> Settings:
    """Read the variables. Raises ConfigError for a missing, malformed or unsupported one."""
    repo = env.get("GITSYNC_REPO", "")
    if not repo:
        raise ConfigError("GITSYNC_REPO is not set: it names the repository to check out")
    ssh = env.get("GITSYNC_SSH", "").lower() == "true"
    if ssh or repo.startswith("ssh://") or re.match(r"[\w.-]+@[\w.-]+:", repo):
        raise ConfigError("this stand-in has no ssh: use the image of git-sync, or http(s)")
    unknown = [word for word in arguments if word != "--one-time"]
    if unknown:
        raise ConfigError(f"unknown argument {unknown[0]}: settings come from GITSYNC_* variables")
    link = env.get("GITSYNC_LINK") or repo.rstrip("/").rpartition("/")[2].removesuffix(".git")
    if "/" in link or link in {"", ".", "..", ".git", ".worktrees"}:
        raise ConfigError(f"GITSYNC_LINK={link} must be a plain name below GITSYNC_ROOT")

    def value(name: str, default: str, read: Callable[[str], float]) -> float:
        try:
            return read(env.get(name) or default)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error

    submodules = env.get("GITSYNC_SUBMODULES") or "recursive"
    if submodules not in SUBMODULES:
        raise ConfigError(f"GITSYNC_SUBMODULES={submodules} must be one of {', '.join(SUBMODULES)}")
    # The chart passes its older setting `wait`, in seconds, under the old name only.
    period = "GIT_SYNC_WAIT" if env.get("GIT_SYNC_WAIT") else "GITSYNC_PERIOD"
    return Settings(
        repo=repo,
        ref=env.get("GITSYNC_REF") or "HEAD",
        root=Path(env.get("GITSYNC_ROOT") or "/git"),
        link=link,
        period=max(0.1, value(period, "10s", seconds)),
        depth=int(value("GITSYNC_DEPTH", "1", int)),
        submodules=submodules,
        one_time="--one-time" in arguments or env.get("GITSYNC_ONE_TIME", "").lower() == "true",
        timeout=value("GITSYNC_SYNC_TIMEOUT", "120s", seconds),
        keep_old=value("GITSYNC_STALE_WORKTREE_TIMEOUT", "5m", seconds),
        max_failures=int(value("GITSYNC_MAX_FAILURES", "0", int)),
        has_password=bool(env.get("GITSYNC_PASSWORD")),
    )


def say(text: str) -> None:
    """Print a log line with the time, passwords in addresses blotted out."""
    clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(f"{clock} {re.sub(r'://[^/@ ]+@', '://***@', text)}", flush=True)


class Checkout:
    """The directory GITSYNC_ROOT: a bare repository, the checkouts by commit, and the link."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.repository = settings.root / ".git"
        self.trees = settings.root / ".worktrees"
        self.link = settings.root / settings.link

    def current(self) -> str:
        """Return the commit that the link names, or an empty string."""
        return self.link.readlink().name if self.link.is_symlink() and self.link.exists() else ""

    def sync(self) -> str:
        """Fetch, and check out what is new. Returns the commit that the link names now.

        Raises SyncError when git fails; the link then still names what it named before.
        """
        self._prepare()
        options = ["--quiet", "--no-tags", "--no-auto-gc", "--force"]
        if not self._git("for-each-ref", SYNCED):
            options += self._depth()
        try:
            self._git("fetch", *options, "--", self.settings.repo, f"{self.settings.ref}:{SYNCED}")
        except SyncError:
            # All of another history may take too long: the next try brings its end alone.
            self._git("update-ref", "-d", SYNCED)
            raise
        commit = self._git("rev-parse", "--verify", f"{SYNCED}^{{commit}}")
        if commit != self.current():
            self._check_out(commit)
            self._swap(commit)
        self._remove_old(commit)
        return commit

    def _depth(self) -> list[str]:
        return [f"--depth={self.settings.depth}"] if self.settings.depth > 0 else []

    def _prepare(self) -> None:
        self.trees.mkdir(parents=True, exist_ok=True)
        if not (self.repository / "HEAD").exists():
            self._git("init", "--quiet", "--bare", str(self.repository))

    def remove_leftovers(self) -> None:
        """Remove what a killed predecessor left: locks of git, half checkouts."""
        if self.repository.is_dir():
            for lock in self.repository.rglob("*.lock"):
                lock.unlink(missing_ok=True)
        for half in self.trees.glob(".*"):
            shutil.rmtree(half, ignore_errors=True)

    def _check_out(self, commit: str) -> None:
        final = self.trees / commit
        if final.is_dir():
            return
        # Filled under another name: a directory named like a commit is always complete.
        half = self.trees / f".{commit}"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        index = half.with_suffix(".index")
        try:
            self._git("read-tree", commit, index=index)
            self._git("checkout-index", "--all", "--force", index=index, work_tree=half)
            options = SUBMODULES[self.settings.submodules]
            if options is not None and (half / ".gitmodules").exists():
                # What `../lib.git` in there is relative to.
                self._git("config", "remote.origin.url", self.settings.repo)
                words = ["submodule", "--quiet", "update", "--init", *options, *self._depth()]
                self._git(*words, index=index, work_tree=half, bare=False)
        finally:
            index.unlink(missing_ok=True)
        half.rename(final)

    def _swap(self, commit: str) -> None:
        old = self.current()
        fresh = self.settings.root / f".{self.settings.link}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path(".worktrees") / commit)
        fresh.replace(self.link)
        if old:
            # The time since then decides how long it stays.
            os.utime(self.trees / old)

    def _remove_old(self, current: str) -> None:
        for tree in self.trees.iterdir():
            age = time.time() - tree.stat().st_mtime
            if tree.name != current and age >= self.settings.keep_old:
                shutil.rmtree(tree, ignore_errors=True)
                self._git("gc", "--auto", "--quiet")

    def _git(
        self,
        *words: str,
        index: Path | None = None,
        work_tree: Path | None = None,
        bare: bool = True,
    ) -> str:
        # Submodules inherit it, and are none.
        options = ["-c", "safe.directory=*", "-c", f"core.bare={str(bare).lower()}"]
        if self.settings.has_password:
            options += ["-c", f"credential.helper={CREDENTIALS}"]
        env = os.environ | {"GIT_DIR": str(self.repository)}
        if index is not None:
            env["GIT_INDEX_FILE"] = str(index)
        if work_tree is not None:
            env["GIT_WORK_TREE"] = str(work_tree)
        try:
            result = subprocess.run(
                ["git", *options, *words],
                cwd=work_tree,
                env=env,
                capture_output=True,
                text=True,
                timeout=self.settings.timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise SyncError(f"git {words[0]} took longer than {error.timeout:.0f} s") from error
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
            # Advice follows the line that says what went wrong.
            said = [line for line in lines if line.startswith(("fatal:", "error:"))]
            raise SyncError(f"git {words[0]}: {(said or lines)[0]}")
        return result.stdout.strip()


def main() -> int:
    """Sync until told to stop, or once."""
    try:
        wanted = settings(os.environ, sys.argv[1:])
    except ConfigError as error:
        say(f"ERROR: {error}")
        return 2
    checkout = Checkout(wanted)
    say(f"syncing {wanted.repo} {wanted.ref} into {checkout.link}")
    started, failures, said, said_at = time.monotonic(), 0, "", 0.0
    try:
        checkout.remove_leftovers()
    except OSError as error:
        say(f"ERROR: {wanted.root}: {error}")
        return 2
    while True:
        before = checkout.current()
        try:
            commit = checkout.sync()
            if commit != before or failures:
                say(f"synced {wanted.ref} at {commit}")
            failures, said = 0, ""
            if wanted.one_time:
                return 0
        except (SyncError, OSError) as error:
            failures += 1
            now = time.monotonic()
            if str(error) != said or now - said_at > REPEAT_SECONDS:
                kept = f"still serving {before}" if before else "nothing checked out yet"
                say(f"ERROR: try {failures} failed, {kept}, next in {wanted.period:g} s: {error}")
                said, said_at = str(error), now
            over = wanted.one_time and now - started > ONE_TIME_PATIENCE
            if over or 0 < wanted.max_failures <= failures:
                say(f"ERROR: giving up after {failures} tries")
                return 1
        time.sleep(min(wanted.period, 1.0) if wanted.one_time else wanted.period)


if __name__ == "__main__":
    sys.exit(main())
