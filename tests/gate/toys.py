"""A small language model with exchangeable blocks, and designs for it: sound, defective, hostile."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.gate.check import check
from asiarch_hpc.gate.checks.measure import measure
from asiarch_hpc.gate.checks.subject import Specimen, Subject
from asiarch_hpc.records import GateReport

VOCAB, DIM, DEPTH, LENGTH = 48, 16, 2, 64
CONFIG = GateConfig(
    timeout_s=60.0,
    lengths=[1, 33, LENGTH],
    causality_length=130,
    far_length=0,
    exponent_lengths=[64, 128, 256],
    learn_steps=4,
)


class ToyModel(nn.Module):
    """Embedding, blocks, LayerNorm, head; a block is `(X [batch, length, dim], **Z) -> (X, Z)`, with documents in Z
    where it asks for them."""

    def __init__(
        self, block: Callable[..., nn.Module], dim: int, depth: int, vocab: int = VOCAB, *, asks: bool = False
    ) -> None:
        super().__init__()
        self.asks_for_documents = asks
        self.embedding = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(block(dim, 2, layer_idx=layer) for layer in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.embedding(ids)
        z: dict[str, Any] = {} if documents is None else {"documents": documents}
        for block in self.blocks:
            x, z = block(x, **z)
        return self.head(self.norm(x)), z.get("auxiliary_loss")

    def non_embedding_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters()) - 2 * self.embedding.weight.numel()


def design(mix: str, init: str = "", before: str = "", claims: tuple[str, ...] = ()) -> str:
    """Source of a residual block whose mixer is `mix`: statements from `x` (normalised input) to `y`."""
    return (
        "import math\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
        + textwrap.dedent(before)
        + "\nclass Block(nn.Module):\n"
        + (f"    CLAIMS = {claims}\n" if claims else "")
        + "    def __init__(self, dim, heads, layer_idx=0, device=None, dtype=None):\n"
        "        super().__init__()\n"
        "        self.dim, self.layer = dim, layer_idx\n"
        "        self.norm, self.into, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, dim)\n"
        + textwrap.indent(textwrap.dedent(init), " " * 8)
        + "\n    def forward(self, X, **Z):\n"
        "        x = self.into(self.norm(X))\n"
        "        B, L, D = x.shape\n" + textwrap.indent(textwrap.dedent(mix), " " * 8) + "\n"
        "        return X + self.out(y), Z\n"
    )


@dataclass(frozen=True)
class Plant:
    """A block with something planted in its mixer, by `mix`, `init`, `before` and `claims` as in `design`.

    `codes`: the findings of which any one names the fault; none for a sound design. `leaks`: a look ahead comes with
    it. `changes`: arguments of `run_check` that the plant needs. `whole`: the fault is one of the entire model (its
    size, its cost beside the reference's), so that it fades when it is planted into a larger design.
    """

    mix: str
    codes: tuple[str, ...] = ()
    init: str = ""
    before: str = ""
    claims: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    leaks: bool = False

    @property
    def source(self) -> str:
        return design(self.mix, self.init, self.before, self.claims)


SOUND_MIX = "y = x.cumsum(1) / torch.arange(1, L + 1, device=x.device)[:, None]"
REFERENCE = design(SOUND_MIX)


def builder(source: str) -> Callable[[int, int, int], nn.Module]:
    """Builds toy models from a design's source, as the backbone does for real ones."""

    def build(dim: int, depth: int, vocab: int) -> nn.Module:
        namespace: dict[str, Any] = {"__name__": "design"}
        exec(compile(source, "<design>", "exec"), namespace)
        return ToyModel(namespace["Block"], dim, depth, vocab, asks="documents" in source)

    return build


@functools.cache
def reference_model() -> ToyModel:
    torch.manual_seed(0)
    model = builder(REFERENCE)(DIM, DEPTH, VOCAB)
    assert isinstance(model, ToyModel)
    measure(model, VOCAB, LENGTH, config=CONFIG)  # loads what counting needs, once instead of in every child
    return model


def real_text(rows: int = 4) -> Tensor:
    """[rows, LENGTH + 1] ids of this folder's source text, folded into the vocabulary."""
    text = Path(__file__).read_bytes()
    ids = torch.tensor(list(text[: rows * (LENGTH + 1)])) % VOCAB
    return ids.view(rows, LENGTH + 1)


def run_check(source: str, writable: Path, *, config: GateConfig = CONFIG, **changes: Any) -> GateReport:
    arguments: dict[str, Any] = {
        "build": builder(source),
        "vocab": VOCAB,
        "length": LENGTH,
        "size": lambda: (DIM, DEPTH),
        "target_parameters": reference_model().non_embedding_parameters(),
        "text": real_text(),
        "seed": 0,
        "writable": writable,
    }
    return check(source, config=config, **(arguments | changes))


def check_plant(plant: Plant, writable: Path) -> GateReport:
    """The gate's report on a planted block; its own size counts as the baseline's where size is not the fault."""
    changes = dict(plant.changes)
    if "size.parameters" not in plant.codes:
        changes["target_parameters"] = _parameters(plant.source)
    return run_check(plant.source, writable, **changes)


def _parameters(source: str) -> int:
    try:
        model = builder(source)(DIM, DEPTH, VOCAB)
        assert isinstance(model, ToyModel)
        return model.non_embedding_parameters()
    except Exception:
        return reference_model().non_embedding_parameters()


def specimen_of(build: Callable[[int, int, int], nn.Module], **changes: Any) -> Specimen:
    """A specimen of whatever `build` gives, outside the sandbox."""
    fields: dict[str, Any] = {
        "config": CONFIG,
        "build": build,
        "build_reference": None,
        "size": lambda: (DIM, DEPTH),
        "reference_size": None,
        "vocab": VOCAB,
        "length": LENGTH,
        "target_parameters": reference_model().non_embedding_parameters(),
        "text": real_text(),
        "seed": 0,
        "precision": "fp32",
        "attention": True,
    }
    return Specimen(Subject(**(fields | changes)), DIM, DEPTH, "cpu")


def codes(report: GateReport, severity: str = "reject") -> set[str]:
    return {finding.code for finding in report.findings if finding.severity == severity}
