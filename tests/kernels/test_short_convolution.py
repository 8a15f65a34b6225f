"""The GPU form of the short convolution; what it shares with every operation is in the other files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.short_convolution import chunked, operation, short_convolution
from tests.kernels.cases import error
from tests.kernels.conftest import TOLERANCES
from tests.kernels.interpreter import run_interpreted


def test_gpu_form_in_the_interpreter() -> None:
    run_interpreted("interpreted_short_convolution.py")


@pytest.mark.parametrize("taps", [4, 17])
def test_gpu_forms_compile(taps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With documents, which have all branches of the others."""
    pytest.importorskip("triton")
    from tests.kernels.absent_gpu import launches
    from tests.kernels.bench_channels import convolution
    from tests.kernels.compile_kernels import use

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    uses = [use(launch, 90) for launch in launches(convolution(2, 2048, 64, taps, biased=True, documents=True))]
    assert [one.kernel for one in uses] == {
        4: ["forward_kernel", "backward_kernel"], 17: [*["filter_kernel"] * 3, "taps_kernel"]
    }[taps]  # fmt: skip
    assert not any(one.spilled for one in uses)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [1, 4, 8, 9, 30, 64, 65])
@pytest.mark.parametrize("length", [1, 65, 1000])
def test_on_a_gpu(length: int, width: int, dtype: torch.dtype) -> None:
    """Against the plain form in float64, which the other files compare with the reference; never much worse than it is
    in the same precision."""
    for dim, bias, activation in ((256, None, "silu"), (100, torch.randn(100, device="cuda"), None)):
        x = torch.randn(2, length, 3 * dim, device="cuda", dtype=dtype)[:, :, dim : 2 * dim]
        weight = torch.randn(dim, width, device="cuda")
        operands = [x, weight] if bias is None else [x, weight, bias]
        ours, plain = ([t.detach().clone().requires_grad_() for t in operands] for _ in range(2))
        exact = [t.detach().double().requires_grad_() for t in operands]
        y, z = short_convolution(*ours, activation=activation), chunked.short_convolution(*plain, activation=activation)
        wanted = chunked.short_convolution(*exact, activation=activation)
        dy = torch.randn_like(y)
        pairs = [(y, z, wanted)]
        pairs += zip(
            torch.autograd.grad(y, ours, dy), torch.autograd.grad(z, plain, dy),
            torch.autograd.grad(wanted, exact, dy.double()), strict=True,
        )  # fmt: skip
        for found, other, expected in pairs:
            assert error(found, expected) < min(TOLERANCES.get(dtype, 1e-2), 1.2 * error(other, expected) + 1e-6)
        assert torch.equal(short_convolution(*ours, activation=activation), y)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 9, 30, 64])
def test_documents_on_a_gpu(width: int, dtype: torch.dtype) -> None:
    """Lengths of documents from 1; a single one in a row changes no bit."""
    begins = torch.rand(2, 700, device="cuda") < torch.tensor([[0.02], [0.5]], device="cuda")
    documents = begins.cumsum(1, dtype=torch.int32)
    documents[:, -30:] = -1
    x = torch.randn(2, 700, 300, device="cuda", dtype=dtype)[:, :, 100:200].requires_grad_()
    weight = torch.randn(100, width, device="cuda", requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    y = short_convolution(x, weight, activation="silu", documents=documents)
    wanted = chunked.short_convolution(*exact, activation="silu", documents=documents)
    dy = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, (x, weight), dy))
    for ours, expected in zip(found, (wanted, *torch.autograd.grad(wanted, exact, dy.double())), strict=True):
        assert error(ours, expected) < TOLERANCES[dtype]
    one, alone = (short_convolution(x, weight, documents=ids) for ids in (torch.zeros_like(documents), None))
    assert torch.equal(one, alone)


@pytest.mark.gpu
@pytest.mark.parametrize("apart", [False, True])
def test_in_a_compiled_graph(apart: bool) -> None:
    x, weight = (torch.randn(*shape, device="cuda", requires_grad=True) for shape in ((2, 100, 64), (64, 4)))
    documents = torch.arange(200, device="cuda").view(2, 100) // 7 if apart else None

    def run(x: Tensor, w: Tensor) -> Tensor:
        return short_convolution(x * 2, w, documents=documents) + 1

    compiled = torch.compile(run, fullgraph=True)
    found = torch.autograd.grad(compiled(x, weight).square().sum(), (x, weight))
    wanted = torch.autograd.grad(run(x, weight).square().sum(), (x, weight))
    assert all(error(a, b) < 1e-6 for a, b in zip(found, wanted, strict=True))


def test_what_a_compiler_is_told_of_the_kernels() -> None:
    """Shapes and types of results and gradients, without a device."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, weight = torch.empty(2, 9, 6, dtype=torch.bfloat16, requires_grad=True), torch.empty(6, 4)
        y = operation._forward(x, weight, None, torch.empty(2, 9, dtype=torch.int32), True)
        (dx,) = torch.autograd.grad(y.sum(), x)
    assert (y.shape, y.dtype, dx.shape, dx.dtype) == (x.shape, x.dtype, x.shape, x.dtype)
