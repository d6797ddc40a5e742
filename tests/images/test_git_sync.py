import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from images.git_sync.git_sync import Checkout, ConfigError, SyncError, seconds, settings
from mlctl.base.errors import output
from tools.in_image.container import Command, Container, Image, run

UID = 65533
SECONDS = 120


@pytest.fixture(scope="module")
def git_sync(images: dict[str, Image]) -> Image:
    return images["git-sync"]


class Repository:
    """A repository of two files that are always the same, and its bare copy that is served."""

    def __init__(self, directory: Path) -> None:
        self.work, self.bare = directory / "work", directory / "dags.git"
        # The image's user reads over file:// what root owns, which git would refuse.
        (directory / "gitconfig").write_text("[safe]\n\tdirectory = *\n")
        self.git("init", "--quiet", "--initial-branch=live", str(self.work))
        self.commit("first")
        self.git("clone", "--quiet", "--bare", str(self.work), str(self.bare))

    def commit(self, text: str) -> str:
        for name in ("a.py", "b.py"):
            (self.work / name).write_text(text)
        here = ["-C", str(self.work)]
        self.git(*here, "add", "--all")
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        self.git(*here, *author, "commit", "--quiet", "--allow-empty", "--message", text)
        if self.bare.exists():
            self.git(*here, "push", "--quiet", "--force", str(self.bare), "HEAD:refs/heads/live")
        return self.git(*here, "rev-parse", "HEAD")

    def submodule(self, address: str, path: str) -> None:
        origin = ["-c", f"remote.origin.url={self.bare}"]
        self.git("-C", str(self.work), *origin, "submodule", "--quiet", "add", address, path)

    def git(self, *words: str) -> str:
        return output(["git", *words]).strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    tmp_path.chmod(0o755)
    return Repository(tmp_path)


@pytest.fixture
def root(disk: Path) -> Path:
    os.chown(disk, 0, 0)
    disk.chmod(0o2775)
    return disk


def command(repository: Repository, root: Path, *words: str, **env: str) -> Command:
    """As the chart runs it: its variables, and the group 0 of Airflow's pods."""
    variables = {
        "GITSYNC_REPO": "file:///served/dags.git",
        "GITSYNC_REF": "live",
        "GITSYNC_ROOT": "/git",
        "GITSYNC_LINK": "repo",
        "GITSYNC_PERIOD": "200ms",
        "GITSYNC_DEPTH": "1",
        "GITSYNC_ADD_USER": "true",
        "GITSYNC_MAX_FAILURES": "0",
        "GITSYNC_SUBMODULES": "recursive",
        "GIT_CONFIG_GLOBAL": "/served/gitconfig",
    }
    return Command(
        arguments=list(words),
        env=variables | env,
        mounts={root: "/git", repository.bare.parent: "/served:ro"},
    )


def served(root: Path) -> str:
    """The commit that the link names."""
    link = root / "repo"
    return link.readlink().name if link.is_symlink() else ""


def test_one_time_checks_out_and_ends(git_sync: Image, repository: Repository, root: Path):
    for words, env in (["--one-time"], {}), ([], {"GITSYNC_ONE_TIME": "true"}):
        ended = run(git_sync, command(repository, root, *words, **env))
        assert ended.returncode == 0, ended.stdout
    assert (root / "repo" / "a.py").read_text() == "first"
    assert (root / "repo").readlink() == Path(".worktrees") / served(root)
    assert re.search(r"synced live at [0-9a-f]{40}$", ended.stdout, re.MULTILINE) is None
    # Readable for Airflow's user, who is not the one that writes.
    assert (root / "repo" / "a.py").stat().st_mode & 0o044 == 0o044
    assert (root / "repo").stat().st_mode & 0o055 == 0o055
    assert (root / "repo" / "a.py").stat().st_uid == UID


def test_new_commits_appear_whole_and_old_ones_stay_for_their_readers(
    git_sync: Image, repository: Repository, root: Path
):
    torn: list[tuple[str, str]] = []
    stop = threading.Event()

    def read() -> None:
        # A reader that resolves the link once, as an importing Python does, and then reads on.
        while not stop.is_set():
            if served(root):
                tree = (root / "repo").resolve()
                first = (tree / "a.py").read_text()
                time.sleep(0.05)
                second = (tree / "b.py").read_text()
                if first != second:
                    torn.append((first, second))

    reader = threading.Thread(target=read)
    with Container(git_sync, command(repository, root)) as syncing:
        syncing.until(10, lambda: served(root))
        reader.start()
        commits = []
        for number in range(5):
            commits.append(repository.commit(f"text {number}"))
            syncing.until(10, lambda: served(root) == commits[-1])
        stop.set()
        reader.join()
        syncing.signal(signal.SIGTERM)
        _, log = syncing.wait(5)
    assert torn == []
    assert (root / "repo" / "b.py").read_text() == "text 4"
    assert all((root / ".worktrees" / commit / "b.py").exists() for commit in commits)
    assert [line.split()[-1] for line in log.splitlines() if " synced live at " in line][1:] == (
        commits
    )


def test_old_checkouts_go_after_their_time(git_sync: Image, repository: Repository, root: Path):
    old = repository.commit("old")
    env = {"GITSYNC_STALE_WORKTREE_TIMEOUT": "2s"}
    with Container(git_sync, command(repository, root, **env)) as syncing:
        syncing.until(10, lambda: served(root) == old)
        time.sleep(2.5)
        new = repository.commit("new")
        syncing.until(10, lambda: served(root) == new)
        # Its time begins when it is replaced, not when it was made.
        assert (root / ".worktrees" / old).exists()
        syncing.until(10, lambda: [path.name for path in (root / ".worktrees").iterdir()] == [new])


def test_unreachable_server_keeps_the_checkout_and_is_tried_again(
    git_sync: Image, repository: Repository, root: Path
):
    away = repository.bare.with_name("away.git")
    with Container(git_sync, command(repository, root)) as syncing:
        syncing.until(10, lambda: served(root))
        before = served(root)
        repository.bare.rename(away)
        time.sleep(1)
        assert served(root) == before
        assert (root / "repo" / "a.py").read_text() == "first"
        away.rename(repository.bare)
        commit = repository.commit("back again")
        syncing.until(10, lambda: served(root) == commit)
        syncing.signal(signal.SIGTERM)
        _, log = syncing.wait(5)
    errors = [line for line in log.splitlines() if "ERROR" in line]
    # Said once, not every 200 ms.
    assert len(errors) == 1, log
    assert f"still serving {before}, next in 0.2 s: git fetch:" in errors[0]
    assert "dags.git" in errors[0]


def test_restart_takes_up_what_a_killed_one_left(
    git_sync: Image, repository: Repository, root: Path
):
    assert run(git_sync, command(repository, root, "--one-time")).returncode == 0
    first = served(root)
    commit = repository.commit("second")
    (root / ".git" / "shallow.lock").touch()
    half = root / ".worktrees" / f".{commit}"
    half.mkdir()
    (half / "rest").touch()
    for path in (root / ".git" / "shallow.lock", half, half / "rest"):
        os.chown(path, UID, 0)
    ended = run(git_sync, command(repository, root, "--one-time"))
    assert ended.returncode == 0, ended.stdout
    assert served(root) == commit != first
    assert not half.exists()


@pytest.fixture
def packed(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the number of objects (below 256) of each pack that the server makes."""
    counts, hook = tmp_path / "packed", tmp_path / "hook"
    counts.touch()
    hook.write_text(
        f"""#!/bin/sh
        "$@" > {tmp_path}/pack || exit 1
        od -An -j11 -N1 -tu1 {tmp_path}/pack >> {counts}
        cat {tmp_path}/pack
        """
    )
    hook.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(config.read_text() + f"[uploadpack]\n\tpackObjectsHook = {hook}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    return counts


@pytest.mark.parametrize("ref", ["live", "HEAD", "v1"])
@pytest.mark.parametrize("depth", ["0", "1", "2"])
def test_what_is_there_is_not_sent_again(
    repository: Repository, packed: Path, tmp_path: Path, ref: str, depth: str
):
    def tag(name: str) -> None:
        words = ["-c", "user.name=t", "-c", "user.email=t@example.org", "tag", "--force"]
        repository.git("-C", str(repository.bare), *words, "--annotate", "-m", name, "v1", "live")

    repository.commit("second")
    repository.commit("third")
    first = repository.commit("fourth")
    tag("one")
    env = {
        "GITSYNC_REPO": f"file://{repository.bare}",
        "GITSYNC_REF": ref,
        "GITSYNC_ROOT": str(tmp_path / "git"),
        "GITSYNC_DEPTH": depth,
    }
    checkout = Checkout(settings(env, []))
    assert [checkout.sync() for _ in range(3)] == [first] * 3
    (whole,) = map(int, packed.read_text().split())
    # A commit, its tree and a file that both names have; with the tag itself, one more.
    assert whole == (3 * (int(depth) or 4)) + (ref == "v1")
    new = repository.commit("fifth")
    tag("two")
    assert [checkout.sync() for _ in range(2)] == [new] * 2
    assert list(map(int, packed.read_text().split())) == [whole, 3 + (ref == "v1")]


def test_another_history_takes_the_place_of_the_one_before(
    repository: Repository, packed: Path, tmp_path: Path
):
    env = {"GITSYNC_REPO": f"file://{repository.bare}", "GITSYNC_REF": "live"}
    checkout = Checkout(settings(env | {"GITSYNC_ROOT": str(tmp_path / "git")}, []))
    old = [repository.commit("second"), repository.commit("third")]
    assert checkout.sync() == old[1]
    push = ["-C", str(repository.bare), "update-ref", "refs/heads/live"]
    repository.git(*push, old[0])  # back, to before what was fetched
    assert checkout.sync() == old[0]
    repository.git("-C", str(repository.work), "checkout", "--quiet", "--orphan", "other")
    other = [repository.commit(f"another {number}") for number in range(3)]
    assert checkout.sync() == other[-1]
    assert (checkout.link / "a.py").read_text() == "another 2"
    assert packed.read_text().split()[-1] == "9"
    # Where that fails, its end alone is fetched.
    away = repository.bare.rename(repository.bare.with_name("away.git"))
    with pytest.raises(SyncError):
        checkout.sync()
    away.rename(repository.bare)
    repository.git("-C", str(repository.work), "checkout", "--quiet", "--orphan", "third")
    last = [repository.commit(f"third {number}") for number in range(3)][-1]
    assert checkout.sync() == last
    assert packed.read_text().split()[-1] == "3"


@pytest.mark.parametrize("kind", ["tag", "commit", "HEAD"])
def test_ref_may_be_a_tag_or_a_commit(
    git_sync: Image, repository: Repository, root: Path, kind: str
):
    wanted = repository.commit("wanted")
    repository.git("-C", str(repository.bare), "tag", "--no-sign", "v1", "live")
    if kind != "HEAD":
        repository.commit("newer")
    ref = {"tag": "v1", "commit": wanted, "HEAD": "HEAD"}[kind]
    ended = run(git_sync, command(repository, root, "--one-time", GITSYNC_REF=ref))
    assert ended.returncode == 0, ended.stdout
    assert served(root) == wanted


def test_giving_up_is_asked_for_by_max_failures_and_hides_passwords(
    git_sync: Image, repository: Repository, root: Path
):
    env = {
        "GITSYNC_REPO": "http://user:geheim@127.0.0.1:9/dags.git",
        "GITSYNC_USERNAME": "user",
        "GITSYNC_PASSWORD": "geheim",
        "GITSYNC_MAX_FAILURES": "2",
    }
    ended = run(git_sync, command(repository, root, **env))
    assert ended.returncode == 1
    assert "giving up after 2 tries" in ended.stdout.splitlines()[-1]
    assert "http://***@127.0.0.1:9/dags.git" in ended.stdout
    assert "geheim" not in ended.stdout


def test_link_of_another_name_and_read_only_image(
    git_sync: Image, repository: Repository, root: Path
):
    once = command(repository, root, "--one-time", GITSYNC_LINK="")
    ended = run(git_sync, replace(once, read_only=True))
    assert ended.returncode == 0, ended.stdout
    assert (root / "dags" / "a.py").read_text() == "first"


@pytest.fixture
def nested(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """The repository, with a submodule that has one itself; both by relative addresses."""
    directory = repository.bare.parent
    config = directory / "gitconfig"
    # git refuses submodules on the same machine; the tests have no other.
    config.write_text(config.read_text() + '[protocol "file"]\n\tallow = always\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    (directory / "in").mkdir()
    (directory / "out").mkdir()
    inner, outer = Repository(directory / "in"), Repository(directory / "out")
    outer.submodule("../../in/dags.git", "inner")
    outer.commit("with inner")
    repository.submodule("../out/dags.git", "libs/outer")
    repository.commit("with outer")
    inner.commit("nobody asks for this yet")
    return repository


@pytest.mark.parametrize(
    ("value", "files"),
    [
        ("", {"libs/outer/a.py": "with inner", "libs/outer/inner/a.py": "first"}),
        ("shallow", {"libs/outer/a.py": "with inner"}),
        ("off", {}),
    ],
)
def test_submodules_are_checked_out(nested: Repository, tmp_path: Path, value: str, files: dict):
    env = {
        "GITSYNC_REPO": f"file://{nested.bare}",
        "GITSYNC_REF": "live",
        "GITSYNC_ROOT": str(tmp_path / "git"),
        "GITSYNC_SUBMODULES": value,
    }
    checkout = Checkout(settings(env, []))
    checkout.sync()
    # A commit that moves nothing but a submodule, in a repository that is there already.
    moved = nested.commit("moved on")
    assert checkout.sync() == moved
    tree = checkout.link.resolve()
    found = {
        str(path.relative_to(tree)): path.read_text() for path in (tree / "libs").rglob("a.py")
    }
    assert found == files
    assert (tree / "a.py").read_text() == "moved on"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5s", 5), ("100ms", 0.1), ("1m30s", 90), ("0.5h", 1800), ("7", 7), ("0", 0)],
)
def test_duration_is_gos(text: str, expected: float):
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "5 s", "s", "-5s", "5x", "1m30"])
def test_wrong_duration_is_refused(text: str):
    with pytest.raises(ValueError, match="no duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("env", "arguments", "message"),
    [
        ({}, [], "GITSYNC_REPO is not set"),
        ({"GITSYNC_REPO": "git@example.org:x.git"}, [], "no ssh"),
        ({"GITSYNC_REPO": "ssh://example.org/x.git"}, [], "no ssh"),
        ({"GITSYNC_REPO": "git://x/y", "GITSYNC_SSH": "true"}, [], "no ssh"),
        ({"GITSYNC_REPO": "git://x/y", "GITSYNC_PERIOD": "soon"}, [], "GITSYNC_PERIOD"),
        ({"GITSYNC_REPO": "git://x/y", "GITSYNC_DEPTH": "all"}, [], "GITSYNC_DEPTH"),
        ({"GITSYNC_REPO": "git://x/y", "GITSYNC_LINK": "../x"}, [], "GITSYNC_LINK"),
        ({"GITSYNC_REPO": "git://x/y", "GITSYNC_SUBMODULES": "yes"}, [], "GITSYNC_SUBMODULES"),
        ({"GITSYNC_REPO": "git://x/y"}, ["--once"], "--once"),
    ],
)
def test_wrong_setting_is_named(env: dict[str, str], arguments: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        settings(env, arguments)


def test_older_name_of_the_period_counts_as_the_chart_passes_it():
    env = {"GITSYNC_REPO": "git://x/y.git", "GIT_SYNC_WAIT": "3", "GITSYNC_PERIOD": "5s"}
    read = settings(env, [])
    assert (read.period, read.link, read.ref) == (3, "y", "HEAD")


class Host(HTTPServer):
    """Serves the repository over http to those who have the token."""

    token = "first-token"
    refused = 0

    def __init__(self, repository: Repository) -> None:
        super().__init__("127.0.0.1")
        self.served = repository.bare.parent
        self.expect_request(re.compile("/.*")).respond_with_handler(self.answer)

    def answer(self, request: Request) -> Response:
        login = request.authorization
        if not login or (login.username, login.password) != ("robot", self.token):
            self.refused += login is not None
            return Response(status=401, headers={"WWW-Authenticate": "Basic realm=git"})
        env = {
            "GIT_PROJECT_ROOT": str(self.served),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string.decode(),
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.content_type or "",
            "HTTP_GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"],
            input=request.get_data(),
            env=os.environ | env,
            capture_output=True,
            check=True,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        return Response(body, int(headers.pop("Status", "200").split()[0]), headers)


@pytest.fixture
def host(repository: Repository) -> Iterator[Host]:
    with Host(repository) as server:
        yield server


def test_a_token_is_rotated_and_nobody_loses_the_dags(
    git_sync: Image, repository: Repository, host: Host, root: Path
):
    """The page's way: the new token into the Secret, then a restart."""
    address = host.url_for("/dags.git")

    def with_token(token: str) -> Command:
        login = {"GITSYNC_USERNAME": "robot", "GITSYNC_PASSWORD": token}
        return command(repository, root, GITSYNC_REPO=address, **login)

    with Container(git_sync, with_token("first-token")) as old:
        old.until(SECONDS, lambda: served(root))
        first = served(root)
        host.token = "second-token"
        second = repository.commit("second")
        # Asked without success, it goes on with what it has.
        old.until(SECONDS, lambda: host.refused > 1)
        assert served(root) == first
        old.signal(signal.SIGTERM)
        _, log = old.wait(SECONDS)
    with Container(git_sync, with_token("second-token")) as new:
        new.until(SECONDS, lambda: served(root) == second)
    assert f"still serving {first}" in log
    assert "-token" not in log
