"""Atomic files, the journal and the lease, with real processes, real kills and a really full disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import LeaseError, RecordError, StoreError
from asiarch_hpc.store.files import create_json, move_aside, read_json, write_json
from asiarch_hpc.store.journal import Journal, read_events
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.store.lease import live_holder, take_lease

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
EVENTS = st.lists(st.fixed_dictionaries({"event": st.text(min_size=1), "data": JSON}), max_size=8)


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, data: object) -> None:
    path = tmp_path_factory.mktemp("json") / "deep" / "file.json"
    write_json(path, data)
    assert read_json(path) == data
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_create_is_exclusive(tmp_path: Path) -> None:
    assert create_json(tmp_path / "a.json", 1)
    assert not create_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1


def test_a_truncated_record_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    path.write_text('{"fitness": 0.')
    with pytest.raises(RecordError, match=r"score\.json.*truncated"):
        read_json(path)
    assert move_aside(path).name == "score.json.damaged-1"
    path.write_text("{")
    assert move_aside(path).name == "score.json.damaged-2"


@settings(deadline=None, max_examples=50)
@given(EVENTS, EVENTS, st.integers(1, 30))
def test_journal_keeps_whole_lines_and_drops_a_torn_one(
    tmp_path_factory: pytest.TempPathFactory, first: list[dict[str, object]], more: list[dict[str, object]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    Journal(path).append(*first)
    torn = json.dumps({"event": "torn", "data": "x" * 20})[:cut]
    with path.open("a") as file:
        file.write(torn)
    assert list(read_events(path)) == first
    Journal(path).append(*more)
    assert list(read_events(path)) == first + more


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "a"}\n{"eve\n{"event": "b"}\n')
    with pytest.raises(RecordError, match="line 2"):
        list(read_events(path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_and_corrupts_nothing(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal.jsonl")
    journal.append({"event": "first"})
    write_json(small_disk / "record.json", {"version": 1})
    with pytest.raises(StoreError, match="free some space"):
        for _ in range(100):
            journal.append({"event": "filler", "data": "x" * 4000})
    with pytest.raises(StoreError, match="free some space"):
        write_json(small_disk / "record.json", {"version": 2, "data": "x" * 70_000})
    events = list(read_events(small_disk / "journal.jsonl"))
    assert events[0] == {"event": "first"}
    assert all(e["event"] == "filler" for e in events[1:])
    assert read_json(small_disk / "record.json") == {"version": 1}
    assert sorted(p.name for p in small_disk.iterdir()) == ["journal.jsonl", "record.json"]


def _write_for_ever(path: Path) -> None:
    number = 0
    while True:
        number += 1
        write_json(path, {"number": number, "padding": "x" * 5000})


def test_readers_never_see_a_part_and_a_kill_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
    writer.start()
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(200):
        assert len(read_json(path)["padding"]) == 5000
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert len(read_json(path)["padding"]) == 5000


HOLD = """
import sys, time
from pathlib import Path
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.store.lease import take_lease
take_lease(RunLayout(Path(sys.argv[1])), stale_seconds=90)
print("held", flush=True)
time.sleep(120)
"""


def test_a_live_lease_is_refused_and_a_dead_one_taken_over(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(layout.root)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError, match=rf"pid {holder.pid}, seen \d+ s ago"):
            take_lease(layout, stale_seconds=90)
        holder.kill()
        holder.wait()
    lease = take_lease(layout, stale_seconds=90)
    assert lease.epoch == 2
    lease.refresh()
    lease.release()
    assert live_holder(layout, 2) == ""
    assert take_lease(layout, stale_seconds=90).epoch == 3


def test_of_many_controllers_started_at_once_one_gets_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    refused = []
    deadline = time.monotonic() + 60
    while len(refused) < 5 and time.monotonic() < deadline:
        refused = [p for p in starters if p.poll() is not None]
        time.sleep(0.02)
    winners = [p for p in starters if p.poll() is None]
    assert len(winners) == 1
    for starter in starters:
        starter.kill()
        _, errors = starter.communicate()
        assert starter in winners or b"LeaseError" in errors


def test_a_lease_of_another_host_is_stale_by_its_age(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    held = {"host": "elsewhere", "pid": 1, "process_started": "1", "boot": "b", "slurm_job": "7", "released": False}
    write_json(layout.lease(1), held)
    with pytest.raises(LeaseError, match="on elsewhere with pid 1 in Slurm job 7"):
        take_lease(layout, stale_seconds=90)
    old = time.time() - 100
    os.utime(layout.lease(1), (old, old))
    assert take_lease(layout, stale_seconds=90).epoch == 2
