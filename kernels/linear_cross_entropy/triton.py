"""The fused form for GPUs: see README.md for the derivation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    TensorDescriptor,
)

from kernels.configurations import choose
from kernels.linear_cross_entropy import triton_kernels

# Exponentials of one chunk of tokens.
_CHUNK_BYTES = 2**31


@dataclass(frozen=True)
class Tiles:
    """Sizes of the product's tiles: tokens, ids (a multiple of 64, as is the width of the buffer, so that only the last
    tile of a row has padding), width of hidden (None: the whole), warps and stages of the pipeline.

    `programs` is the number that run at the same time, and the vocabulary is split so that all do; `in_registers`
    keeps hidden there, not in shared memory, where there is only one tile of it.
    """

    bm: int
    bn: int
    bk: int | None
    warps: int
    stages: int
    programs: int = 132
    in_registers: bool = False


# Of the kernel that usually has nothing to do.
_RESCUE = Tiles(64, 64, 32, 4, 2)
# What `make tune` tries, entry after entry, for the loss and for the likelihoods.
SPACE: dict[str, tuple[Any, ...]] = {
    "bk": (None, 32, 64, 128),
    "in_registers": (False, True),
    "bm": (64, 128, 256),
    "bn": (64, 128, 256),
    "warps": (4, 8),
    "stages": (2, 3, 4),
}


@dataclass(frozen=True)
class _Operands:
    """hidden [tokens, dim] and weight [columns, dim], dim filled to a multiple of 16 and columns of 64 with zeros."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    ignore_index: int
    vocab: int
    slope: float  # of base-2 logits


def loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float,
    *, tiles: Tiles | None = None, chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `chunked.loss_and_gradients`, with operands in hidden's type and sums in float32.

    Args:
        tiles: None for the table's.
        chunk_tokens: None for as many as _CHUNK_BYTES hold.
    """
    operands = _prepare(hidden, weight, targets, ignore_index, vocab, scale)
    tokens, dim = operands.hidden.shape
    tiles = tiles or choose("linear_cross_entropy", Tiles, hidden.device, width=dim)
    columns = operands.weight.shape[0]
    # float16 ends at 65504, far below the exponentials.
    stored = torch.float32 if hidden.dtype == torch.float32 else torch.bfloat16
    by_weight = torch.zeros(max(columns, weight.shape[0]), dim, dtype=torch.float32, device=hidden.device)
    by_hidden = torch.empty_like(operands.hidden)
    losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    level = _target_level(operands)
    rows = operands.weight.to(stored)
    size = chunk_tokens or _chunk_tokens(tokens, columns * stored.itemsize)
    buffer = torch.empty(min(size, tokens), columns, dtype=stored, device=hidden.device)
    for part in _parts(tokens, size):
        h = operands.hidden[part]
        p = buffer[: h.shape[0]]
        partial, offset = _exponentials(operands, part, level[part], p, tiles)
        factor, scaled = _finish(operands, part, level[part], offset, partial, p, losses[part], scale)
        torch.mul(_product(p, rows), factor.unsqueeze(1), out=by_hidden[part])
        _accumulate(by_weight[:columns], p.T, scaled)
    by_weight = by_weight[: weight.shape[0], : weight.shape[1]]
    return losses.sum(), by_hidden[:, : hidden.shape[1]].contiguous(), by_weight.to(weight.dtype).contiguous()


def log_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float,
    *, tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `chunked.log_likelihood`, with operands in hidden's type and sums in float32."""
    operands = _prepare(hidden, weight, targets, ignore_index, vocab, scale)
    tokens, dim = operands.hidden.shape
    tiles = tiles or choose("linear_log_likelihood", Tiles, hidden.device, width=dim)
    assert tiles.bk is not None
    columns = operands.weight.shape[0]
    row_blocks, spans, each = _spans(tokens, columns, tiles)
    largest, partial, level = torch.empty(3, spans, tokens, dtype=torch.float32, device=hidden.device)
    ids = torch.empty(spans, tokens, dtype=torch.int32, device=hidden.device)
    triton_kernels.likelihood_kernel[(row_blocks, spans)](
        _described(operands.hidden, tiles.bm, tiles.bk), _described(operands.weight, tiles.bn, tiles.bk),
        operands.targets, largest, ids, partial, level, tokens, dim, vocab, columns, each, operands.slope,
        BM=tiles.bm, BN=tiles.bn, BK=tiles.bk, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    top = largest.max(0).values
    total = (partial * (largest - top).exp2()).sum(0)
    first = ids.where(largest == top, vocab).min(0).values
    real = targets != ignore_index
    found = ((level.sum(0) - top) * math.log(2.0) - total.log()).where(real, 0.0)
    possible = ~real | ((targets >= 0) & (targets < vocab))
    return found.where(possible, torch.nan), (first == targets) & real & ~found.isnan()


def _prepare(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float) -> _Operands:
    tokens, dim = hidden.shape
    columns, width = -(-vocab // 64) * 64, -(-dim // 16) * 16
    rows = weight
    if columns != vocab or vocab != weight.shape[0] or width != dim:
        rows = weight.new_zeros(columns, width, dtype=hidden.dtype)
        rows[:vocab, :dim] = weight[:vocab]
    filled = hidden
    if width != dim:
        filled = hidden.new_zeros(tokens, width)
        filled[:, :dim] = hidden
    slope = scale * math.log2(math.e)
    return _Operands(
        filled.contiguous(), rows.to(hidden.dtype).contiguous(), targets.contiguous(), ignore_index, vocab, slope
    )


def _chunk_tokens(tokens: int, bytes_per_token: int) -> int:
    """Equal chunks of whole blocks."""
    most = max(_CHUNK_BYTES // bytes_per_token // 1024, 1) * 1024
    chunks = -(-tokens // most)
    return -(-tokens // chunks // 128) * 128


def _parts(tokens: int, size: int) -> Iterator[slice]:
    for first in range(0, tokens, size):
        yield slice(first, min(first + size, tokens))


def _spans(tokens: int, columns: int, tiles: Tiles) -> tuple[int, int, int]:
    """Blocks of tokens, spans of the vocabulary, tiles in a span: those that leave the fewest processors idle."""
    row_blocks, blocks = -(-tokens // tiles.bm), -(-columns // tiles.bn)

    def turns(spans: int) -> int:
        """Tiles that a processor goes through, and about three more to start each program."""
        return -(-row_blocks * spans // tiles.programs) * (-(-blocks // spans) + 3)

    each = -(-blocks // min(range(1, blocks + 1), key=turns))
    return row_blocks, -(-blocks // each), each


def _described(tensor: Tensor, rows: int, columns: int) -> Any:
    return TensorDescriptor.from_tensor(tensor, [rows, columns])


def _target_level(operands: _Operands) -> Tensor:
    tokens, dim = operands.hidden.shape
    level = torch.empty(tokens, dtype=torch.float32, device=operands.hidden.device)
    triton_kernels.target_level_kernel[(-(-tokens // 16),)](
        operands.hidden, operands.weight, operands.targets, level, tokens, dim, operands.vocab,
        operands.ignore_index, operands.slope, ROWS=16, BK=128, num_warps=4,
    )  # fmt: skip
    return level


def _exponentials(operands: _Operands, part: slice, level: Tensor, p: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Fills p; returns the partial sums [partials, tokens] of its rows and the offset of each token."""
    h, w = operands.hidden[part], operands.weight
    tokens, dim = h.shape
    columns = w.shape[0]
    offset = level.clone()
    width = tiles.bk or 1 << (dim - 1).bit_length()
    h_tile, w_tile = _described(h, tiles.bm, width), _described(w, tiles.bn, width)
    p_tile = _described(p, tiles.bm, tiles.bn)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    if tiles.bk is None:
        row_blocks, spans, each = _spans(tokens, columns, tiles)
        partial = level.new_empty(spans, tokens)
        triton_kernels.narrow_kernel[(row_blocks, spans)](
            h_tile, w_tile, p_tile, offset, partial, tokens, operands.vocab, columns, each, operands.slope, 1.0,
            BM=tiles.bm, BN=tiles.bn, IN_REGISTERS=tiles.in_registers, **options,
        )  # fmt: skip
    else:
        row_blocks, blocks = -(-tokens // tiles.bm), -(-columns // tiles.bn)
        partial = level.new_empty(blocks, tokens)
        triton_kernels.wide_kernel[(row_blocks * blocks,)](
            h_tile, w_tile, p_tile, offset, partial, tokens, dim, operands.vocab, operands.slope,
            BM=tiles.bm, BN=tiles.bn, BK=tiles.bk, GROUP=8, **options,
        )  # fmt: skip
    safe = _RESCUE
    triton_kernels.rescue_kernel[(-(-tokens // safe.bm),)](
        _described(h, safe.bm, 32), _described(w, safe.bn, 32), _described(p, safe.bm, safe.bn), offset, partial,
        tokens, partial.shape[0], dim, operands.vocab, columns, operands.slope,
        BM=safe.bm, BN=safe.bn, BK=32, num_warps=safe.warps, num_stages=safe.stages,
    )  # fmt: skip
    return partial, offset


def _finish(
    operands: _Operands, part: slice, level: Tensor, offset: Tensor, partial: Tensor, p: Tensor, losses: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Writes the losses and the targets' share of p; returns the factors [tokens] and hidden times them."""
    h = operands.hidden[part]
    tokens, dim = h.shape
    factor, scaled = torch.empty_like(level), torch.empty_like(h, dtype=p.dtype)
    triton_kernels.finish_kernel[(-(-tokens // 16),)](
        h, operands.targets[part], level, offset, partial, p, losses, factor, scaled, tokens, partial.shape[0], dim,
        p.shape[1], operands.ignore_index, scale, ROWS=16, BK=128, num_warps=4,
    )  # fmt: skip
    return factor, scaled


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[m, n] in float32, of bfloat16 or float32."""
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a product to `total`, which is float32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
