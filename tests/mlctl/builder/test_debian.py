from pathlib import Path

from mlctl.builder import debian

MIRROR = "http://mirror.example/debian/"


def test_sources_are_debians_own_of_the_suite():
    targets = "\n".join(
        [
            f"{MIRROR}|bookworm|main|Debian",
            f"{MIRROR}|bookworm|contrib|Debian",
            f"{MIRROR}|bookworm-updates|main|Debian",
            f"{MIRROR}|bookworm-backports|main|Debian Backports",
            "http://mirror.example/debian-security/|bookworm-security|main|Debian",
            "https://vendor.example/debian/|bookworm|main|Vendor",
        ]
    )
    assert debian.source_lines(targets, "bookworm") == [
        f"deb {MIRROR} bookworm main",
        f"deb {MIRROR} bookworm-updates main",
        "deb http://mirror.example/debian-security/ bookworm-security main",
    ]
    # Of another release than the machine's, from the same mirrors.
    assert debian.source_lines(targets, "trixie") == [
        f"deb {MIRROR} trixie main",
        f"deb {MIRROR} trixie-updates main",
        "deb http://mirror.example/debian-security/ trixie-security main",
    ]


def test_source_whose_lists_were_never_fetched_counts_by_its_place():
    # apt prints what it does not know as it was asked.
    targets = "\n".join(
        [
            f"{MIRROR}|bookworm|main|$(ORIGIN)",
            "https://vendor.example/apt/|bookworm|main|$(ORIGIN)",
        ]
    )
    assert debian.source_lines(targets, "bookworm") == [f"deb {MIRROR} bookworm main"]


def test_only_how_packages_are_reached_is_passed_on(monkeypatch):
    dump = """\
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::http::Proxy::mirror.example "DIRECT";
Acquire::https::CaInfo "/etc/company.crt";
Acquire::Check-Valid-Until "false";
Acquire::Changelogs::URI::Origin::Debian "https://changelogs.example";
APT::Install-Recommends "true";
DPkg::Post-Invoke:: "rm -rf /somewhere";
Dir::Cache "var/cache/apt";
"""
    monkeypatch.setattr(debian, "output", lambda command: dump)
    assert debian.host_settings() == "".join(dump.splitlines(keepends=True)[:4]) + (
        debian.BUILD_SETTINGS
    )


def test_downloads_of_a_build_are_kept_and_a_builds_cleaning_takes_only_its_own(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(debian, "APT_CACHE", tmp_path / "shared")
    monkeypatch.setattr(debian, "host_sources", lambda suite: [])
    monkeypatch.setattr(debian, "host_settings", lambda: "")
    fallback = tmp_path / "sources.list"
    fallback.write_text("deb http://mirror.example/debian bookworm main\n")

    first = debian.BuildApt(tmp_path / "first", "bookworm", fallback)
    (first.archives / "archives" / "partial").mkdir(parents=True)
    (first.archives / "archives" / "a_1_all.deb").write_bytes(b"a")
    (first.archives / "archives" / "lock").touch()
    (first.archives / "archives" / "partial" / "b_1_all.deb").write_bytes(b"half")
    (first.lists / "list").write_text("old")
    first.keep()
    (first.lists / "list").unlink()

    second = debian.BuildApt(tmp_path / "second", "bookworm", fallback)
    found = {p.relative_to(second.archives).as_posix() for p in second.archives.rglob("*.deb")}
    assert found == {"archives/a_1_all.deb"}
    assert not (second.archives / "archives" / "lock").exists()
    # apt replaces a list by renaming; the newer one is for the next build.
    fresh = second.lists / "fresh"
    fresh.write_text("new")
    fresh.rename(second.lists / "list")
    second.keep()
    third = debian.BuildApt(tmp_path / "third", "bookworm", fallback)
    assert (third.lists / "list").read_text() == "new"
    assert (second.etc / "sources.list").read_text() == fallback.read_text()
    # Keeping twice changes nothing and leaves no temporary name behind.
    second.keep()
    assert [path.name for path in (tmp_path / "shared" / "lists").iterdir()] == ["list"]
