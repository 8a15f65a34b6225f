"""How closely an operation must agree with its reference."""

import torch

# Relative error of a tensor, in the Euclidean norm, against the reference computed in float64.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 1e-2,  # the output is rounded to eight bits
}
