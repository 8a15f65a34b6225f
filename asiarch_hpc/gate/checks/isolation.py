"""Whether sequences that share a batch, or a row, stay apart.

The rows of a batch are compared with other rows replaced, and with a row alone. What a layer offers for padding (an
attention mask) and for packed documents (`cu_seqlens`, offsets as in flash-linear-attention) is tried on the layer
itself, since the backbone uses neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from asiarch_hpc.gate.checks.layer import Layer
from asiarch_hpc.gate.checks.subject import (
    MODES,
    Mode,
    Specimen,
    Step,
    all_finite,
    attempt,
    change_per_position,
    finding,
    largest,
    reject,
)
from asiarch_hpc.records import Finding

_SHORT = 33
_DOCUMENTS = [17, 64, 33, 1]  # tokens each, packed into one row
_LENGTH, _PADDING = 65, (0, 9, 31)  # of a padded batch, and each row's padding
_BY_CONTENT, _BY_NUMBER = "what the other rows hold", "how many rows there are"
_MASK_HINT = "Set padding to zero in what enters convolutions and memories, row by row; never join rows into one."
_PACKING_HINT = "Start convolutions and memories anew at each offset in cu_seqlens."


def examine_isolation(specimen: Specimen) -> Iterator[Step]:
    """At most one finding of each code: isolation.batch, isolation.mask, isolation.packing."""
    yield "rows of a batch"
    found: list[tuple[str, Mode, float]] = []
    for mode in MODES:
        for length in (_SHORT, specimen.config.causality_length):
            found += [(by, mode, change) for by, change in _compare_rows(specimen, mode, length)]
    if found:
        yield _batch_finding(found, specimen.tolerance)
    yield "padding and packing"
    layer, _ = attempt(lambda: Layer(specimen))
    if layer is not None:
        yield from _examine_mask(layer)
        yield from _examine_packing(layer)


def _compare_rows(specimen: Specimen, mode: Mode, length: int) -> list[tuple[str, float]]:
    """What changes the outputs of the first or the last row, and by how much. Nothing can be said where equal passes
    differ, which is reported elsewhere."""
    rows, generator = max(2, *specimen.config.batch_sizes), specimen.generator(length)
    ids = specimen.ids(rows, length, generator)
    base = specimen.answer(specimen.fresh(), ids, mode)
    if base is None:
        return []
    scale = float(base.std())

    def change(ids: Tensor, *kept: int, seed: int = 0) -> float:
        """The largest change of the rows `kept`, which `ids` holds alone or at their places."""
        other = specimen.answer(specimen.fresh(), ids, mode, seed=seed)
        if other is None:
            return 0.0
        at = list(kept) if len(ids) == rows else list(range(len(kept)))
        return largest(change_per_position(base[list(kept)], other[at], scale))

    if not change(ids, *range(rows)) <= specimen.tolerance:
        return []
    found = []
    drawn = not change(ids, *range(rows), seed=1) <= specimen.tolerance
    for row in (0, rows - 1):
        others = specimen.ids(rows, length, generator)
        others[row] = ids[row]
        found.append((_BY_CONTENT, change(others, row)))
        if not drawn:  # else a batch of another size draws other random numbers
            found.append((_BY_NUMBER, change(ids[row : row + 1], row)))
    return [(by, amount) for by, amount in found if not amount <= specimen.tolerance]


def _batch_finding(found: list[tuple[str, Mode, float]], tolerance: float) -> Finding:
    by = [by for by in (_BY_CONTENT, _BY_NUMBER) if any(item[0] == by for item in found)]
    modes = [mode for mode in MODES if any(item[1] == mode for item in found)]
    return reject(
        "isolation.batch",
        f"a row's outputs depend on {' and on '.join(by)}, in {' and '.join(modes)} mode",
        "Look for a mean, norm, softmax, sort or top-k over the batch dimension, and for rows joined by a reshape.",
        measured=max(change for _, _, change in found),
        limit=tolerance,
    )


def _examine_mask(layer: Layer) -> Iterator[Finding]:
    if not layer.offers("attention_mask"):
        if "padding" in layer.specimen.subject.claims:
            text = "forward takes no attention_mask"
            yield layer.specimen.ability("isolation.mask", "padding", text, _MASK_HINT, otherwise="warn")
        return
    faults: dict[str, list[str]] = {}
    worst = 0.0
    for side in ("right", "left"):
        change, fault = _try_mask(layer, side)
        worst = max(worst, change)
        if fault:
            faults.setdefault(fault, []).append(side)
    if faults:
        each = "; ".join(f"with {' or '.join(sides)} padding, {fault}" for fault, sides in faults.items())
        text, limit = f"given an attention_mask {each}", layer.specimen.tolerance
        yield layer.specimen.ability(
            "isolation.mask", "padding", text, _MASK_HINT, otherwise="warn", measured=worst, limit=limit
        )


def _try_mask(layer: Layer, side: str) -> tuple[float, str]:
    """The largest change of tokens' outputs by padding around them, and what is wrong, "" for nothing."""
    hidden = layer.hidden(len(_PADDING), _LENGTH)
    where = torch.arange(_LENGTH)
    tokens = torch.stack([where < _LENGTH - n if side == "right" else where >= n for n in _PADDING])
    mask, real = tokens.long().to(hidden.device), tokens.to(hidden.device)

    def masked(hidden: Tensor) -> Tensor:
        return layer.output(hidden, attention_mask=mask)

    rows = range(len(_PADDING))
    alone, failure = attempt(lambda: [layer.output(hidden[row : row + 1, real[row]])[0] for row in rows])
    if alone is None or not all(all_finite(part) for part in alone):
        return 0.0, ""  # it fails without a mask: the passes report that
    together, failure = attempt(lambda: masked(hidden))
    if together is None:
        return 0.0, f"the forward pass fails: {failure}"
    change = _largest_change(alone, [together[row, real[row]] for row in rows])
    if change <= layer.specimen.tolerance:
        return change, ""
    other = layer.hidden(len(_PADDING), _LENGTH, 1)
    own = torch.arange(len(_PADDING), device=hidden.device)[:, None, None] == 1  # the row that is looked at
    kept = [together[1, real[1]]]
    for replaced, fault in ((~own, "rows mix"), (~real[..., None], "padding reaches the tokens")):
        changed = masked(torch.where(replaced, other, hidden))
        if not _largest_change(kept, [changed[1, real[1]]]) <= layer.specimen.tolerance:
            return change, fault
    return change, "a row's tokens have other outputs than without padding"


def _examine_packing(layer: Layer) -> Iterator[Finding]:
    code, claim = "isolation.packing", "packing"
    if not layer.offers("cu_seqlens"):
        text = "packed documents are not offered: forward names no cu_seqlens"
        yield layer.specimen.ability(code, claim, text, "", otherwise="property")
        return
    hidden = layer.hidden(1, sum(_DOCUMENTS))
    documents = torch.split(hidden, _DOCUMENTS, dim=1)
    offsets = torch.tensor([0, *_DOCUMENTS], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(hidden.device)
    alone, failure = attempt(lambda: [layer.output(document) for document in documents])
    if alone is None or not all(all_finite(part) for part in alone):
        return  # it fails without offsets: the passes report that
    packed, failure = attempt(lambda: layer.output(hidden, cu_seqlens=offsets))
    if packed is None:
        text = f"the forward pass fails with cu_seqlens: {failure}"
        yield layer.specimen.ability(code, claim, text, _PACKING_HINT, otherwise="property")
        return
    change, limit = _largest_change(alone, torch.split(packed, _DOCUMENTS, dim=1)), layer.specimen.tolerance
    if change <= limit:
        yield finding(code, "property", "packed documents stay apart", "", measured=change, limit=limit)
    else:
        text = "a document packed by cu_seqlens gives other outputs than alone"
        yield layer.specimen.ability(
            code, claim, text, _PACKING_HINT, otherwise="property", measured=change, limit=limit
        )


def _largest_change(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Between tensors [..., dim], relative to the scale of what is expected."""
    scale = float(torch.cat([part.flatten() for part in expected]).std())
    return max(largest(change_per_position(a, b, scale)) for a, b in zip(expected, found, strict=True))
