"""Every operation gives the results and gradients of its step-by-step reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.kernels.cases import CASES, DECAYED, STATEFUL, Case, Operands, Sizes, error, gradients, requiring_grad
from tests.kernels.conftest import TOLERANCES

LENGTHS = [1, 2, 31, 64, 65, 100]
# 9 and 24 make groups of unequal blocks in the diagonal form, 16 is the default of TTT.
CHUNK_SIZES = [1, 9, 16, 24, 64]
NAMED = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def compare(case: Case, operands: Operands, tolerance: float, **options: int) -> None:
    """Results and gradients of `operands` as they are, against the reference in float64."""
    ours = requiring_grad(operands)
    exact = requiring_grad({name: x.double() for name, x in operands.items()})
    results, expected = case.run(ours, **options), case.run_reference(exact, **options)
    assert len(results) == len(expected)
    for index, (found, wanted) in enumerate(zip(results, expected, strict=True)):
        assert found.shape == wanted.shape
        assert error(found, wanted) < tolerance, f"result {index} with {options}"
    found_gradients, wanted_gradients = gradients(results, ours), gradients(expected, exact)
    for name in operands:
        assert error(found_gradients[name], wanted_gradients[name]) < tolerance, f"gradient of {name} with {options}"


@NAMED
@pytest.mark.parametrize("length", LENGTHS)
def test_results_and_gradients_in_float64(case: Case, length: int) -> None:
    operands = case.operands(Sizes(length=length))
    for chunk_size in CHUNK_SIZES if case.chunked else [None]:
        options = {} if chunk_size is None else {"chunk_size": chunk_size}
        compare(case, operands, TOLERANCES[torch.float64], **options)


@NAMED
def test_results_and_gradients_in_float32(case: Case) -> None:
    compare(case, case.operands(Sizes(length=100, key=16, value=16), dtype=torch.float32), TOLERANCES[torch.float32])


@NAMED
def test_bfloat16_is_computed_in_float32(case: Case) -> None:
    operands = case.operands(Sizes(length=65, key=8, value=8), dtype=torch.bfloat16)
    exact = case.run_reference({name: x.double() for name, x in operands.items()})
    ours = requiring_grad(operands)
    results = case.run(ours)
    assert results[0].dtype == torch.bfloat16
    assert error(results[0], exact[0]) < TOLERANCES[torch.bfloat16]
    for state, wanted in zip(results[1:], exact[1:], strict=True):
        assert state.dtype == torch.float32
        assert error(state, wanted) < TOLERANCES[torch.float32]
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients(results, ours).values())


@pytest.mark.parametrize("case", STATEFUL, ids=lambda case: case.name)
def test_scale(case: Case) -> None:
    operands = case.operands(Sizes(length=20))
    for scale in (1.0, -0.3):
        for found, wanted in zip(
            case.run(operands, scale=scale), case.run_reference(operands, scale=scale), strict=True
        ):
            assert error(found, wanted) < TOLERANCES[torch.float64]


@pytest.mark.parametrize("case", STATEFUL, ids=lambda case: case.name)
def test_default_initial_state_is_zero(case: Case) -> None:
    operands = case.operands(Sizes(length=20))
    zero = operands | {"initial_state": torch.zeros_like(operands["initial_state"])}
    del operands["initial_state"]
    for found, wanted in zip(case.run(operands), case.run_reference(zero), strict=True):
        assert error(found, wanted) < TOLERANCES[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", DECAYED, ids=lambda case: case.name)
def test_extreme_decays(case: Case, dtype: torch.dtype) -> None:
    """Decays from nothing to everything, side by side: no overflow, and weak ones stay exact beside strong ones."""
    operands = case.operands(Sizes(length=65, key=8, value=8), dtype=dtype)
    choices = torch.tensor([0.0, -1e-3, -0.5, -30.0, -200.0, -1e4, -torch.inf], dtype=dtype)
    shape = operands["log_decay"].shape
    index = torch.randint(len(choices), shape, generator=torch.Generator().manual_seed(3))
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.6
    compare(case, operands | {"log_decay": torch.where(keep, choices[1], choices[index])}, TOLERANCES[dtype])
    for constant in choices:
        compare(case, operands | {"log_decay": torch.full(shape, float(constant), dtype=dtype)}, TOLERANCES[dtype])


@pytest.mark.parametrize("strong", [4, 96])
@pytest.mark.parametrize("case", [case for case in DECAYED if "log_decay" in case.tokens], ids=lambda case: case.name)
def test_weak_decays_after_strong_ones(case: Case, strong: int) -> None:
    """In one chunk, where their sums in float32 would have lost them."""
    operands = case.operands(Sizes(length=128, key=8, value=8), dtype=torch.float32)
    decay = torch.full_like(operands["log_decay"], -1e-3)
    decay[:, :strong] = -1e3
    options = {"chunk_size": 128} if case.chunked else {}
    compare(case, operands | {"log_decay": decay}, TOLERANCES[torch.float32], **options)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_delta_rule_with_hard_keys(case: Case, beta: float) -> None:
    """Few distinct keys, written over and over: the triangular system is as far from the identity as it gets."""
    operands = case.operands(Sizes(length=100), dtype=torch.float64)
    keys = operands["k"][:, :2].repeat(1, 50, 1, 1)
    operands |= {"k": keys, "beta": torch.full_like(operands["beta"], beta)}
    compare(case, operands, TOLERANCES[torch.float64])
    compare(case, {name: x.float() for name, x in operands.items()}, TOLERANCES[torch.float32])


@settings(deadline=None, max_examples=40)
@given(
    case=st.sampled_from(CASES),
    sizes=st.builds(
        Sizes,
        batch=st.integers(1, 3),
        length=st.integers(1, 40),
        heads=st.integers(1, 3),
        key=st.integers(2, 6),
        value=st.integers(1, 6),
    ),
    chunk_size=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_any_shape(case: Case, sizes: Sizes, chunk_size: int, seed: int) -> None:
    # A layer norm of two numbers is ±1 whatever they are: its gradient is nothing but rounding.
    assume(case.name != "ttt_linear" or sizes.key > 2)
    options = {"chunk_size": chunk_size} if case.chunked else {}
    compare(case, case.operands(sizes, seed=seed), 10 * TOLERANCES[torch.float64], **options)


@settings(deadline=None, max_examples=25)
@given(
    case=st.sampled_from(STATEFUL),
    length=st.integers(2, 40),
    data=st.data(),
    chunk_size=st.integers(1, 50),
)
def test_a_sequence_may_be_cut_anywhere(case: Case, length: int, data: st.DataObject, chunk_size: int) -> None:
    cut = data.draw(st.integers(1, length - 1))
    operands = case.operands(replace(Sizes(), length=length))
    whole, state = case.run(operands, chunk_size=chunk_size)
    first = operands | {name: operands[name][:, :cut] for name in case.tokens}
    second = operands | {name: operands[name][:, cut:] for name in case.tokens}
    begun, between = case.run(first, chunk_size=chunk_size)
    ended, last = case.run(second | {"initial_state": between}, chunk_size=chunk_size)
    assert error(torch.cat((begun, ended), 1), whole) < TOLERANCES[torch.float64]
    assert error(last, state) < TOLERANCES[torch.float64]


@pytest.mark.parametrize("width", [1, 3, 64, 65, 130, 300])
def test_long_convolution_of_any_width(width: int) -> None:
    case = next(case for case in CASES if case.name == "long_convolution")
    operands = case.operands(Sizes(length=130))
    taps = torch.randn(operands["x"].shape[-1], width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    compare(case, operands | {"filter": taps}, TOLERANCES[torch.float64])


def test_short_convolution_without_bias_and_wider_than_the_sequence() -> None:
    case = next(case for case in CASES if case.name.startswith("short_convolution-4"))
    operands = case.operands(Sizes(length=2))
    del operands["bias"]
    compare(case, operands, TOLERANCES[torch.float64])


@NAMED
def test_second_derivatives(case: Case) -> None:
    operands = requiring_grad(case.operands(Sizes(batch=1, length=5, heads=1, key=2, value=2)))
    options = {"chunk_size": 3} if case.chunked else {}

    def function(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return case.run(dict(zip(operands, values, strict=True)), **options)

    assert torch.autograd.gradgradcheck(function, tuple(operands.values()), atol=1e-4)


@pytest.mark.gpu
@NAMED
@pytest.mark.parametrize("length", [1, 65, 200])
def test_cuda_agrees_with_the_cpu(case: Case, length: int) -> None:
    for dtype in (torch.float64, torch.float32):
        operands = case.operands(Sizes(length=length, key=16, value=16), dtype=dtype)
        host = requiring_grad({name: x.double() for name, x in operands.items()})
        device = requiring_grad({name: x.cuda() for name, x in operands.items()})
        expected, results = case.run_reference(host), case.run(device)
        for found, wanted in zip(results, expected, strict=True):
            assert error(found.cpu(), wanted) < TOLERANCES[dtype]
        found_gradients, wanted_gradients = gradients(results, device), gradients(expected, host)
        for name in operands:
            assert error(found_gradients[name].cpu(), wanted_gradients[name]) < TOLERANCES[dtype], name
