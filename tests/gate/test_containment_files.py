"""Which files a child can read, write and change, on every rung that claims to hold it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.gate.sandbox import Outcome
from tests.gate.conftest import require, succeeds

ROOT = Path(__file__).resolve().parents[2]


def test_folder_of_its_own_is_home_and_temporary_folder(run: Callable[..., Outcome], tmp_path: Path) -> None:
    def work() -> str:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
            return str(Path(file.name).parent)

    assert run(work).result == str(tmp_path / "inside")


def test_file_size_is_limited(run: Callable[..., Outcome], tmp_path: Path) -> None:
    def work() -> None:
        with (tmp_path / "inside" / "large").open("wb") as file:
            for _ in range(64):
                file.write(b"x" * (1 << 20))

    outcome = run(work, file_gb=8 / 1024)
    assert outcome.cause == "exception"
    assert (tmp_path / "inside" / "large").stat().st_size <= 8 << 20


def test_writes_outside(run: Callable[..., Outcome], rung: str, tmp_path: Path) -> None:
    require(rung, "files")
    kept = tmp_path / "kept"
    kept.write_text("mine")
    attempts: list[Callable[[], Any]] = [
        lambda: (tmp_path / "new").write_text("x"),
        lambda: kept.write_text("x"),
        lambda: os.truncate(kept, 0),
        lambda: kept.unlink(),
        lambda: kept.rename(tmp_path / "inside" / "stolen"),
        lambda: os.mkdir(tmp_path / "folder"),
        lambda: os.symlink(kept, tmp_path / "link"),
        lambda: os.link(kept, tmp_path / "inside" / "hard"),
        lambda: Path("/dev/shm/asiarch-escape").write_text("x"),
    ]

    def work() -> list[int]:
        succeeded = []
        for number, attempt in enumerate(attempts):
            try:
                attempt()
                succeeded.append(number)
            except OSError:
                pass
        (tmp_path / "inside" / "allowed").write_text("x")
        Path("/dev/null").write_text("x")
        return succeeded

    outcome = run(work)
    assert outcome.result == [], outcome
    assert kept.read_text() == "mine"


def test_only_what_it_needs_can_be_read(
    run: Callable[..., Outcome], rung: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(rung, "reading")
    home = tmp_path / "home"
    for name in (".ssh/id_ed25519", ".netrc", ".aws/credentials", ".cache/huggingface/token"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    given, other = tmp_path / "corpus", tmp_path / "another-run"
    for folder in (given, other):
        folder.mkdir()
        (folder / "data").write_text("text")
    secrets = [*home.rglob("*"), other / "data", ROOT / "Makefile", ROOT / "results" / "README.md"]
    secrets += [Path(f"/proc/{os.getpid()}/environ"), Path("/etc/shadow"), Path("/etc/hostname"), Path("/run")]

    def read(path: Path) -> object:
        return sorted(path.iterdir()) if path.is_dir() else path.read_bytes()

    def work() -> list[Any]:
        readable = [str(path) for path in secrets if succeeds(functools.partial(read, path))]
        return [readable, (given / "data").read_text(), succeeds(lambda: (given / "data").write_text("x"))]

    assert run(work, readable=[given]).result == [[], "text", False]
    assert run(lambda: succeeds(lambda: read(given / "data"))).result is False


def test_symbolic_links_on_the_way_are_seen(run: Callable[..., Outcome], tmp_path: Path) -> None:
    real = tmp_path / "disk" / "data"
    real.mkdir(parents=True)
    (real / "text").write_text("text")
    (tmp_path / "link").symlink_to("disk")
    linked = tmp_path / "link" / "data"
    assert run(lambda: (linked / "text").read_text(), readable=[linked]).result == "text"


def test_a_single_file_may_be_writable(run: Callable[..., Outcome], rung: str, tmp_path: Path) -> None:
    require(rung, "files")
    (tmp_path / "rows").write_text("")
    (tmp_path / "score").write_text("1")

    def work() -> bool:
        with (tmp_path / "rows").open("a") as file:
            file.write("row")
        attempts = (lambda: (tmp_path / "score").write_text("9"), lambda: (tmp_path / "rows").unlink())
        return any(succeeds(attempt) for attempt in attempts)

    assert run(work, writable=[tmp_path / "inside", tmp_path / "rows"]).result is False
    assert ((tmp_path / "rows").read_text(), (tmp_path / "score").read_text()) == ("row", "1")


def test_modes_owners_and_times(run: Callable[..., Outcome], rung: str, tmp_path: Path) -> None:
    require(rung, "modes")
    kept = tmp_path / "kept"
    kept.write_text("mine")
    before = kept.stat()
    attempts: list[Callable[[], Any]] = [
        lambda: os.chmod(kept, 0o777),
        lambda: os.chown(kept, os.getuid(), os.getgid()),
        lambda: os.utime(kept, (1, 1)),
        lambda: os.setxattr(kept, "user.x", b"x"),
    ]
    assert run(lambda: any(succeeds(attempt) for attempt in attempts)).result is False
    after = kept.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


@pytest.mark.parametrize("flood", ["bytes", "entries", "locked"])
def test_a_full_disk(run: Callable[..., Outcome], tmp_path: Path, flood: str) -> None:
    inside = tmp_path / "inside"

    def work() -> None:
        if flood == "locked":
            (inside / "hidden").mkdir()
            os.chmod(inside / "hidden", 0)
            time.sleep(600)
        for number in range(100_000):
            (inside / str(number)).write_bytes(b"x" * (1 << 20 if flood == "bytes" else 0))
        time.sleep(600)

    if flood == "locked" and os.getuid() == 0:
        pytest.skip("root can list every folder")
    outcome = run(work, file_gb=2 / 1024, disk_gb=16 / 1024, files=300)
    # Where modes cannot be changed, locking a folder is an error of the design.
    assert outcome.cause in (("output", "exception") if flood == "locked" else ("output",)), outcome
