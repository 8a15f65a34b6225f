"""The model's process: same numbers as in this one, and a clear end to everything that it can do wrong."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation import process
from asiarch_hpc.evaluation.process import ServedStates, serve_states
from asiarch_hpc.gate.sandbox import RUNGS, confine_process, probe

VOCAB = 11
DIM = 11
IDS = torch.arange(6).view(2, 3)


def plain(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids, DIM).float() * 3 - 1


@contextlib.contextmanager
def serving(model: Callable[[Tensor], Any], **options: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    sizes = {"dim": DIM, "vocab": VOCAB, "max_tokens": 32, "timeout_s": 30.0}
    with serve_states(lambda: model, **{**sizes, **options}) as served:
        yield functools.partial(ask, served)


def ask(served: ServedStates, ids: Tensor) -> Tensor:
    served.submit(ids)
    return served.collect()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def await_end(pid: int) -> bool:
    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_alive(pid)


def pid_model(ids: Tensor) -> Tensor:
    """Tells its process id and its parent's in the states, in three digits of base 1000."""
    out = torch.zeros(*ids.shape, DIM)
    out[0, 0, :2] = torch.tensor([float(os.getpid()), float(os.getppid())])
    return out


def test_states_are_those_of_the_model_for_any_shape_and_type() -> None:
    with serving(plain) as states:
        for shape in ((1, 1), (2, 3), (4, 8), (32, 1)):
            ids = torch.randint(0, VOCAB, shape)
            assert torch.equal(states(ids), plain(ids))
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        values = torch.randn(*IDS.shape, DIM).to(kind)

        def model(ids: Tensor, values: Tensor = values) -> Tensor:
            return values.transpose(0, 1).contiguous().transpose(0, 1)

        with serving(model) as states:
            found = states(IDS)
            assert found.dtype == (kind if kind == torch.bfloat16 else torch.float32)
            assert torch.equal(found, values.to(found.dtype))


def test_the_model_runs_in_a_child_that_ends_with_the_block() -> None:
    with serving(pid_model) as states:
        child, parent = (int(value) for value in states(IDS)[0, 0, :2])
        assert parent == os.getpid() != child
        assert is_alive(child)
    assert not is_alive(child)
    with pytest.raises(ChildProcessError):  # reaped
        os.waitpid(child, os.WNOHANG)


def test_isolation_comes_before_loading() -> None:
    order: list[str] = []

    def load() -> Callable[[Tensor], Tensor]:
        order.append("load")
        return lambda ids: plain(ids) + (100 if order == ["isolate", "load"] else 0)

    with serve_states(
        load, dim=DIM, vocab=VOCAB, max_tokens=32, timeout_s=30, isolate=lambda: order.append("isolate")
    ) as states:
        assert float(ask(states, IDS).min()) == 99
    assert order == []  # this process did neither


@pytest.mark.parametrize("rung", RUNGS)
def test_an_isolated_child_may_have_several_threads(rung: str, tmp_path: Path) -> None:
    if missing := probe(rung):
        pytest.skip(missing)
    isolate = functools.partial(confine_process, memory_gb=2.0, writable=[tmp_path], rung=rung, threads=2)
    with serving(lambda ids: plain(ids) + torch.get_num_threads(), isolate=isolate, threads=2) as states:
        assert torch.equal(states(IDS), plain(IDS) + 2)


def test_the_child_holds_no_file_handler_or_gradient_of_the_parent(tmp_path: Path) -> None:
    def probe(ids: Tensor) -> Tensor:
        out = torch.zeros(*ids.shape, DIM)
        out[0, 0, 0] = sum(int(name) > 2 for name in os.listdir("/proc/self/fd"))
        out[0, 0, 1] = signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
        out[0, 0, 2] = torch.is_grad_enabled()
        out[0, 0, 3] = len(os.read(0, 1))
        out[0, 0, 4] = os.getpgid(0) == os.getpid()
        return out

    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with (tmp_path / "journal").open("w") as file, serving(probe) as states:
            assert not file.closed
            # Its channel, and the folder being listed.
            assert states(IDS)[0, 0, :5].tolist() == [2, 1, 0, 0, 1]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_type_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = process._REPLY.pack(0, len(process._TYPES), 3, 2, 3, DIM, *[0] * 5)
    with serving(plain) as states:
        states(IDS)
        monkeypatch.setattr(ServedStates, "_await", lambda *_: forged)
        with pytest.raises(EvaluationError, match="type 2"):
            states(IDS)


def channel() -> socket.socket:
    """The child's own, as its code can find it."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found = socket.socket(fileno=int(name))
            if found.type == socket.SOCK_SEQPACKET:
                return found
            found.detach()
    raise AssertionError


def test_an_answer_before_its_question_is_refused() -> None:
    def model(ids: Tensor) -> Tensor:
        found = channel()
        found.send(process._REPLY.pack(0, 0, 3, 2, 3, DIM, *[0] * 5))
        found.detach()
        return plain(ids)

    with serving(model) as states:
        states(IDS)
        time.sleep(0.5)  # it has sent its second answer
        with pytest.raises(EvaluationError, match="answers what it was not asked"):
            states(IDS)


def test_a_child_that_does_not_read_does_not_keep_this_process() -> None:
    with serving(plain) as states:
        states(IDS)
        served: ServedStates = states.args[0]  # type: ignore[attr-defined]
        with contextlib.suppress(BlockingIOError):
            os.kill(served._pid, signal.SIGSTOP)
            while True:  # as many requests as it leaves unread
                served._channel.send(b"unread", socket.MSG_DONTWAIT)
        with pytest.raises(EvaluationError, match="does not read"):
            states(IDS)


def wrong_shape(ids: Tensor) -> Tensor:
    return plain(ids)[:, :-1]


def too_large(ids: Tensor) -> Tensor:
    return torch.zeros(ids.shape[0], 1000, DIM)


def not_finite(value: float) -> Callable[[Tensor], Tensor]:
    def model(ids: Tensor) -> Tensor:
        out = plain(ids)
        out[-1, -1, -1] = value
        return out

    return model


def raising(ids: Tensor) -> Tensor:
    raise ValueError("found 3 heads\x1b[31m\nexpected 4")


def exiting(ids: Tensor) -> Tensor:
    raise SystemExit(0)


def killing(ids: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return plain(ids)


def killing_without_a_name(ids: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGRTMIN + 6)
    return plain(ids)


def leaving(ids: Tensor) -> Tensor:
    os._exit(7)


def leaving_a_child(ids: Tensor) -> Tensor:
    """Ends while a process of its own holds the channel open."""
    if os.fork() == 0:
        time.sleep(60)
    os._exit(3)


def closing(ids: Tensor) -> Tensor:
    os.closerange(3, 1000)
    time.sleep(60)
    return plain(ids)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (wrong_shape, r"states of shape \[2, 2, 11\] for ids \[2, 3\], expected \[2, 3, 11\]"),
        (too_large, r"states of shape \[2, 1000, 11\]"),
        (lambda ids: (plain(ids), None), "gave tuple, expected floating-point hidden states"),
        (lambda ids: ids, "gave torch.int64 of 2 dimensions"),
        (not_finite(math.nan), "not finite"),
        (not_finite(math.inf), "not finite"),
        (raising, r"running the model on ids \[2, 3\] failed: ValueError: found 3 heads \[31m expected 4 \(test_eval"),
        (exiting, "failed: SystemExit: 0"),
        (killing, "killed by SIGKILL"),
        (killing_without_a_name, f"killed by signal {signal.SIGRTMIN + 6}"),
        (leaving, "ended while running the model .*: exit code 7"),
        (leaving_a_child, "exit code 3"),
        (closing, "closed its channel"),
    ],
)
def test_a_model_that_misbehaves_gives_one_clear_error(model: Callable[[Tensor], Any], message: str) -> None:
    with serving(model) as states:
        with pytest.raises(EvaluationError, match=message):
            states(IDS)
        with pytest.raises(EvaluationError, match=message):  # and goes on giving it
            states(IDS)


def test_large_but_finite_states_are_accepted() -> None:
    with serving(lambda ids: torch.full((*ids.shape, DIM), 3e38)) as states:
        assert float(states(IDS).max()) == pytest.approx(3e38)


def test_loading_that_fails_is_told() -> None:
    def load() -> Callable[[Tensor], Tensor]:
        raise RuntimeError("unexpected key blocks.0")

    with (
        serve_states(load, dim=DIM, vocab=VOCAB, max_tokens=32, timeout_s=30) as states,
        pytest.raises(EvaluationError, match="loading the model failed: RuntimeError: unexpected key"),
    ):
        ask(states, IDS)


def test_a_hang_ends_at_the_time_limit_and_the_child_is_killed(tmp_path: Path) -> None:
    def hang(ids: Tensor) -> Tensor:
        (tmp_path / "pid").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        return plain(ids)

    started = time.monotonic()
    with serving(hang, timeout_s=1.0) as states, pytest.raises(EvaluationError, match=r"within 1 s.*timeout_s"):
        states(IDS)
    assert time.monotonic() - started < 20
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_processes_that_the_model_started_end_too(tmp_path: Path) -> None:
    def spawning(ids: Tensor) -> Tensor:
        other = subprocess.Popen(["sleep", "600"])
        (tmp_path / "pid").write_text(str(other.pid))
        return plain(ids)

    with serving(spawning) as states:
        states(IDS)
    assert await_end(int((tmp_path / "pid").read_text()))


def test_the_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal, time
from asiarch_hpc.evaluation.process import serve_states
told = pathlib.Path({str(tmp_path / "pid")!r})
def load():  # busy, so that the closed channel does not tell it
    told.write_text(str(os.getpid()))
    time.sleep(600)
with serve_states(load, dim=3, vocab=3, max_tokens=8, timeout_s=60):
    while not (told.exists() and told.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert await_end(int((tmp_path / "pid").read_text()))


def test_ids_that_do_not_fit_are_our_own_fault() -> None:
    with serving(plain) as states:
        with pytest.raises(AssertionError, match="exceed 32 tokens"):
            states(torch.zeros(5, 7, dtype=torch.int64))
        with pytest.raises(AssertionError, match="outside the vocabulary"):
            states(torch.full((1, 1), VOCAB))
