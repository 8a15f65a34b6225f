"""The language model that every design is built into: embedding, blocks, final norm, head.

A design supplies the blocks only. Embedding, final norm and head belong to the backbone and are the same for
all designs, so that a difference between two trained models is a difference between their blocks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.designs.contract import build_block
from asiarch_hpc.errors import DesignError

# Logits of an untrained model have about this standard deviation: its loss then exceeds ln V by half its square.
_LOGIT_SPREAD = 0.15
# Rows of embedding and head come in multiples of this: 50,257 of them fall onto matrix kernels that are much slower.
_VOCAB_MULTIPLE = 128


class LanguageModel(nn.Module):
    """Embedding, `depth` blocks of one design, RMSNorm, linear head.

    Args:
        source: text of a layer program or of a composed unit tree.
        vocab: number of token ids; embedding and head have more rows, which no token uses.
        dim: width of the residual stream.
        depth: number of blocks.
        heads: heads of each block; divides `dim`.
        ffn_multiple: SwiGLU width of layer programs, in units of `dim`.
        tie_embeddings: the head uses the embedding's matrix.
        embedding_std: standard deviation of a new embedding.

    Raises:
        DesignError: a block cannot be built at this size.
    """

    def __init__(
        self,
        source: str,
        *,
        vocab: int,
        dim: int,
        depth: int,
        heads: int,
        ffn_multiple: float,
        tie_embeddings: bool = False,
        embedding_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.vocab = vocab
        rows = -(-vocab // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
        self.embedding = nn.Embedding(rows, dim)
        self.blocks = nn.ModuleList(
            build_block(source, dim=dim, heads=heads, layer_idx=layer, ffn_multiple=ffn_multiple)
            for layer in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, rows, bias=False)
        nn.init.normal_(self.embedding.weight, std=embedding_std)
        nn.init.normal_(self.head.weight, std=_LOGIT_SPREAD / math.sqrt(dim))
        # A tied head meets its own input: unscaled, the current token's logit would be std * dim untrained.
        self.logit_scale = 1.0 / (embedding_std * dim) if tie_embeddings else 1.0
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    @property
    def asks_for_documents(self) -> bool:
        """Whether the design looks at `documents`."""
        return any(bool(block.asks) for block in self.blocks)

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Next-token logits.

        Args:
            ids: [batch, length] int64.
            documents: [batch, length] int32, see `hidden`.

        Returns:
            logits [batch, length, vocab] and the sum of the blocks' auxiliary losses (scalar), None if no
            block has one.
        """
        hidden, auxiliary = self.hidden(ids, documents)
        return self.head(self.normed(hidden))[..., : self.vocab], auxiliary

    def hidden(self, ids: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the blocks make of the ids: [batch, length, dim] before the final norm, and the auxiliary losses.

        `documents` [batch, length] int32, which of its row's documents a token is of, lets designs that ask for it
        keep their state from crossing documents.
        """
        x = self.embedding(ids)
        if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            # Autocast leaves embeddings, and with them every residual, in fp32, at twice the traffic.
            x = x.to(torch.get_autocast_dtype("cuda"))
        auxiliary: Tensor | None = None
        for block in self.blocks:
            x, extra = block(x, documents)
            if extra is not None:
                auxiliary = extra if auxiliary is None else auxiliary + extra
        return x, auxiliary

    def normed(self, hidden: Tensor) -> Tensor:
        """The head's input: [batch, length, dim], same shape as `hidden`."""
        # A weight of the input's type takes the fused kernel.
        hidden = F.rms_norm(hidden, self.norm.normalized_shape, self.norm.weight.to(hidden.dtype), self.norm.eps)
        return hidden if self.logit_scale == 1.0 else hidden * self.logit_scale

    def non_embedding_parameters(self) -> int:
        """Number of parameters outside embedding and head: the size that designs are matched by."""
        outside = {id(self.embedding.weight), id(self.head.weight)}
        return sum(p.numel() for p in self.parameters() if id(p) not in outside)


def build_model(source: str, *, vocab: int, scale: ScaleConfig, dim: int, depth: int, seed: int) -> LanguageModel:
    """Builds the model of a trial on the CPU in fp32; equal arguments give bit-identical weights.

    The process's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(
            source,
            vocab=vocab,
            dim=dim,
            depth=depth,
            heads=scale.heads,
            ffn_multiple=scale.ffn_multiple,
            tie_embeddings=scale.tie_embeddings,
            embedding_std=scale.embedding_std,
        )


def count_parameters(source: str, *, dim: int, depth: int, heads: int, ffn_multiple: float) -> int:
    """Non-embedding parameters of a design at one size, without allocating them where possible.

    Builds on the meta device; designs whose constructors read tensor values are built on the CPU instead.

    Raises:
        DesignError: the design cannot be built at this size.
    """

    def count() -> int:
        # The vocabulary does not matter: embedding and head are not counted.
        model = LanguageModel(source, vocab=1, dim=dim, depth=depth, heads=heads, ffn_multiple=ffn_multiple)
        return model.non_embedding_parameters()

    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return count()
        except Exception:  # foreign code in a constructor may raise anything on meta tensors
            try:
                return count()
            except DesignError:
                raise
            except Exception as error:
                raise DesignError(
                    f"the design cannot be built at dim={dim}, depth={depth}, heads={heads}: "
                    f"{type(error).__name__}: {error}"
                ) from error
