import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from asiarch_hpc.training.micro_batch import (
    _trial_pass,
    find_micro_batch,
    fit_micro_batch,
    free_memory,
    is_out_of_memory,
)
from asiarch_hpc.training.monitor import TrainingStoppedError

MIB = 2**20


@given(
    fixed=st.integers(0, 1000),
    row=st.integers(1, 200),
    rows=st.integers(1, 256),
    budget=st.integers(1, 20_000),
)
def test_it_is_the_largest_divisor_that_fits(fixed: int, row: int, rows: int, budget: int) -> None:
    asked: list[int] = []

    def measure(count: int) -> float:
        asked.append(count)
        return fixed + row * count

    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and fixed + row * n <= budget]
    if not fitting:
        with pytest.raises(TrainingStoppedError) as caught:
            find_micro_batch(measure, rows=rows, budget_bytes=budget, margin=0.0)
        assert caught.value.cause == "out_of_memory"
        return
    found = find_micro_batch(measure, rows=rows, budget_bytes=budget, margin=0.0)
    assert found == max(fitting)
    assert found in asked or found <= 2
    assert len(asked) <= 3


@given(power=st.floats(1.0, 2.0), spare=st.floats(1.5, 1e4), rows=st.sampled_from([1, 6, 7, 32, 96]))
def test_what_is_found_has_been_seen_to_fit_however_memory_grows(power: float, spare: float, rows: int) -> None:
    found = find_micro_batch(
        lambda n: n**power if n**power < 2 * spare else math.inf, rows=rows, budget_bytes=spare, margin=0.1
    )
    assert rows % found == 0
    assert found**power <= spare


def test_a_margin_leaves_room() -> None:
    def found(margin: float) -> int:
        return find_micro_batch(lambda n: 100 + 10 * n, rows=64, budget_bytes=420, margin=margin)

    assert (found(0.0), found(0.1)) == (32, 16)


def test_what_is_measured_is_a_pass_with_documents() -> None:
    seen: list[Tensor] = []

    def loss(ids: Tensor, targets: Tensor, *, documents: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        seen.append(documents)
        return torch.zeros((), requires_grad=True), torch.zeros(())

    objective = cast(Any, SimpleNamespace(loss=loss))
    _trial_pass(objective, length=20, vocab=7, device=torch.device("cpu"))(3)
    assert (seen[0].dtype, tuple(seen[0].shape)) == (torch.int32, (3, 20))
    assert set(seen[0].diff(dim=1).unique().tolist()) == {0, 1}


def test_a_cpu_takes_all_rows_without_a_measurement() -> None:
    def never(rows: int) -> None:
        raise AssertionError

    model = nn.Linear(2, 2)
    assert fit_micro_batch(never, model, rows=24, device=torch.device("cpu"), share=0.9, margin=0.1) == 24


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


class Wide(nn.Module):
    """Keeps a few MiB a row for the backward pass, draws random numbers, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1024))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1  # type: ignore[operator]
        return nn.functional.dropout((x * self.weight).exp(), 0.1).sum()


@pytest.mark.gpu
@pytest.mark.parametrize("limit_mib", [200, 1000])
def test_it_fits_where_memory_really_runs_out(limit_mib: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    model = Wide().to(device)
    biggest = 0

    def run_pass(rows: int) -> None:
        nonlocal biggest
        model(torch.zeros(rows, 256, 1024, device=device)).backward()
        biggest = max(biggest, rows)

    total = torch.cuda.get_device_properties(device).total_memory
    free_memory(device)
    limit = torch.cuda.memory_reserved(device) + limit_mib * MIB  # beside what tests before this one left
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        # The budget is taken for far larger than it is: only running out of memory shows the limit.
        found = fit_micro_batch(run_pass, model, rows=4096, device=device, share=0.9, margin=0.1)
        assert found == biggest
        assert 2 <= found <= limit_mib
        run_pass(found)
        with pytest.raises(torch.OutOfMemoryError):
            run_pass(4 * found)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.gpu
def test_measuring_leaves_no_trace() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    model = Wide().to(device)
    before = torch.cuda.memory_allocated(device)
    random = torch.cuda.get_rng_state(device)

    def run_pass(rows: int) -> None:
        model(torch.zeros(rows, 256, 1024, device=device)).backward()

    assert fit_micro_batch(run_pass, model, rows=48, device=device, share=0.5, margin=0.1) == 48
    # Tests before this one may have left something there, as the workspaces of matrix products.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    share = (before + 40 * MIB) / free
    assert fit_micro_batch(run_pass, model, rows=48, device=device, share=share, margin=0.1) in (2, 3, 4, 6)
    assert torch.equal(random, torch.cuda.get_rng_state(device))
    assert model.weight.grad is None
    assert float(model.calls) == 0.0
    assert torch.cuda.memory_allocated(device) <= before
