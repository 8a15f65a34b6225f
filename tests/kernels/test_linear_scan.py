"""The GPU form of the linear scan; what it shares with every operation is in the other files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.linear_scan import chunked, linear_scan
from tests.kernels.cases import error
from tests.kernels.conftest import TOLERANCES
from tests.kernels.interpreter import run_interpreted


def test_gpu_form_in_the_interpreter() -> None:
    run_interpreted("interpreted_linear_scan.py")


def test_gpu_form_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from tests.kernels.absent_gpu import launches
    from tests.kernels.bench_channels import scan
    from tests.kernels.compile_kernels import use

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    uses = [use(launch, 90) for launch in launches(scan(2, 2048, 64))]
    assert sorted(one.kernel for one in uses) == ["backward_kernel", "ends_kernel", "ends_kernel", "forward_kernel"]
    assert not any(one.spilled for one in uses)


def draw(batch: int, length: int, dim: int, dtype: torch.dtype, *, constant: bool) -> tuple[Tensor, Tensor]:
    """Channels of a larger tensor, as of a projection for several uses; fresh ones each time."""
    x = torch.randn(batch, length, 3 * dim, device="cuda", dtype=dtype)[:, :, dim : 2 * dim]
    shape = (dim,) if constant else (batch, length, dim)
    return x, -(torch.randn(*shape, device="cuda") - 2).exp().to(dtype)


def compare(*draws: tuple[Tensor, Tensor]) -> None:
    """Against the plain form in float64, which the other files compare with the reference; over all draws never much
    worse than it is in the same precision; and the same bits again."""
    torch.full((2**26,), torch.nan, device="cuda")  # what is not written shows
    rounding = max(_rounding(log_decay) for _, log_decay in draws)
    for of_each_draw in zip(*(_results(x, log_decay) for x, log_decay in draws), strict=True):
        mine, plain, exact = (torch.cat([x.flatten().double() for x in way]) for way in zip(*of_each_draw, strict=True))
        limit = TOLERANCES.get(draws[0][0].dtype, 1e-2)
        assert error(mine, exact) < min(limit, 1.2 * error(plain, exact) + 1e-6 + 2 * rounding)


def _rounding(log_decay: Tensor) -> float:
    """What rounding a constant decay a to float32 does to a state: the same error at each token of its memory of
    1 / (1 - a). The plain form, which squares decays, does not repeat it; a gradient has it of two states."""
    if log_decay.dim() > 1:
        return 0.0
    a = log_decay.double().exp()
    return float(((a.float().double() - a).abs() / (1 - a)).nan_to_num(0.0).max())


def _results(x: Tensor, log_decay: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The result and each gradient: of the kernels, of the plain form and of that in float64."""
    ours, plain = ([t.detach().clone().requires_grad_() for t in (x, log_decay)] for _ in range(2))
    exact = [t.detach().double().requires_grad_() for t in (x, log_decay)]
    y, z, wanted = linear_scan(*ours), chunked.linear_scan(*plain), chunked.linear_scan(*exact)
    # Small, so that what a constant decay's gradient sums over all tokens stays in float16's range.
    dy = torch.randn_like(y) / 64
    found = torch.autograd.grad(y, ours, dy, retain_graph=True)
    others, right = torch.autograd.grad(z, plain, dy), torch.autograd.grad(wanted, exact, dy.double())
    for _ in range(3):
        again = linear_scan(*ours)
        repeated = torch.autograd.grad(again, ours, dy)
        assert all(torch.equal(a, b) for a, b in zip((again, *repeated), (y, *found), strict=True))
    assert [x.dtype for x in (y, *found)] == [x.dtype for x in (z, *others)]
    return list(zip((y, *found), (z, *others), (wanted, *right), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("length", [1, 15, 65, 1000, 2047])
def test_on_a_gpu(length: int, constant: bool, dtype: torch.dtype) -> None:
    for batch, dim in ((2, 256), (3, 100)):
        compare(draw(batch, length, dim, dtype, constant=constant))
    # Of a single number, whether its rounding is larger than another's says nothing.
    compare(*(draw(1, length, 1, dtype, constant=constant) for _ in range(30)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_long_and_wide(dtype: torch.dtype) -> None:
    compare(draw(1, 32_768, 1024, dtype, constant=False))
    compare(draw(64, 128, 1000, dtype, constant=False))


@pytest.mark.gpu
def test_extreme_decays_on_a_gpu() -> None:
    x, log_decay = draw(2, 500, 64, torch.float32, constant=False)
    choices = torch.tensor([0.0, -1e-3, -0.5, -30.0, -200.0, -1e4, -torch.inf], device="cuda")
    compare((x, choices[torch.randint(len(choices), log_decay.shape, device="cuda")]))
    for constant in choices:
        compare((x, constant.expand(64).contiguous()))


@pytest.mark.gpu
def test_no_token_reaches_an_earlier_output_on_a_gpu() -> None:
    x, log_decay = draw(1, 700, 64, torch.float32, constant=False)
    before = linear_scan(x, log_decay)
    for position in (1, 8, 130, 512, 699):
        for operands in ((x.clone(), log_decay), (x, log_decay.clone())):
            changed = operands[0] if operands[1] is log_decay else operands[1]
            changed[:, position:] = torch.nan
            after = linear_scan(*operands)
            assert torch.equal(after[:, :position], before[:, :position])
            assert after[:, position:].isnan().all()


@pytest.mark.gpu
def test_in_a_compiled_graph() -> None:
    x, log_decay = (t.detach().clone().requires_grad_() for t in draw(2, 100, 64, torch.float32, constant=False))
    compiled = torch.compile(lambda x, g: linear_scan(x * 2, g) + 1, fullgraph=True)
    found = torch.autograd.grad(compiled(x, log_decay).square().sum(), (x, log_decay))
    wanted = torch.autograd.grad((linear_scan(x * 2, log_decay) + 1).square().sum(), (x, log_decay))
    assert all(error(a, b) < 1e-5 for a, b in zip(found, wanted, strict=True))
