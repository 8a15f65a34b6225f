"""TTT-Linear token by token: the definition that the dual form is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes, without_autocast, working_dtype
from kernels.ttt_linear.chunked import AXES, EPSILON


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
    """Same arguments and result as `kernels.ttt_linear.ttt_linear`. Autograd takes the inner gradients."""
    operands = {
        "q": q, "k": k, "v": v, "eta": eta, "weight": weight, "bias": bias, "ln_weight": ln_weight, "ln_bias": ln_bias
    }  # fmt: skip
    size = check_shapes("ttt_linear", **{name: (operands[name], AXES[name]) for name in AXES})
    dtype = working_dtype(v)
    gain, shift = ln_weight.to(dtype), ln_bias.to(dtype)

    def model(x: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        hidden = torch.einsum("bhd,bhde->bhe", x, weights) + biases
        return x + F.layer_norm(hidden, (size["dim"],), eps=EPSILON) * gain + shift

    # One copy a row, so that the gradient of the summed loss is each row's own.
    weights = weight.to(dtype).expand(size["batch"], -1, -1, -1).clone()
    biases = bias.to(dtype).expand(size["batch"], -1, -1).clone()
    outputs = []
    with without_autocast(v), torch.enable_grad():
        for t in range(size["length"]):
            query, key, value, rate = (x[:, t].to(dtype) for x in (q, k, v, eta))
            if t % chunk_size == 0:
                start = [x if x.requires_grad else x.requires_grad_() for x in (weights, biases)]
            loss = (model(key, *start) - value).square().sum() / 2
            weight_grad, bias_grad = torch.autograd.grad(loss, start, create_graph=True)
            weights = weights - rate[..., None, None] * weight_grad
            biases = biases - rate[..., None] * bias_grad
            outputs.append(model(query, weights, biases))
    return torch.stack(outputs, 1).to(v.dtype)
