"""The hostile collection: on every rung that claims to hold it, each design is contained, named, and harms nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from asiarch_hpc.gate.checks.integrity import Integrity
from asiarch_hpc.gate.sandbox import Outcome, containment, probe, run_isolated
from asiarch_hpc.records import to_json
from tests.gate.conftest import sleepers
from tests.gate.hostile import HOSTILE
from tests.gate.toys import CONFIG, DEPTH, DIM, VOCAB, builder, codes, run_check

NEEDED = {"files", "modes", "reading", "signals", "processes", "network", "unix sockets"}
HOLDING = [name for name in ("bubblewrap", "namespaces", "landlock") if containment(name) >= NEEDED]
SMALL = dataclasses.replace(CONFIG, lengths=[1, 33], batch_sizes=[2], memory_gb=0.5, processes=6, file_megabytes=4.0)
SECRET = "s3cret-of-the-user"


@dataclass(frozen=True)
class Surroundings:
    """What a hostile design finds: other results, a home, services, and its own scratch folder."""

    results: Path
    home: Path
    scratch: Path
    tcp: socket.socket
    unix: socket.socket
    mark: str

    def fill(self, source: str) -> str:
        words = {
            "{results}": str(self.results),
            "{home}": str(self.home),
            "{tcp}": str(self.tcp.getsockname()[1]),
            "{unix}": self.unix.getsockname(),
            "{caller}": str(os.getpid()),
            "{mark}": self.mark,
            "{{": "{",
            "}}": "}",
        }
        for word, value in words.items():
            source = source.replace(word, value)
        return source

    def check_unharmed(self, before: str) -> None:
        assert fingerprint(self.results) == before
        assert list(self.scratch.iterdir()) == [], "files were left behind"
        assert sleepers(self.mark) == [], "a process was left behind"
        for service in (self.tcp, self.unix):
            service.setblocking(False)
            with pytest.raises(BlockingIOError):  # nobody has called
                service.accept()


def fingerprint(folder: Path) -> str:
    """Hash of names, contents, modes, owners and times beneath a folder."""
    lines = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        lines.append((str(path), content.hex(), status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ino))
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


@pytest.fixture(params=["bubblewrap", "namespaces", "landlock"])
def rung(request: pytest.FixtureRequest) -> str:
    reason = probe(request.param) or (
        "" if request.param in HOLDING else "it does not claim to hold all on this kernel"
    )
    if reason:
        pytest.skip(f"rung {request.param}: {reason}")
    return str(request.param)


@pytest.fixture
def around(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    results, home, scratch = (tmp_path / name for name in ("results", "home", "scratch"))
    for folder in (results / "other", home, scratch):
        folder.mkdir(parents=True)
    (results / "score.json").write_text(json.dumps({"fitness": 0.5, "by": SECRET}))
    (results / "other" / "evaluation.json").write_text("{}")
    (home / ".netrc").write_text(f"password {SECRET}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("API_TOKEN", SECRET)
    # Short names: an address of a local socket has at most 108 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="as-") as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(f"{folder}/service")
        unix.listen()
        yield Surroundings(results, home, scratch, tcp, unix, mark)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_designs_are_contained_and_named(name: str, rung: str, around: Surroundings) -> None:
    hostile = HOSTILE[name]
    before, ours = fingerprint(around.results), Integrity()
    config = dataclasses.replace(SMALL, sandbox=rung, timeout_s=2.0 if "sandbox.timeout" in hostile.codes else 20.0)
    if hostile.codes:
        report = run_check(around.fill(hostile.source), around.scratch, config=config)
        assert not report.passed, report
        assert codes(report) & hostile.codes, [(item.code, item.message) for item in report.findings]
        assert report.sandbox == rung
        assert SECRET not in json.dumps(to_json(report))
    if hostile.attempt or hostile.cause:
        outcome = build_isolated(around, hostile.source, rung)
        assert not hostile.attempt or any(hostile.attempt in line for line in outcome.attempts), outcome
        assert outcome.cause == hostile.cause or not hostile.cause, outcome
    around.check_unharmed(before)
    assert ours.changed() == []


def build_isolated(around: Surroundings, source: str, rung: str) -> Outcome:
    """Builds the design as a training does, in a scratch folder of its own."""
    build = builder(around.fill(source))
    with tempfile.TemporaryDirectory(dir=around.scratch) as scratch:
        return run_isolated(
            lambda: bool(build(DIM, DEPTH, VOCAB)),
            timeout_s=3.0,
            memory_gb=0.5,
            writable=[Path(scratch)],
            rung=rung,
            processes=6,
            file_gb=4 / 1024,
            files=500,
        )


def test_printing_much_is_named_and_bounded(rung: str, around: Surroundings) -> None:
    hostile = HOSTILE["prints gigabytes"]
    outcome = build_isolated(around, hostile.source, rung)
    assert outcome.cause == "timeout"
    assert outcome.output_bytes > 1 << 20
    assert len(outcome.output) <= 1 << 16


def test_honest_work_attempts_nothing(tmp_path: Path) -> None:
    def work() -> None:
        source = (
            "import collections, copy, dataclasses, functools, math, typing, warnings\nimport numpy, torch\n"
            "from torch import nn\nwarnings.warn('a message')\n"
            "@dataclasses.dataclass\nclass Sizes:\n    dim: int = 8\n"
            "Pair = collections.namedtuple('Pair', 'a b')\n"
            "model = copy.deepcopy(nn.MultiheadAttention(8, 2, batch_first=True))\n"
            "x = torch.randn(2, 5, 8)\nmodel(x, x, x)[0].sum().backward()\n"
        )
        sys.modules["design"] = module = types.ModuleType("design")
        warnings.simplefilter("default")
        exec(compile(source, "<design>", "exec"), vars(module))

    outcome = run_isolated(work, timeout_s=60.0, memory_gb=2.0, writable=[tmp_path])
    assert outcome.ok, outcome
    assert outcome.attempts == ()
