"""Truth rules 1 and 2: trained weights get a score, everything else gets a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import evaluation_toy as toy
import pytest
import torch
from evaluation_toy import DIM, LENGTH, VOCAB, Bytes, Toy, from_bytes, run, texts, to_bytes, trained_weights
from torch import Tensor

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation import evaluate as module
from asiarch_hpc.records import Evaluation, from_json, to_json

QUICK = {"tasks": ["recall"], "questions": 5, "heldout_tokens": 2000}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    path.write_bytes(trained_weights())
    return path


@pytest.fixture(scope="module")
def scored(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return run(weights, tmp_path_factory.mktemp("tasks"))


def test_trained_weights_are_scored(scored: Evaluation, weights: Path) -> None:
    assert scored.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert scored.uniform_loss == pytest.approx(math.log(VOCAB))
    assert scored.untrained_loss == pytest.approx(math.log(VOCAB), rel=0.02)
    assert scored.loss < 0.8 * scored.untrained_loss
    # One token is one byte here.
    assert scored.bits_per_byte == pytest.approx(scored.loss / math.log(2))
    assert scored.untrained_bits_per_byte == pytest.approx(scored.untrained_loss / math.log(2))
    assert list(scored.tasks) == ["text_choice", "recall", "selective_copy", "line_completion"]
    for score in scored.tasks.values():
        assert score.questions == 20
        assert score.stderr == pytest.approx(math.sqrt(score.accuracy * (1 - score.accuracy) / 20))
        assert score.above_chance == (score.z > 1.645)
    assert scored.benchmark == pytest.approx(sum(score.accuracy for score in scored.tasks.values()) / 4)
    assert scored.harness.startswith("lm-eval 0.4.")
    assert from_json(Evaluation, to_json(scored)) == scored


def test_the_loss_is_that_of_the_text(scored: Evaluation, weights: Path) -> None:
    model, nats, tokens = from_bytes(weights.read_bytes()), 0.0, 0
    for text in module._measured_text(texts()[:6], Bytes(), 6000):
        ids = torch.tensor([256, *text.encode()])
        for start in range(0, len(ids) - 1, LENGTH):
            end = min(start + LENGTH, len(ids) - 1)
            first = max(0, end - LENGTH) if start else 0
            inputs = torch.cat([ids[:1], ids[first + 1 : end]])  # in mid-document too the end-of-text token is first
            with torch.no_grad():
                logits = model(inputs[None])[0, start - first :]
            nats += float(torch.nn.functional.cross_entropy(logits, ids[start + 1 : end + 1], reduction="sum"))
            tokens += end - start
    assert 6000 <= tokens < 8000
    assert scored.loss == pytest.approx(nats / tokens, rel=1e-5)


def test_the_loss_is_the_same_whatever_tasks_begin_with(scored: Evaluation, weights: Path, tmp_path: Path) -> None:
    assert (
        run(weights, tmp_path, changes={"begin_with_eos": False, **QUICK, "heldout_tokens": 6000}).loss == scored.loss
    )


def test_evaluating_again_gives_the_same(scored: Evaluation, weights: Path, tmp_path: Path) -> None:
    again = run(weights, tmp_path)
    assert dataclasses.replace(again, seconds=scored.seconds) == scored


def test_fresh_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(to_bytes(Toy(seed=5)))
    with pytest.raises(EvaluationError, match=r"not 10% below that of a uniform guess.*untrained or learned nothing"):
        run(path, tmp_path, changes=QUICK)


def test_a_server_that_ignores_the_weights_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="untrained or learned nothing"):
        run(weights, tmp_path, changes=QUICK, wrap=lambda _: Toy(seed=5).states)


def test_a_swapped_or_missing_file_is_refused(weights: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()
    other = tmp_path / "weights.pt"
    other.write_bytes(to_bytes(Toy(seed=5)))
    with pytest.raises(EvaluationError, match=f"weights.pt: sha256 .*training recorded {expected[:16]}"):
        run(other, tmp_path, sha256=expected)
    with pytest.raises(EvaluationError, match="cannot be read"):
        run(tmp_path / "absent.pt", tmp_path, sha256=expected)


def constant(value: float) -> Callable[[Toy], Callable[[Tensor], Tensor]]:
    return lambda _: lambda ids: torch.full((*ids.shape, DIM), value)


def shifted(toy: Toy) -> Callable[[Tensor], Tensor]:
    """Reads the next token, and knows the head: it sees the answers."""
    away = torch.linalg.pinv(toy.head.weight.detach()).T
    return lambda ids: 9 * away[ids.roll(-1, 1)]


def mixing_rows(toy: Toy) -> Callable[[Tensor], Tensor]:
    return lambda ids: toy.states(ids) + toy.states(ids).mean(0, keepdim=True)


def by_row(toy: Toy) -> Callable[[Tensor], Tensor]:
    return lambda ids: toy.states(ids) * (1 + torch.arange(len(ids))[:, None, None])


def random_in_evaluation(toy: Toy) -> Callable[[Tensor], Tensor]:
    return lambda ids: toy.states(ids) + torch.randn(*ids.shape, DIM)


def dying(toy: Toy) -> Callable[[Tensor], Tensor]:
    return lambda ids: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[arg-type, return-value]


def hanging(toy: Toy) -> Callable[[Tensor], Tensor]:
    return lambda ids: time.sleep(600)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (constant(math.nan), "not finite"),
        (constant(0.0), "not 10% below that of a uniform guess"),
        (shifted, "sees the answers"),
        (mixing_rows, "mixes rows"),
        (by_row, "mixes rows"),
        (random_in_evaluation, "random in evaluation"),
        (lambda toy: lambda ids: toy.states(ids)[..., :-1], r"states of shape .*expected \[8, 96, 32\]"),
        (dying, "killed by SIGKILL"),
        (hanging, "did not finish"),
    ],
)
def test_a_model_that_cannot_be_believed_is_refused(
    weights: Path, tmp_path: Path, wrap: Callable[[Toy], Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        run(weights, tmp_path, changes=QUICK, wrap=wrap, timeout_s=3.0)


def test_a_loss_must_lie_below_every_limit() -> None:
    check = module._check_trained
    check(4.4, {"one": 5.0, "other": 5.0}, 0.1)
    for loss, one, other in [(4.6, 5.0, 9.0), (4.6, 9.0, 5.0), (math.nan, 5.0, 5.0), (4.0, math.nan, 5.0)]:
        with pytest.raises(EvaluationError, match="they get no score"):
            check(loss, {"one": one, "other": other}, 0.1)


def test_no_task_and_no_text_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"evaluation\.tasks is empty"):
        run(weights, tmp_path, changes={"tasks": []})
    with pytest.raises(EvaluationError, match="hold no text"):
        module._measured_text(["", ""], Bytes(), 100)


def test_measured_text_is_spread_over_the_documents() -> None:
    documents = ["a" * 5000, "b" * 100, "", "c" * 9000]
    assert [text[:1] for text in module._measured_text(documents, Bytes(), 5000)] == ["a", "b", "c"]
    assert sum(map(len, module._measured_text(documents, Bytes(), 5000))) == 6100
    assert sum(map(len, module._measured_text(documents, Bytes(), 10**9))) == 14100


# In a process of its own, because lm-eval reads HOME when it is imported.
OFFLINE = """
import pathlib, socket, sys
import evaluation_toy

def refuse(*args, **options):
    raise AssertionError(f"network: {args}")

socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = refuse
serve = evaluation_toy.serve

def early(content, **options):
    assert "lm_eval" not in sys.modules, "the model's process must be forked before lm-eval is imported"
    return serve(content, **options)

evaluation_toy.serve = early
assert "lm_eval" not in sys.modules
evaluation_toy.run(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
assert "lm_eval" in sys.modules
"""


def test_it_is_offline_silent_and_leaves_nothing_behind(weights: Path, tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    root, here = str(Path(__file__).parents[2]), str(Path(__file__).parent)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_", "TQDM"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, str(weights), str(tmp_path / "tasks")],
        env={**kept, "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join([root, here])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []
    assert list(temporary.iterdir()) == []


COMPUTING = """
import functools, sys, torch, evaluation_toy as toy
from pathlib import Path

def compute():
    return torch.ones(1 << 22).add_(1)  # so much that all threads take part

def serve_states(*arguments, serve=toy.serve_states, **options):
    compute()  # as loading a large embedding does, between the forks of two children
    return serve(*arguments, **{**options, "threads": 2, "timeout_s": 30.0})

toy.serve_states = serve_states
compute()
changes = {"tasks": ["recall"], "questions": 5, "heldout_tokens": 2000}
found = toy.run(Path(sys.argv[1]), Path(sys.argv[2]), changes=changes,
                wrap=lambda model: lambda ids: model.states(ids) + compute()[0] - 2)
print(found.loss, torch.get_num_threads())
"""


def test_a_process_of_several_threads_may_compute_before_it_forks(weights: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", COMPUTING, str(weights), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-800:]
    loss, threads = ran.stdout.split()
    assert (float(loss) > 0, threads) == (True, "2")


def test_it_computes_with_the_threads_that_it_is_given(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, computing, encoding = torch.get_num_threads(), set(), set()
    texts, encode = toy.texts, Bytes.encode_batch

    def heldout() -> list[str]:
        computing.add(torch.get_num_threads())
        return texts()

    def encode_batch(self: Bytes, asked: Sequence[str], threads: int = 1) -> list[list[int]]:
        encoding.add(threads)
        return encode(self, asked)

    monkeypatch.setattr(toy, "texts", heldout)
    monkeypatch.setattr(Bytes, "encode_batch", encode_batch)
    run(weights, tmp_path, changes=QUICK, threads=3)
    assert (computing, encoding) == ({3}, {3})
    assert torch.get_num_threads() == before
