"""The linear recurrence: picks the way it is computed."""

from __future__ import annotations

from torch import Tensor

from kernels.linear_scan import chunked
from kernels.packing import packed


def linear_scan(x: Tensor, log_decay: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """h_t = exp(log_decay_t) h_{t-1} + x_t, from h_{-1} = 0.

    The recurrence of S4D, S5 and RG-LRU layers and of exponential moving averages.

    Args:
        x: [batch, length, dim].
        log_decay: [batch, length, dim], or [dim] for a constant one; natural logarithms, at most 0 (-inf forgets
            all).
        cu_seqlens: [sequences + 1] integers: x and log_decay are one row of sequences laid end to end, sequence i from
            cu_seqlens[i] up to cu_seqlens[i + 1], each computed as if it were alone (`kernels.packing.packed`).

    Returns:
        h [batch, length, dim] in x's dtype; computed in float32 (float64 for float64 x).

    Raises:
        ValueError: shapes that disagree, cu_seqlens that do not fit.
        TypeError: an operand that is not floating point.
    """
    if cu_seqlens is not None:
        constant = (log_decay,) if log_decay.dim() == 1 else ()
        tokens = (x,) if constant else (x, log_decay)
        return packed("linear_scan", lambda *own: (linear_scan(*own, *constant),), cu_seqlens, tokens)[0]
    return chunked.linear_scan(x, log_decay)
