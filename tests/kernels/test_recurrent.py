"""Decoding token by token goes on exactly where an operation over many tokens stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.delta_rule import recurrent as delta_rule
from kernels.linear_attention import recurrent as linear_attention
from kernels.linear_scan import recurrent as linear_scan
from kernels.short_convolution import recurrent as short_convolution
from kernels.ttt_linear import recurrent as ttt_linear
from tests.kernels.cases import CASES, Case, Operands, Sizes, error
from tests.kernels.conftest import TOLERANCES

LENGTH, CUT = 70, 37
STEPS: dict[str, Callable[..., Any]] = {
    "delta_rule": delta_rule.step,
    "linear_attention": linear_attention.step,
    "linear_scan": linear_scan.step,
    "short_convolution": short_convolution.step,
    "ttt_linear": ttt_linear.step,
}
DECODED = [case for case in CASES if case.name.split("-")[0] in STEPS]
NAMED = pytest.mark.parametrize("case", DECODED, ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def begin(case: Case, operands: Operands, cut: int) -> Any:
    """The state after `cut` tokens, as the operation over many tokens gives it."""
    name = case.name.split("-")[0]
    first = {n: x[:, :cut] if n in case.tokens else x for n, x in operands.items()}
    if "initial_state" in operands:
        return case.run(first)[1] if cut else operands["initial_state"]
    if name == "short_convolution":
        return short_convolution.state_after(first["x"], operands["weight"].shape[1])
    if name == "linear_scan":
        x = first["x"].to(torch.promote_types(first["x"].dtype, torch.float32))
        return case.run(first | {"x": x})[0][:, -1] if cut else torch.zeros_like(x[:, 0:1]).sum(1)
    assert cut == 0
    return ttt_linear.initial_state(operands["weight"], operands["bias"], len(operands["q"]))


def decode(case: Case, operands: Operands, cut: int) -> tuple[Tensor, Any]:
    state = begin(case, operands, cut)
    step = STEPS[case.name.split("-")[0]]
    ours = {"initial_state", *(("weight", "bias") if case.name == "ttt_linear" else ())}
    outputs = []
    for t in range(cut, LENGTH):
        token = {n: x[:, t] if n in case.tokens else x for n, x in operands.items() if n not in ours}
        out, state = step(**token, **case.options, state=state)
        outputs.append(out)
    return torch.stack(outputs, 1), state


@NAMED
@DTYPES
def test_steps_give_what_the_operation_gives(case: Case, dtype: torch.dtype) -> None:
    operands = case.operands(Sizes(length=LENGTH, key=6, value=5), dtype=dtype)
    expected = case.run(operands)
    for cut in (0, CUT) if case.name != "ttt_linear" else (0,):
        out, state = decode(case, operands, cut)
        assert out.dtype == dtype
        assert error(out, expected[0][:, cut:]) < TOLERANCES[dtype]
        if len(expected) == 2:
            assert state.dtype == expected[1].dtype
            assert error(state, expected[1]) < TOLERANCES[state.dtype]


@NAMED
def test_a_step_keeps_its_precision_under_autocast(case: Case) -> None:
    operands = case.operands(Sizes(length=LENGTH, key=6, value=5), dtype=torch.float32)
    wanted = decode(case, operands, 0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(decode(case, operands, 0)[0], wanted)


def test_shapes_that_disagree_are_named() -> None:
    x, heads = torch.zeros(2, 3), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"delta_rule step: state has shape .* key is 3, expected 4"):
        delta_rule.step(heads, heads, heads, x, state=torch.zeros(2, 3, 3, 4))
    with pytest.raises(ValueError, match=r"linear_attention step: log_decay has shape .* heads is 2, expected 3"):
        linear_attention.step(heads, heads, heads, torch.zeros(2, 2), state=torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"linear_scan step: state has shape .* dim is 4, expected 3"):
        linear_scan.step(x, x, state=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"state has shape \[2, 4, 3\], expected \[2, 3, 3\]"):
        short_convolution.step(x, torch.zeros(3, 4), state=torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="activation is 'relu'"):
        short_convolution.step(x, torch.zeros(3, 1), activation="relu", state=torch.zeros(2, 0, 3))  # type: ignore[arg-type]
