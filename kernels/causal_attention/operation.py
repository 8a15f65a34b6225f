"""Causal attention by PyTorch's fused kernels, also where documents share a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes
from kernels.packing import check_documents, counted

_AXES = {
    "q": "batch length heads key", "k": "batch length heads key", "v": "batch length heads value", "log_decay": "heads"
}  # fmt: skip
# Their product: the nats by which a key lies below those of the next document, where logits do not differ by more
# than what is left of it: exp(-104) is 0 in float32.
_ASKED, _RAISED = 8.0, 16.0
_NOTHING = 104.0
_DIGIT = 256  # every smaller integer is a bfloat16
_WIDTHS = 8  # fused kernels want widths that are multiples of it
# Devices whose fused kernel takes a mask too, and, for rows of some hundred tokens, no longer for it.
_MASKED = ("cpu",)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    log_decay: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """o_t = sum over s <= t of softmax_s(scale q_t k_s + (t - s) log_decay) v_s; quadratic in length.

    Attention is that of arXiv 1706.03762, its decay with distance that of arXiv 2108.12409. With log_decay the sums
    added to the logits, length x length for each head, and with documents for each row too, are in memory.

    Args:
        q: [batch, length, heads, key].
        k: [batch, length, heads, key].
        v: [batch, length, heads, value].
        scale: of the logits; key ** -0.5 by default; not 0 with documents.
        log_decay: [heads], what a logit gains with each token of distance, below 0 as a rule; None for nothing.
        documents: [batch, length] integers, which of its row's documents a token is of; each is computed as if it were
            alone.

    Returns:
        o [batch, length, heads, value] in v's dtype.

    Raises:
        ValueError: shapes that disagree, documents that do not fit.
        TypeError: an operand that is not floating point.
    """
    operands = {"q": q, "k": k, "v": v, "log_decay": log_decay}
    size = check_shapes("causal_attention", **{name: (operands[name], _AXES[name]) for name in _AXES})
    check_documents("causal_attention", documents, q, None)
    scale = size["key"] ** -0.5 if scale is None else scale
    if scale < 0:
        q, scale = -q, -scale  # PyTorch's kernel for CPUs takes masked logits times the scale
    if documents is not None and scale == 0:
        raise ValueError(
            "causal_attention: scale is 0, with which logits cannot tell documents apart; expected another"
        )
    mask = None
    if log_decay is not None or (documents is not None and q.device.type in _MASKED):
        mask = _mask(q, log_decay, documents)
    elif documents is not None:
        q, k = _apart(q, k, documents, scale)
    widest = max(q.shape[-1], v.shape[-1])
    # In one width, with zeros, because the fused kernels take no others.
    even = [x if x.shape[-1] == widest else F.pad(x, (0, widest - x.shape[-1])) for x in (q, k, v.to(q.dtype))]
    query, key, value = (x.transpose(1, 2) for x in even)
    o = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale)
    return o.transpose(1, 2)[..., : v.shape[-1]].to(v.dtype)


def _mask(q: Tensor, log_decay: Tensor | None, documents: Tensor | None) -> Tensor:
    """What is added to the logits, [batch or 1, heads or 1, length, length], or whether they count."""
    place = torch.arange(q.shape[1], device=q.device)
    distance = place[:, None] - place
    seen = distance[None, None] >= 0
    if documents is not None:
        seen = seen & (documents.unsqueeze(-1) == documents.unsqueeze(-2)).unsqueeze(1)
    if log_decay is None:
        return seen
    # Distances in the type of q, as its logits: PyTorch's kernels take the two in one type.
    return (distance.to(q.dtype) * log_decay.to(q.dtype)[:, None, None]).masked_fill(~seen, -torch.inf)


def _apart(q: Tensor, k: Tensor, documents: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q and k with columns whose products raise a key's logit for every document of the row before its own.

    Of the keys that a token sees, those of its own document are the last ones, so all others lie below them; what all
    logits of a row have in common is nothing to a softmax. Numbers of documents are two digits, lest bfloat16 rounds
    them; what q has for them may be rounded.
    """
    number = counted(documents)[..., None, None] - 1
    digits = torch.cat((number // _DIGIT * _DIGIT, number % _DIGIT), -1)
    raised = F.pad((_RAISED * digits).to(k.dtype), (0, _WIDTHS - 2)).expand(*k.shape[:3], _WIDTHS)
    asked = (_asked(q, k, scale) / scale).to(q.dtype).unsqueeze(-1).expand(*q.shape[:3], _WIDTHS)
    return torch.cat((q, asked), -1), torch.cat((k, raised), -1)


@torch.no_grad()
def _asked(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[batch, length, heads], enough for how much the logits of the keys that a token sees can differ.

    In powers of two, so that keys of other documents rarely change what those of a token's own are rounded to.
    """
    longest = k.float().norm(dim=-1).cummax(1).values
    needed = 2 * scale * q.float().norm(dim=-1) * longest + _NOTHING
    asked: Tensor = _ASKED * (needed / (_ASKED * _RAISED)).clamp(min=1).log2().ceil().exp2()
    return asked
