"""A tiny causal design, a tiny scale and a tiny corpus for real trainings in milliseconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from asiarch_hpc.config import DataConfig, ScaleConfig
from asiarch_hpc.training.corpus import Corpus, open_corpus, prepare

# Mean of all tokens so far, gated; dropout makes the training depend on the random state.
TINY_SOURCE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads, layer_idx=0, device=None, dtype=None):
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, X, **Z):
        h = self.norm(X)
        count = torch.arange(1, X.shape[1] + 1, device=X.device).view(1, -1, 1)
        mean = h.cumsum(1) / count
        return X + self.out(self.dropout(mean * torch.sigmoid(self.gate(h)))), Z
"""

# The same, within documents where it is told of them.
ASKING_SOURCE = TINY_SOURCE.replace(
    "        return X +",
    """        documents = Z.get("documents")
        if documents is not None:
            own = (documents[:, :, None] == documents[:, None]).tril().to(h.dtype)
            mean = own @ h / own.sum(-1, keepdim=True)
        return X +""",
)


def recall_texts(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(5):
        pairs = [(rng.choice("abcd"), rng.choice("wxyz")) for _ in range(4)]
        yield "recall " + " ".join(a + b for a, b in pairs)


def write_texts(folder: Path, count: int = 60) -> Path:
    """Text files of different lengths, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    words = ["tree", "river", "stone", "cloud", "light", "paper", "the", "of", "and", "runs"]
    for i in range(count):
        text = " ".join(rng.choice(words) for _ in range(5 + 13 * (i % 7)))
        (folder / f"{i:03}.txt").write_text(f"document {i}: {text}.\n")
    return folder


@pytest.fixture(scope="session")
def data_config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = write_texts(tmp_path_factory.mktemp("texts"))
    return DataConfig(source="text", paths=[str(folder)], tokenizer="bytes", heldout_fraction=0.2)


@pytest.fixture(scope="session")
def corpus(data_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_corpus(prepare(data_config, root=tmp_path_factory.mktemp("corpora"), synthetic=recall_texts))


@pytest.fixture
def recall() -> Callable[[int], Iterable[str]]:
    return recall_texts


@pytest.fixture
def make_texts() -> Callable[[Path], Path]:
    return write_texts


@pytest.fixture
def source() -> str:
    return TINY_SOURCE


@pytest.fixture
def asking() -> str:
    """As `source`, but for keeping documents apart."""
    return ASKING_SOURCE


@pytest.fixture
def scale() -> ScaleConfig:
    return ScaleConfig(
        name="tiny",
        dim=16,
        depth=2,
        heads=2,
        length=32,
        batch_size=4,
        steps=30,
        learning_rate=1e-2,
        warmup_steps=3,
        device="cpu",
        checkpoint_seconds=1e9,
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository; see its own README for what it is."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder at ../shared/data of the repository ({folder})")
    return folder
