"""The Triton kernels of the delta rule against its reference: on a GPU, and by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.configurations import find, read_table, trial
from kernels.delta_rule import chunked, delta_rule, operation, reference
from tests.kernels.cases import Operands, error, gradients, repeated, requiring_grad

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Everything in this file but the test that starts the interpreter.
needs_kernels = [] if INTERPRETED else [pytest.mark.gpu]
on_gpu = pytest.mark.skipif(INTERPRETED, reason="too large for the interpreter, or not float32")
DEVICE = "cpu" if INTERPRETED else "cuda"
# The relative error that the products' operands bring, rounded to 8 bits of mantissa (bfloat16) or 11 (tf32).
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1e-2}

# Of a forward and backward pass, by form.
LAUNCHES = {"states in memory": 6, "walks": 4, "walks of segments": 8}


def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None, **options: Any) -> Any:
    if not INTERPRETED:
        return delta_rule(q, k, v, beta, log_decay, **options)
    from kernels.delta_rule import triton

    options = {"initial_state": None, "scale": q.shape[-1] ** -0.5, "normalise": False, "documents": None} | options
    return triton.delta_rule(q, k, v, beta, log_decay, **options)


def operands(
    length: int, key: int, value: int, *, gated: bool = False, initial: bool = False, batch: int = 1, heads: int = 2,
    dtype: torch.dtype = torch.float32, most: float = 2.0, device: str = DEVICE,
) -> Operands:  # fmt: skip
    generator = torch.Generator(device).manual_seed(torch.seed() % 2**31 if not INTERPRETED else length + key)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    made = {
        "q": draw(batch, length, heads, key),
        "k": F.normalize(draw(batch, length, heads, key), dim=-1),
        "v": draw(batch, length, heads, value),
        "beta": draw(batch, length, heads).sigmoid() * most,
    }
    made |= {"log_decay": -(draw(batch, length, heads) - 1).exp()} if gated else {}
    made |= {"initial_state": draw(batch, heads, key, value)} if initial else {}
    return {name: x.to(dtype) for name, x in made.items()}


def compare(made: Operands, *, exact: Any = reference.delta_rule, bound: float | None = None, **options: Any) -> None:
    """Results and gradients against float64's."""
    bound = TOLERANCES[made["v"].dtype] if bound is None else bound
    if not INTERPRETED:
        torch.full((2**26,), torch.nan, device=DEVICE)  # what is not written shows
    mine, theirs = requiring_grad(made), requiring_grad({name: x.double() for name, x in made.items()})
    found, wanted = ours(**mine, **options), exact(**theirs, **options)
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape
        assert error(a, b) < bound, f"result {index}"
    mine_grad, theirs_grad = gradients(found, mine), gradients(wanted, theirs)
    for name in made:
        assert error(mine_grad[name], theirs_grad[name]) < bound, f"gradient of {name}"


def beside_rounded_products(made: Operands, most: float, patch: pytest.MonkeyPatch) -> None:
    """No error is above `most` times that of the plain form with products of bfloat16, or 2 times, if that is
    more, where a gradient is one number a token: few of them decide."""
    from tests.kernels.interpreter_bfloat16 import use_bfloat16
    from tests.kernels.rounded_products import RoundedProducts

    if INTERPRETED:
        use_bfloat16(patch)

    def run(way: Any, inputs: Operands) -> dict[str, Tensor]:
        inputs = requiring_grad(inputs)
        out, after = way(**inputs, normalise=True)
        return {"out": out, "after": after, **gradients((out, after), inputs)}

    exact = run(chunked.delta_rule, {name: x.double() for name, x in made.items()})
    with RoundedProducts():
        plain = run(chunked.delta_rule, made)
    for name, x in run(ours, made).items():
        bound = max(most, 2.0) if name in ("beta", "log_decay") else most
        assert error(x, exact[name]) < bound * error(plain[name], exact[name]), name


@pytest.fixture(params=["states in memory", "walks", "walks of segments"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms, walks also in segments, whatever the table says; one chunk is not cut, nor then walked through."""
    from kernels.delta_rule import plan

    few = {"states in memory": None, "walks": 1, "walks of segments": 10**6}[request.param]
    programs = (12 if INTERPRETED else 264) if request.param == "walks of segments" else 1
    look_up = plan.choose

    def choose(*what: Any, **shape: int) -> plan.Sizes:
        sizes: plan.Sizes = look_up(*what, **shape)
        return replace(sizes, walk=replace(sizes.walk, few=few, programs=programs, segments=2, span=1))

    monkeypatch.setattr(plan, "choose", choose)
    return str(request.param)


@pytest.mark.usefixtures("form")
class TestKernels:
    pytestmark = needs_kernels

    @pytest.mark.parametrize("length", [1, 15, 63, 64, 65, 100])
    def test_lengths(self, length: int) -> None:
        compare(operands(length, 16, 16, gated=length % 2 == 0, initial=length % 2 == 0))

    @pytest.mark.parametrize(("key", "value"), [(16, 32), (20, 50), (3, 1), (100, 40)])
    def test_widths(self, key: int, value: int) -> None:
        compare(operands(40, key, value, gated=True, initial=True), normalise=True, scale=-0.3)

    @pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
    def test_repeated_keys(self, beta: float) -> None:
        made = operands(64, 8, 8)
        keys = made["k"][:, :2].repeat(1, 32, 1, 1)
        compare(made | {"k": keys, "beta": torch.full_like(made["beta"], beta)})

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow
    @pytest.mark.parametrize("decay", [0.0, -1e-3, -0.5, -30.0, -200.0, -torch.inf])
    def test_extreme_decays(self, decay: float) -> None:
        made = operands(40, 16, 16, gated=True, initial=True, heads=1)
        compare(made | {"log_decay": torch.full_like(made["log_decay"], decay)})
        mixed = torch.where(torch.rand_like(made["log_decay"]) < 0.2, decay, -1e-3)
        mixed[:, 0] = -1e3  # sums in float32 would lose what follows
        compare(made | {"log_decay": mixed})

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30, -1e4])
    def test_a_later_token_never_reaches_an_earlier_output(self, value: float) -> None:
        made = operands(40, 16, 16, gated=True)
        before = ours(**made)[0]
        for name in made:
            for position in (5, 33):
                changed = made[name].clone()
                changed[:, position:, 0] = value
                after, state = ours(**(made | {name: changed}))
                assert torch.equal(after[:, :position], before[:, :position]), (name, position)
                assert torch.equal(after[:, :, 1], before[:, :, 1]), (name, position)
                if abs(value) != 1e4 and name != "q" and not (name == "log_decay" and value < 0):
                    assert after[:, position:, 0].isnan().all(), (name, position)
                    assert state[:, 0].isnan().all(), (name, position)

    def test_one_channel_spoils_its_head(self) -> None:
        made = operands(40, 16, 32)
        for name in "kv":
            made[name] = made[name].clone()
            made[name][:, 20, 0, 3] = torch.nan
            out, state = ours(**made)
            assert out[:, :20].isfinite().all()
            assert out[:, 20:, 0].isnan().all()
            assert state[:, 0].isnan().all()
            assert out[:, :, 1].isfinite().all()
            made = operands(40, 16, 32)

    def test_a_value_too_large_is_not_a_number(self, form: str) -> None:
        made = operands(40, 16, 16)
        before = ours(**made)[0]
        made["v"] = made["v"].clone()
        made["v"][:, 20, 0, 3] = 1e19  # its square is a number still
        out, state = ours(**made)
        assert torch.equal(out[:, :20], before[:, :20])
        assert torch.equal(out[:, :, 1], before[:, :, 1])
        if form != "states in memory":
            assert out[:, 20:, 0, 3].isnan().all()
            assert state[:, 0, :, 3].isnan().all()
            assert error(out[:, :, 0, 4:], before[:, :, 0, 4:]) < 1e-6
        exact = reference.delta_rule(**{name: x.double() for name, x in made.items()})
        for found, wanted in zip((out, state), exact, strict=True):
            assert (found.isnan() | torch.isclose(found.double(), wanted, rtol=1e-2, atol=1e16)).all()

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow
    def test_a_query_whose_square_overflows(self) -> None:
        made = operands(40, 16, 16)
        before = ours(**made, normalise=True)[0]
        made["q"] = made["q"].clone()
        made["q"][:, 20, 0, 3] = 1e30
        out, state = ours(**made, normalise=True)
        assert out[:, 20, 0].isnan().all()
        others = torch.arange(40, device=DEVICE) != 20
        assert error(out[:, others], before[:, others]) < 1e-6
        assert state.isfinite().all()

    def test_what_overflows_is_right_or_not_a_number(self) -> None:
        made = operands(40, 16, 16, initial=True)
        made["initial_state"] *= 1e25
        exact = reference.delta_rule(**{name: x.double() for name, x in made.items()})
        for found, wanted in zip(ours(**made), exact, strict=True):
            assert (found.isnan() | torch.isclose(found.double(), wanted, rtol=1e-2, atol=1e22)).all()

    @pytest.mark.parametrize("sizes", [[40], [1, 31, 1, 1, 64, 2, 30], [33, 32, 65], [64, 64, 1]])
    def test_documents(self, sizes: list[int]) -> None:
        made = operands(sum(sizes), 16, 20, initial=True, batch=2)
        of = torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)], device=DEVICE)
        compare(made, documents=torch.stack((of, of // 2)).int(), normalise=True)

    def test_one_document_is_none(self) -> None:
        made = requiring_grad(operands(70, 16, 16, initial=True))
        one = torch.zeros(1, 70, dtype=torch.int32, device=DEVICE)
        found, wanted = ours(**made, documents=one), ours(**made)
        assert all(error(a, b) < 1e-6 for a, b in zip(found, wanted, strict=True))
        mine, theirs = gradients(found, made), gradients(wanted, made)
        assert all(error(mine[name], theirs[name]) < 1e-6 for name in made)

    @pytest.mark.parametrize("gated", [False, True])
    def test_segments_side_by_side(self, gated: bool, form: str) -> None:
        if form == "walks":
            pytest.skip("these are not cut into segments")
        batch = 1 if form == "states in memory" else 4  # then three segments of two chunks or one
        sizes = find(read_table(), "delta_rule", "default", {"bits": 32, "width": 16, "gated": gated})
        with trial("delta_rule", {**sizes, "long": 2}):
            compare(operands(150, 16, 16, gated=gated, initial=gated, heads=1, batch=batch))
            if not gated:
                documents = torch.arange(150, device=DEVICE).expand(batch, 150) // 40
                compare(operands(150, 16, 16, initial=True, heads=1, batch=batch), documents=documents)

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow
    @pytest.mark.parametrize("gated", [False, True])
    def test_transposed_tiles(self, gated: bool) -> None:
        sizes = find(read_table(), "delta_rule", "default", {"bits": 32, "width": 16, "gated": gated})
        flipped = {"gradients": {**sizes["gradients"], "flip": True}}
        with trial("delta_rule", {**sizes, **flipped}):
            made = operands(40, 16, 16, gated=gated, initial=True, heads=1)
            compare(made)
            if gated:
                compare(made | {"log_decay": torch.full_like(made["log_decay"], -torch.inf)})

    def test_operands_with_strides(self) -> None:
        made = operands(40, 16, 16)
        packed = torch.cat([made[name] for name in "qkv"], -1)
        apart = dict(zip("qkv", packed.chunk(3, -1), strict=True))
        assert not apart["k"].is_contiguous()
        assert torch.equal(ours(**(made | apart))[0], ours(**made)[0])
        transposed = made["v"].transpose(1, 3).contiguous().transpose(1, 3)
        assert torch.equal(ours(**(made | {"v": transposed}))[0], ours(**made)[0])

    def test_compiled_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # The forms' results have other shapes, by which compiled graphs are not told apart.
        torch._dynamo.reset()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        made = requiring_grad(operands(40, 16, 16, gated=True))
        backend = "aot_eager" if INTERPRETED else "inductor"
        compiled = torch.compile(lambda x: ours(**x, normalise=True), fullgraph=True, backend=backend)
        found, wanted = compiled(made), ours(**made, normalise=True)
        assert torch.equal(found[0], wanted[0])
        mine, theirs = gradients(found, made), gradients(wanted, made)
        assert all(error(mine[name], theirs[name]) < 1e-6 for name in made)

    @pytest.mark.parametrize("gated", [False, True])
    def test_second_derivatives(self, gated: bool) -> None:
        made = operands(20, 4, 3, gated=gated, initial=True)
        documents = None if gated else torch.arange(20, device=DEVICE)[None] // 7
        found = []
        for function, dtype in ((ours, None), (chunked.delta_rule, None), (chunked.delta_rule, torch.float64)):
            inputs = requiring_grad({name: x.to(dtype) for name, x in made.items()})
            total = sum(x.sin().sum() for x in function(**inputs, scale=0.5, documents=documents))
            first = torch.autograd.grad(total, list(inputs.values()), create_graph=True)
            found.append(torch.autograd.grad(sum(x.square().sum() for x in first), list(inputs.values())))
        # Some draws amplify rounding, in any form.
        for mine, plain, exact in zip(*found, strict=True):
            assert error(mine, exact) < min(TOLERANCES[torch.float32], 1e-5 + 2 * error(plain, exact))

    @pytest.mark.skipif(not INTERPRETED, reason="test_bfloat16 is that on a GPU")
    def test_bfloat16_of_decays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sums of many numbers that nearly cancel: if they are of rounded ones, the error grows with the width."""
        from tests.kernels.interpreter_bfloat16 import use_bfloat16

        use_bfloat16(monkeypatch)
        sizes = {"gated": True, "initial": True, "dtype": torch.bfloat16, "most": 1.0}
        compare(operands(500, 128, 128, **sizes), exact=chunked.delta_rule, bound=6e-3, normalise=True)

    @pytest.mark.parametrize(("distinct", "beta"), [(2, 1.0), (2, 2.0), (8, 2.0)])
    def test_bfloat16_of_repeated_keys(self, distinct: int, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """The inverse nearly cancels what it is multiplied with, so its own rounding would show."""
        made = operands(128, 64, 64, dtype=torch.bfloat16, batch=4 if INTERPRETED else 16)
        keys = made["k"][:, :distinct].repeat(1, 128 // distinct, 1, 1)
        beside_rounded_products(made | {"k": keys, "beta": torch.full_like(made["beta"], beta)}, 2.0, monkeypatch)

    @pytest.mark.parametrize("gated", [False, True])
    def test_bfloat16_beside_the_plain_form(self, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        made = operands(130, 64, 64, dtype=torch.bfloat16, most=1.0, gated=gated, batch=1 if INTERPRETED else 16)
        beside_rounded_products(made, 1.2, monkeypatch)

    @on_gpu
    @pytest.mark.parametrize("gated", [False, True])
    @pytest.mark.parametrize(
        ("key", "value"), [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (96, 200), (32, 128)]
    )
    def test_bfloat16(self, key: int, value: int, gated: bool) -> None:
        for length in (1, 63, 100, 1000):
            # Of a few numbers, one that happens to be a small difference of large ones would decide; of a decay's
            # gradients the first of a row are the largest.
            many = {"batch": max(8, 256 // length)}
            made = operands(length, key, value, gated=gated, initial=gated, dtype=torch.bfloat16, most=1.0, **many)
            compare(made, exact=chunked.delta_rule, normalise=True)
            if not gated:
                documents = torch.arange(length, device=DEVICE).expand(many["batch"], length) // 37
                compare(made, exact=chunked.delta_rule, normalise=True, documents=documents)

    @on_gpu
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("width", [32, 64, 128, 256])
    def test_wide_mantissas(self, width: int, dtype: torch.dtype) -> None:
        for length in (65, 1000):
            compare(operands(length, width, width, gated=True, dtype=dtype), exact=chunked.delta_rule)

    @on_gpu
    @pytest.mark.parametrize("width", [32, 64, 128, 256])
    def test_long_sequences(self, width: int) -> None:
        for length in (2047, 32768):
            made = operands(length, width, width, dtype=torch.bfloat16, most=1.0)
            compare(made, exact=chunked.delta_rule, normalise=True)

    @on_gpu
    def test_same_operands_same_bits(self) -> None:
        made = requiring_grad(operands(2048, 32, 32, batch=8, heads=8, gated=True, dtype=torch.bfloat16))
        assert repeated(ours, made)


@pytest.mark.skipif(INTERPRETED, reason="not about the kernels")
def test_normalising_forms_agree() -> None:
    made = operands(70, 8, 6, gated=True, initial=True, dtype=torch.float64, device="cpu")
    mine, theirs = requiring_grad(made), requiring_grad(made)
    found, wanted = chunked.delta_rule(**mine, normalise=True), reference.delta_rule(**theirs, normalise=True)
    assert all(error(a, b) < 1e-10 for a, b in zip(found, wanted, strict=True))
    one, two = gradients(found, mine), gradients(wanted, theirs)
    assert all(error(one[name], two[name]) < 1e-10 for name in made)
    # With lengths taken first by the caller, the same.
    units = made | {n: made[n] * (made[n].square().sum(-1, keepdim=True) + 1e-6).rsqrt() for n in ("q", "k")}
    assert error(found[0], reference.delta_rule(**units)[0]) < 1e-10


@pytest.mark.skipif(INTERPRETED, reason="not about the kernels")
def test_the_compiler_is_told_without_being_loaded() -> None:
    code = "import sys, kernels.delta_rule; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    told = torch.compiler.assume_constant_result(lambda: 0)
    assert vars(told).items() <= vars(operation._shared_bytes).items()
    assert vars(told)


@pytest.mark.skipif(INTERPRETED, reason="this is it")
@pytest.mark.parametrize("which", ["memory", "walks and not segments", "segments"])
def test_by_the_interpreter(which: str) -> None:
    """A form at a time: each takes minutes."""
    pytest.importorskip("triton")
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    words += ["-k", f"TestKernels and ({which})", __file__]
    done = subprocess.run(
        words, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("capability", "width"), [(90, 128), (86, 128), (90, 256)])
def test_compiles_and_fits(
    capability: int, width: int, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter accepts more than the compiler does, and has memory for all; at a width of 128 other devices need
    smaller sizes than Hopper."""
    pytest.importorskip("triton")
    from tests.kernels.absent_gpu import launches
    from tests.kernels.bench_mixers import delta
    from tests.kernels.compile_kernels import use

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    uses = [use(launch, capability) for launch in launches(delta(1, 80, 4, width, gated=True), capability)]
    assert len(uses) == LAUNCHES[form]
    assert not any(one.over for one in uses)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_compiles_with_states(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An initial state and a gradient of the final one are other variants of the kernels."""
    pytest.importorskip("triton")
    from tests.kernels.absent_gpu import launches
    from tests.kernels.bench_mixers import delta
    from tests.kernels.compile_kernels import use

    def total(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        out, after = delta_rule(q, k, v, beta, initial_state=q.new_zeros(1, 4, 32, 32))
        return out.sum() + after.sum()

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    uses = [use(launch, 90) for launch in launches(replace(delta(1, 80, 4, 32), ours=total))]
    assert len(uses) == LAUNCHES[form]
