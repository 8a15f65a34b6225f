"""The linear recurrence for one token, for decoding."""

from __future__ import annotations

from torch import Tensor

from kernels.operands import check_shapes, working_dtype


def step(x: Tensor, log_decay: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of `kernels.linear_scan.linear_scan`: h_t = exp(log_decay_t) h_{t-1} + x_t.

    Args:
        x: [batch, dim].
        log_decay: [batch, dim], or [dim] for a constant one.
        state: [batch, dim], h_{t-1}: that of the step before, or the last token of `linear_scan` (of float32 x, unless
            its rounding does not matter); zeros at the start.

    Returns:
        h_t [batch, dim] in x's dtype, and the same in float64 for float64 x and float32 otherwise, as the next state.

    Raises:
        ValueError: shapes that disagree.
        TypeError: an operand that is not floating point.
    """
    decay = (log_decay, "dim" if log_decay.dim() == 1 else "batch dim")
    check_shapes("linear_scan step", x=(x, "batch dim"), log_decay=decay, state=(state, "batch dim"))
    dtype = working_dtype(x)
    state = log_decay.to(dtype).exp() * state.to(dtype) + x.to(dtype)
    return state.to(x.dtype), state
