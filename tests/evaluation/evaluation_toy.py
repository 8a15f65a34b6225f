"""A real, tiny language model over bytes, its training, and an evaluation of it; shared by the evaluation's tests."""

from __future__ import annotations

import functools
import hashlib
import io
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asiarch_hpc.config import EvaluationConfig
from asiarch_hpc.evaluation.evaluate import evaluate
from asiarch_hpc.evaluation.process import serve_states
from asiarch_hpc.evaluation.scoring import ServedModel
from asiarch_hpc.records import Evaluation

VOCAB = 257
DIM = 32
LENGTH = 96
_NAMES = "argparse ast copy csv enum glob heapq pprint shlex textwrap queue fractions"
MODULES = _NAMES.split()


class Bytes:
    """UTF-8 bytes, and 256 as the end-of-text token."""

    eos = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class Toy(nn.Module):
    """One causal convolution of width 4 and one gated layer."""

    def __init__(self, seed: int = 0, dim: int = DIM) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCAB, dim)
        self.conv = nn.Conv1d(dim, dim, 4)
        self.head = nn.Linear(dim, VOCAB)
        nn.init.normal_(self.head.weight, std=0.02)

    def states(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        return torch.relu(self.conv(nn.functional.pad(x, (3, 0)))).transpose(1, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.states(ids))


class InProcess:
    """A model's blocks in this process; what a served one is, without the fork."""

    def __init__(self, states: Callable[[Tensor], Tensor]) -> None:
        self._function = states

    def submit(self, ids: Tensor) -> None:
        self._ids = ids

    def collect(self) -> Tensor:
        with torch.no_grad():
            return self._function(self._ids)


def texts() -> list[str]:
    """Real text: a few modules of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    return [(library / f"{name}.py").read_text(encoding="utf-8") for name in MODULES]


def trained_weights(steps: int = 120) -> bytes:
    ids = torch.tensor(Bytes().encode("".join(texts()[6:])))
    model, generator = Toy(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - LENGTH - 1, (16,), generator=generator)
        rows = torch.stack([ids[s : s + LENGTH + 1] for s in starts.tolist()])
        loss = nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return to_bytes(model)


def to_bytes(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def from_bytes(content: bytes | None) -> Toy:
    model = Toy(seed=1)
    if content is not None:
        model.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return model.eval()


@contextmanager
def serve(
    content: bytes | None,
    *,
    wrap: Callable[[Toy], Callable[[Tensor], Any]] = lambda model: model.states,
    timeout_s: float = 60,
) -> Iterator[ServedModel]:
    """A child with the toy; `wrap` turns the trained model, not the fresh one, into misbehaving blocks."""
    model = from_bytes(content)

    def load() -> Callable[[Tensor], Tensor]:
        return model.states if content is None else wrap(model)

    with serve_states(load, dim=DIM, vocab=VOCAB, max_tokens=8 * LENGTH, timeout_s=timeout_s) as states:
        yield ServedModel([states], torch.no_grad()(model.head), rows=100)


def config(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(
        **{
            "tasks": ["text_choice", "recall", "selective_copy", "line_completion"],
            "questions": 20,
            "heldout_tokens": 6000,
            "untrained_tokens": 2000,
            "batch_size": 8,
            **changes,
        }
    )


def run(
    weights: Path, folder: Path, *, sha256: str | None = None, changes: Any = None, threads: int = 1, **options: Any
) -> Evaluation:
    """Evaluates the toy's weights on the first six texts; `options` go to `serve`."""
    return evaluate(
        experiment="3fa9c1",
        trial="explore-s0",
        attempt="0",
        weights=weights,
        expected_sha256=sha256 or hashlib.sha256(weights.read_bytes()).hexdigest(),
        serve=functools.partial(serve, **options),
        tokenizer=Bytes(),
        vocab=VOCAB,
        heldout_texts=lambda: texts()[:6],
        config=config(**(changes or {})),
        task_folder=folder,
        max_length=LENGTH,
        clock=time.monotonic,
        threads=threads,
    )
