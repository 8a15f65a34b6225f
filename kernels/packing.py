"""Several sequences in one row: laid end to end, as flash-linear-attention packs them (`cu_seqlens`), or as the rows of
a training batch have them (`documents`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

Tokens = Sequence[Tensor | None]
Run = Callable[..., tuple[Tensor, ...]]


def packed(
    operation: str, run: Run, cu_seqlens: Tensor, tokens: Tokens, initial_state: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Runs an operation on each packed sequence as if it were alone: nothing crosses, not nan either.

    Sequences between two powers of two in length become one batch, filled up with zeros at their ends, so that less
    than half of what is computed is filling and there are at most log2(longest) + 2 runs. The offsets are read on the
    host, which waits for their device.

    Args:
        operation: name for messages.
        run: from the operands `tokens` as [sequences, length, ...], and `initial_state` where one is given, to a
            result a token [sequences, length, ...] and then results a sequence [sequences, ...]. Zeros after the end of
            a sequence must not change what it gives for the sequence.
        cu_seqlens: [sequences + 1] integers, on any device: where each sequence begins, and the total length.
        tokens: [1, total length, ...] or None, each.
        initial_state: [sequences, ...] or None.

    Returns:
        As `run`, the first one as [1, total length, ...].

    Raises:
        ValueError: offsets that do not rise from 0 to the total length; a batch of more than one row.
        TypeError: offsets that are no integers.
    """
    offsets = _offsets(operation, cu_seqlens, tokens, initial_state)
    device = next(x.device for x in tokens if x is not None)
    alike: dict[int, list[int]] = defaultdict(list)
    for sequence, size in enumerate(offsets.diff().tolist()):
        alike[(size - 1).bit_length()].append(sequence)
    results: list[tuple[Tensor, ...]] = []
    rows: list[Tensor] = []
    for members in alike.values():
        begin, size = offsets[:-1][members, None], offsets.diff()[members, None]
        step = torch.arange(int(size.max()))
        inside = step < size
        rows.append((begin + step)[inside])
        source, place = rows[-1].to(device), inside.flatten().nonzero().flatten().to(device)
        spread = [None if x is None else _spread(x[0], source, place, inside.shape) for x in tokens]
        first, *others = run(*spread, **({} if initial_state is None else {"initial_state": initial_state[members]}))
        results.append((first.flatten(0, 1).index_select(0, place), *others))
    sequences = torch.tensor([sequence for members in alike.values() for sequence in members])
    orders = [torch.cat(rows).argsort(), *[sequences.argsort()] * (len(results[0]) - 1)]
    merged = [
        torch.cat(parts).index_select(0, order.to(device))
        for parts, order in zip(zip(*results, strict=True), orders, strict=True)
    ]
    return merged[0].unsqueeze(0), *merged[1:]


def one_by_one(
    operation: str, run: Run, cu_seqlens: Tensor, tokens: Tokens, initial_state: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What `packed` computes, by definition: one run a sequence."""
    offsets = _offsets(operation, cu_seqlens, tokens, initial_state).tolist()
    results = []
    for i, (begin, end) in enumerate(pairwise(offsets)):
        own = [None if x is None else x[:, begin:end] for x in tokens]
        results.append(run(*own, **({} if initial_state is None else {"initial_state": initial_state[i : i + 1]})))
    first, *others = zip(*results, strict=True)
    return torch.cat(first, 1), *(torch.cat(parts) for parts in others)


def offsets_of(documents: Tensor) -> Tensor:
    """Offsets of all documents, for rows laid end to end, `x.flatten(0, 1).unsqueeze(0)`.

    Args:
        documents: [batch, length] integers, which of its row's documents a token is of; a document is one run of
            equal ones. (Padding, marked alike, counts as one.)

    Returns:
        [all documents + 1] int64.
    """
    begins = first_tokens(documents).flatten().nonzero().flatten()
    return torch.cat((begins, begins.new_tensor([documents.numel()])))


def first_tokens(documents: Tensor) -> Tensor:
    """[batch, length] bool, true where a document begins."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return begins


def counted(documents: Tensor) -> Tensor:
    """[batch, length] int32, the documents of each row counted from 1, whatever numbers they have."""
    return first_tokens(documents).cumsum(1, dtype=torch.int32)


def places(documents: Tensor) -> Tensor:
    """[batch, length] int64, how many tokens of its document come before each one.

    Args:
        documents: [batch, length] integers, which of its row's documents a token is of.
    """
    places_in_row = torch.arange(documents.shape[1], device=documents.device)
    begins = places_in_row.where(first_tokens(documents), 0).cummax(1).values
    return places_in_row - begins


def forget_before(documents: Tensor, log_decay: Tensor) -> Tensor:
    """Log-decays that keep documents apart, except from nan: -inf where a document begins behind another one.

    Args:
        documents: [batch, length] integers, which of its row's documents a token is of.
        log_decay: [batch, length, ...].

    Returns:
        [batch, length, ...]. What comes before the row belongs to its first document.
    """
    begins = first_tokens(documents)
    begins[:, 0] = False
    return log_decay.masked_fill(begins[(..., *[None] * (log_decay.dim() - 2))], -torch.inf)


def previous(x: Tensor, documents: Tensor | None = None, back: int = 1) -> Tensor:
    """The token `back` places before each one, zeros where there is none in its document.

    Args:
        x: [batch, length, ...].
        documents: [batch, length] integers, which of its row's documents a token is of; None: one a row.
    """
    length = x.shape[1]
    moved = torch.cat((torch.zeros_like(x[:, :back]), x[:, : max(0, length - back)]), 1)
    if documents is None:
        return moved
    return kept(moved, documents == torch.cat((documents[:, :back], documents[:, : max(0, length - back)]), 1))


def kept(x: Tensor, where: Tensor) -> Tensor:
    """x [batch, length, ...] where `where` [batch, length] is true, zeros elsewhere, whatever stands there."""
    where = where[(..., *[None] * (x.dim() - 2))]
    if x.device.type != "cpu":
        return x.masked_fill(~where, 0)
    # There masked_fill and where take a number at a time, eight times as long.
    return _kept(x, -where.to(_INTEGERS[x.element_size()]))


class _Kept(torch.autograd.Function):
    """The bits of x that are set in a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return (x.view(mask.dtype) & mask).view(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _kept(grad, *ctx.saved_tensors), None


_kept = cast(Callable[..., Tensor], _Kept.apply)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_documents(operation: str, documents: Tensor | None, tokens: Tensor, cu_seqlens: Tensor | None) -> None:
    """ValueError or TypeError where `documents` is not [batch, length] integers for `tokens` [batch, length, ...], or
    where there are offsets too."""
    if documents is None:
        return
    if documents.is_floating_point() or documents.is_complex() or documents.dtype == torch.bool:
        raise TypeError(f"{operation}: documents has dtype {documents.dtype}, expected integers")
    if documents.shape != tokens.shape[:2]:
        raise ValueError(
            f"{operation}: documents has shape {list(documents.shape)}, expected [batch, length], "
            f"{list(tokens.shape[:2])}"
        )
    if cu_seqlens is not None:
        raise ValueError(f"{operation}: found documents and cu_seqlens, expected one of them")


def document_by_document(
    run: Run, documents: Tensor, tokens: Tokens, initial_state: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What `documents` means, by definition: one run a document, the row's initial state for its first one.

    Args:
        run: as in `packed`.
        documents: [batch, length] integers.
        tokens: [batch, length, ...] or None, each.
        initial_state: [batch, ...] or None.

    Returns:
        A result a token [batch, length, ...], then those of each row's last document [batch, ...].
    """
    rows = []
    for row, begins in enumerate(first_tokens(documents)):
        bounds = [*begins.nonzero().flatten().tolist(), documents.shape[1]]
        parts = []
        for begin, end in pairwise(bounds):
            own = [None if x is None else x[row : row + 1, begin:end] for x in tokens]
            state = initial_state if begin == 0 else None
            parts.append(run(*own, **({} if state is None else {"initial_state": state[row : row + 1]})))
        rows.append((torch.cat([part[0] for part in parts], 1), *parts[-1][1:]))
    return tuple(torch.cat(results) for results in zip(*rows, strict=True))


def _offsets(operation: str, cu_seqlens: Tensor, tokens: Tokens, initial_state: Tensor | None) -> Tensor:
    """On the host, checked."""
    if cu_seqlens.is_floating_point() or cu_seqlens.is_complex() or cu_seqlens.dtype == torch.bool:
        raise TypeError(f"{operation}: cu_seqlens has dtype {cu_seqlens.dtype}, expected integers")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"{operation}: cu_seqlens has shape {list(cu_seqlens.shape)}, expected [sequences + 1]")
    offsets = cu_seqlens.detach().to("cpu", torch.int64)
    found = {tuple(x.shape[:2]) for x in tokens if x is not None}
    if found != {(1, int(offsets[-1]))}:
        raise ValueError(
            f"{operation}: with cu_seqlens up to {int(offsets[-1])} operands have [batch, length] of {sorted(found)}, "
            f"expected (1, {int(offsets[-1])})"
        )
    if int(offsets[0]) != 0 or not bool((offsets.diff() > 0).all()):
        raise ValueError(f"{operation}: cu_seqlens is {offsets.tolist()}, expected numbers that rise from 0")
    if initial_state is not None and len(initial_state) != len(offsets) - 1:
        raise ValueError(
            f"{operation}: initial_state has {len(initial_state)} rows, expected one for each of the "
            f"{len(offsets) - 1} sequences"
        )
    return offsets


def _spread(x: Tensor, source: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
    """Tokens `source` of x [length, ...] at the places of a batch of zeros [*shape, ...]."""
    filled = x.new_zeros(shape.numel(), *x.shape[1:]).index_copy(0, place, x.index_select(0, source))
    return filled.view(*shape, *x.shape[1:])
