"""Checks that all forms of the operation share."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.operands import check_shapes


def checked_vocab(hidden: Tensor, weight: Tensor, targets: Tensor, vocab: int | None) -> int:
    """The number of real token ids.

    Raises:
        ValueError: shapes that disagree, a vocabulary larger than the weight.
        TypeError: floating point operands that are not, or targets that are not int64.
    """
    operation = "linear_cross_entropy"
    check_shapes(operation, hidden=(hidden, "tokens dim"), weight=(weight, "vocab dim"))
    if targets.dtype != torch.int64:
        raise TypeError(f"{operation}: targets have dtype {targets.dtype}, expected torch.int64")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"{operation}: targets have shape {list(targets.shape)}, expected [{hidden.shape[0]}]")
    rows = weight.shape[0]
    if vocab is not None and not 1 <= vocab <= rows:
        raise ValueError(f"{operation}: vocab is {vocab}, expected 1 to {rows}, the rows of weight")
    return rows if vocab is None else vocab
