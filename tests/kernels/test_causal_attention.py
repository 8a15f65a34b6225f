"""Causal attention by fused kernels gives what its definition gives, and keeps documents apart exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.causal_attention import causal_attention, operation
from kernels.causal_attention.reference import causal_attention as reference
from tests.kernels.cases import error, gradients, requiring_grad

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2}


@pytest.fixture(params=[True, False], ids=["mask", "columns"])
def masked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to keep documents apart."""
    monkeypatch.setattr(operation, "_MASKED", DEVICES[:1] if request.param else ())


def operands(length: int, key: int, value: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    shapes = {"q": (2, length, 3, key), "k": (2, length, 3, key), "v": (2, length, 3, value)}
    return {name: torch.randn(shape, dtype=torch.float64).to(device, dtype) for name, shape in shapes.items()}


def numbered(*sizes: int) -> Tensor:
    return torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)], dtype=torch.int32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("key", "value", "scale"), [(8, 8, None), (5, 12, 0.3), (16, 4, -0.5)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.usefixtures("masked")
def test_results_and_gradients(
    key: int, value: int, scale: float | None, packed: bool, decayed: bool, dtype: torch.dtype, device: str
) -> None:
    made = operands(71, key, value, dtype, device)
    if decayed:
        made["log_decay"] = torch.tensor([0.0, -0.05, -1.3], device=device, dtype=dtype)
    documents = None
    if packed:
        documents = torch.stack((numbered(1, 40, 29, 1), 7 - numbered(30, 1, 1, 39))).to(device)
        documents[1, 60:] = -1
    mine, theirs = requiring_grad(made), requiring_grad({name: x.double() for name, x in made.items()})
    found = causal_attention(**mine, scale=scale, documents=documents)
    wanted = reference(**theirs, scale=scale, documents=documents)
    assert found.dtype == dtype
    assert error(found, wanted) < TOLERANCES[dtype]
    one, two = gradients((found,), mine), gradients((wanted,), theirs)
    if dtype == torch.bfloat16:
        made.pop("log_decay", None)  # three numbers, each a sum in which thousands of rounded ones cancel
    assert all(error(one[name], two[name]) < TOLERANCES[dtype] for name in made)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("masked")
def test_not_a_bit_crosses_between_documents(dtype: torch.dtype, device: str) -> None:
    # More documents than bfloat16 has integers in a row for, and logits of tens of nats.
    made = operands(700, 16, 16, dtype, device)
    made["q"] = 4 * made["q"]
    documents = (torch.arange(700, device=device) // 2).expand(2, 700)
    before = requiring_grad(made)
    out = causal_attention(**before, documents=documents)
    other = made | {name: torch.cat((torch.randn_like(made[name][:, :-4]), made[name][:, -4:]), 1) for name in "kv"}
    assert torch.equal(causal_attention(**other, documents=documents)[:, -4:], out[:, -4:])
    grads = torch.autograd.grad(out[:, -4:].double().square().sum(), list(before.values()))
    assert all(not grad[:, :-4].any() and grad[:, -4:].any() for grad in grads)
    # Float64 keeps what exp(-128) leaves.
    wide = {name: x.double() for name, x in made.items()}
    changed = {name: x.double() for name, x in other.items()}
    kept = [causal_attention(**x, documents=documents)[:, -4:] for x in (wide, changed)]
    assert error(*kept) < 1e-12


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-2)], ids=str)
@pytest.mark.usefixtures("masked")
def test_documents_stay_apart_where_logits_differ_by_thousands(
    dtype: torch.dtype, tolerance: float, device: str
) -> None:
    made = operands(60, 8, 8, dtype, device)
    made["q"] = 300 * made["q"]
    made["k"][:, :30] *= 10
    documents = numbered(10, 20, 25, 5).to(device).expand(2, 60)
    mine, theirs = requiring_grad(made), requiring_grad({name: x.double() for name, x in made.items()})
    found = causal_attention(**mine, documents=documents)
    wanted = reference(**theirs, documents=documents)
    assert error(found, wanted) < tolerance
    grads = torch.autograd.grad(found[:, 30:].double().square().sum(), list(mine.values()))
    assert all(float(grad[:, :30].abs().max()) < 1e-30 < float(grad[:, 30:].abs().max()) for grad in grads)


def test_operands_that_do_not_fit() -> None:
    made = operands(6, 4, 4, torch.float32)
    with pytest.raises(ValueError, match=r"documents has shape \[2, 5\], expected \[batch, length\], \[2, 6\]"):
        causal_attention(**made, documents=torch.zeros(2, 5, dtype=torch.int32))
    with pytest.raises(TypeError, match="expected integers"):
        causal_attention(**made, documents=torch.zeros(2, 6))
    with pytest.raises(ValueError, match="scale is 0"):
        causal_attention(**made, scale=0.0, documents=torch.zeros(2, 6, dtype=torch.int32))
    with pytest.raises(ValueError, match="k has shape"):
        causal_attention(**(made | {"k": made["k"][:, :3]}))
