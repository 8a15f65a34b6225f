from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asiarch_hpc.gate.checks.subject import all_finite

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
@pytest.mark.parametrize("place", [0, 1, 517, 2 * 33 * 17 - 1])
def test_one_bad_number_anywhere_is_seen(bad: float, dtype: torch.dtype, place: int) -> None:
    def tensor(value: float) -> Tensor:
        flat = torch.linspace(-3, 3, 2 * 33 * 17).to(dtype)
        flat[place] = value
        return flat.view(2, 33, 17)

    for shown in (tensor(bad), tensor(bad).transpose(0, 2), tensor(bad).requires_grad_()):
        assert not all_finite(shown)
    assert all_finite(tensor(0.0).mT)


def test_the_largest_numbers_are_finite() -> None:
    largest = torch.finfo(torch.float32).max
    assert all_finite(torch.tensor([-largest, largest]))
    assert all_finite(torch.ones(0, 4))
