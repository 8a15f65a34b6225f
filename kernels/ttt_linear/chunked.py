"""TTT-Linear a mini-batch at a time (the dual form), in plain PyTorch. README.md derives it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.chunks import causal_mask, join, onwards, split
from kernels.operands import check_shapes, quarantine, without_autocast, working_dtype

AXES = {
    "q": "batch length heads dim",
    "k": "batch length heads dim",
    "v": "batch length heads dim",
    "eta": "batch length heads",
    "weight": "heads dim dim",
    "bias": "heads dim",
    "ln_weight": "heads dim",
    "ln_bias": "heads dim",
}
EPSILON = 1e-6


def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weight: Tensor,
    bias: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    chunk_size: int = 16,
) -> Tensor:
    """The hidden state is a model f(x) = x + LN(x W + b), trained while it reads (TTT-Linear, arXiv 2407.04620).

    Token t's loss is |f(k_t) - v_t|^2 / 2. Its gradient is taken at the W, b with which its mini-batch of
    `chunk_size` tokens began; W_t, b_t have taken the steps of all tokens up to t; o_t = f(q_t) with W_t, b_t.

    Args:
        q, k, v: [batch, length, heads, dim].
        eta: [batch, length, heads], the learning rate of each token's step.
        weight, bias: [heads, dim, dim] (used as x @ weight) and [heads, dim], the W and b before the first token.
        ln_weight, ln_bias: [heads, dim], of the layer norm; not trained while reading.
        chunk_size: tokens of a mini-batch; it changes the result.

    Returns:
        o [batch, length, heads, dim] in v's dtype. After a non-finite k, v or eta all results of its head are nan.

    Raises:
        ValueError: shapes that disagree, chunk_size below 1.
        TypeError: an operand that is not floating point.
    """
    operands = {
        "q": q, "k": k, "v": v, "eta": eta, "weight": weight, "bias": bias, "ln_weight": ln_weight, "ln_bias": ln_bias
    }  # fmt: skip
    size = check_shapes("ttt_linear", **{name: (operands[name], AXES[name]) for name in AXES})
    if chunk_size < 1:
        raise ValueError(f"ttt_linear: chunk_size is {chunk_size}, expected at least 1")
    batch, length, dim, dtype = size["batch"], size["length"], size["dim"], working_dtype(v)
    chunk = min(chunk_size, length)
    with without_autocast(v):
        query = split(q, chunk, dtype)
        tokens = [split(k, chunk, dtype), split(v, chunk, dtype), split(eta.unsqueeze(-1), chunk, dtype)]
        mark, (key, target, rate) = quarantine(*tokens)
        gain, shift = (x.to(dtype).repeat(batch, 1).unsqueeze(1) for x in (ln_weight, ln_bias))
        model = torch.cat((weight, bias.unsqueeze(1)), 1).to(dtype).repeat(batch, 1, 1)
        prediction = _predict(query, key, shift + key - target, rate, model, gain)
        out = query + torch.addcmul(shift, F.layer_norm(prediction, (dim,), eps=EPSILON), gain)
        if mark is not None:
            out = out + onwards(mark)
    return join(out, batch, length).to(v.dtype)


def _predict(query: Tensor, key: Tensor, offset: Tensor, rate: Tensor, model: Tensor, gain: Tensor) -> Tensor:
    """q_t W_t + b_t without its mean over dim, which the layer norm would remove.

    Args:
        query, key: [n, rows, chunk, dim].
        offset: ln_bias + k - v, alike.
        rate: [n, rows, chunk, 1].
        model: [rows, dim + 1, dim], W above b.
        gain: ln_weight, [rows, 1, dim].
    """
    dim, one = query.shape[-1], torch.ones_like(query[..., :1])
    query, key = torch.cat((query, one), -1), torch.cat((key, one), -1)
    # Normed vectors have length 1 here, sqrt(dim) in a layer norm; the factor is put where it costs least.
    centre = torch.eye(dim, dtype=query.dtype, device=query.device) - 1 / dim
    model, slope = model @ centre, (offset * gain) @ centre
    curvature = (gain * gain * math.sqrt(dim)).mT * centre
    steps = (key * (rate * math.sqrt(dim))).mT
    models: list[Tensor] = []
    gradients: list[Tensor] = []
    for inputs, step, linear in zip(key.unbind(), steps.unbind(), slope.unbind(), strict=True):
        models.append(model)
        hidden = inputs @ model
        inverse = ((hidden * hidden).sum(-1, keepdim=True) + dim * EPSILON).rsqrt()
        normed = hidden * inverse
        error = torch.baddbmm(linear, normed, curvature)
        along = (error * normed).sum(-1, keepdim=True)
        gradient = torch.addcmul(error, normed, along, value=-1) * inverse
        gradients.append(gradient)
        model = torch.baddbmm(model, step, gradient, alpha=-1)
    attention = (query @ steps) * causal_mask(query.shape[2], query)
    return query @ torch.stack(models) - attention @ torch.stack(gradients)
