"""Cutting sequences into chunks, and the decays within a chunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split(x: Tensor, chunk_size: int, dtype: torch.dtype, *, multiple: int = 1) -> Tensor:
    """[batch, length, heads, ...] -> [chunks, batch * heads, chunk_size, ...].

    Zeros fill up the last chunk, and whole chunks of zeros the number of chunks to one of `multiple`.
    """
    batch, length, heads = x.shape[:3]
    rest = x.shape[3:]
    x = x.to(dtype)
    missing = -length % (chunk_size * multiple)
    if missing:
        x = F.pad(x, (0, 0) * len(rest) + (0, 0, 0, missing))
    x = x.reshape(batch, -1, chunk_size, heads, *rest)
    return x.movedim(3, 1).movedim(2, 0).reshape(-1, batch * heads, chunk_size, *rest)


def join(x: Tensor, batch: int, length: int) -> Tensor:
    """[chunks, batch * heads, chunk_size, dim] -> [batch, length, heads, dim]; drops the filling."""
    chunks, _, chunk_size, dim = x.shape
    x = x.view(chunks, batch, -1, chunk_size, dim).permute(1, 0, 3, 2, 4)
    return x.reshape(batch, chunks * chunk_size, -1, dim)[:, :length]


def causal_mask(size: int, like: Tensor, *, diagonal: int = 0) -> Tensor:
    """[size, size] ones at j <= i + diagonal, zeros elsewhere. A product with it is much faster than `tril`."""
    return torch.ones(size, size, dtype=like.dtype, device=like.device).tril(diagonal)


def pairwise_decay(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Decays within a chunk.

    Differences of cumulative log-decays are taken before exp, so that nothing overflows, and in float64, because
    one strong decay makes the sums large and the later weak ones small beside them.

    Args:
        log_decay: [..., tokens], finite.

    Returns:
        From each token to each later one, exp(G_i - G_j) for j <= i and else 0: [..., tokens, tokens];
        from the chunk's start up to and with each token, exp(G_i): [..., tokens].
    """
    cumulative = log_decay.double().cumsum(-1)
    size = log_decay.shape[-1]
    difference = (cumulative.unsqueeze(-1) - cumulative.unsqueeze(-2)).to(log_decay.dtype)
    # Without the diagonal: its zeros have no gradient, while rounding would give them one.
    decay = (difference * causal_mask(size, log_decay, diagonal=-1)).exp() * causal_mask(size, log_decay)
    return decay, cumulative.to(log_decay.dtype).exp()


def document_decay(documents: Tensor, heads: int, chunk_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """What `pairwise_decay` gives for decays to nothing where a document begins: ones within one, zeros between two.

    Args:
        documents: [batch, length] integers; what comes before the row belongs to its first document.

    Returns:
        [chunks, batch * heads, chunk_size, chunk_size] and [chunks, batch * heads, chunk_size].
    """
    batch, length = documents.shape
    missing = -length % chunk_size
    own = torch.cat((documents, documents[:, -1:].expand(batch, missing)), 1).view(batch, -1, chunk_size).movedim(1, 0)
    before = torch.cat((own[:1, :, 0], own[:-1, :, -1])).unsqueeze(-1)
    between = (own.unsqueeze(-1) == own.unsqueeze(-2)).to(like.dtype) * causal_mask(chunk_size, like)
    return between.repeat_interleave(heads, 1), (own == before).to(like.dtype).repeat_interleave(heads, 1)


def onwards(mark: Tensor) -> Tensor:
    """From the first marked token on, nan.

    Args:
        mark: [chunks, rows, tokens], nan or 0.

    Returns:
        [chunks, rows, tokens, 1], to be added to results; the last one belongs to the final state.
    """
    chunks, rows, tokens = mark.shape
    return mark.movedim(0, 1).reshape(rows, -1).cumsum(-1).view(rows, chunks, tokens, 1).movedim(1, 0)
