"""The Triton kernels of linear attention against its reference: on a GPU, and by Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.configurations import device_class, find, read_table, trial
from kernels.linear_attention import chunked, operation, reference
from kernels.operands import plain_forms
from kernels.packing import forget_before
from tests.kernels.cases import Operands, error, gradients, repeated, requiring_grad
from tests.kernels.tune import changed

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Everything in this file but the test that starts the interpreter.
needs_kernels = [] if INTERPRETED else [pytest.mark.gpu]
on_gpu = pytest.mark.skipif(INTERPRETED, reason="too large for the interpreter, or not float32")
DEVICE = "cpu" if INTERPRETED else "cuda"
# The relative error that the products' operands bring, rounded to 8 bits of mantissa (bfloat16) or 11 (tf32).
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1e-2}
FORMS = ["none", "none-bonus", "scalar", "scalar-bonus", "diagonal", "diagonal-bonus"]


def ours(**operands: Any) -> Any:
    from kernels.linear_attention import triton

    return triton.linear_attention(**operands)


def operands(
    form: str, length: int, key: int, value: int, *, initial: bool = False, batch: int = 1, heads: int = 2,
    dtype: torch.dtype = torch.float32, strength: float = -1.0,
) -> Operands:  # fmt: skip
    generator = torch.Generator(DEVICE).manual_seed(length + key if INTERPRETED else torch.seed() % 2**31)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE)

    width = (key,) if form.startswith("diagonal") else ()
    made = {name: draw(batch, length, heads, key) for name in "qk"} | {"v": draw(batch, length, heads, value)}
    made |= {} if form.startswith("none") else {"log_decay": -(draw(batch, length, heads, *width) + strength).exp()}
    made |= {"bonus": draw(heads, key)} if form.endswith("bonus") else {}
    made |= {"initial_state": draw(batch, heads, key, value)} if initial else {}
    return {name: x.to(dtype) for name, x in made.items()}


def compare(made: Operands, *, exact: Any = reference.linear_attention, **options: Any) -> None:
    """Results and gradients against float64's."""
    bound = TOLERANCES[made["v"].dtype]
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


class TestKernels:
    pytestmark = needs_kernels

    @pytest.mark.parametrize(
        ("form", "length"), [(FORMS[(i + j) % 6], n) for i, n in enumerate((1, 15, 63, 64, 65, 100)) for j in (0, 2, 4)]
    )
    def test_lengths(self, form: str, length: int) -> None:
        compare(operands(form, length, 16, 16, initial=length % 2 == 0, heads=1))

    @pytest.mark.parametrize("form", ["none", "scalar-bonus", "diagonal-bonus"])
    def test_several_tiles(self, form: str) -> None:
        compare(operands(form, 33, 40, 50, initial=True, heads=1))

    @pytest.mark.parametrize("form", ["none-bonus", "scalar", "diagonal-bonus"])
    def test_several_heads_and_sequences(self, form: str) -> None:
        compare(operands(form, 34, 3, 1, initial=True, batch=2), scale=-0.3)

    @pytest.mark.parametrize("form", ["scalar", "diagonal-bonus"])
    @pytest.mark.parametrize("decay", [0.0, -30.0, -torch.inf])
    def test_extreme_decays(self, form: str, decay: float) -> None:
        made = operands(form, 40, 16, 16, initial=True, heads=1)
        compare(made | {"log_decay": torch.full_like(made["log_decay"], decay)})

    @pytest.mark.parametrize("form", FORMS[2:])
    def test_weak_decays_beside_strong_ones(self, form: str) -> None:
        made = operands(form, 70, 16, 16, initial=True, heads=1)
        choices = torch.tensor([0.0, -1e-3, -0.5, -30.0, -200.0, -1e4, -torch.inf], device=DEVICE)
        generator = torch.Generator(DEVICE).manual_seed(3)
        shape = made["log_decay"].shape
        mixed = choices[torch.randint(len(choices), shape, generator=generator, device=DEVICE)]
        weak = torch.rand(shape, generator=generator, device=DEVICE) < 0.8
        compare(made | {"log_decay": torch.where(weak, -1e-3, mixed)})

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow
    @pytest.mark.parametrize(
        ("form", "value"),
        [("none", -1e30), ("scalar-bonus", -torch.inf), ("diagonal", torch.nan)],
    )
    def test_a_later_token_never_reaches_an_earlier_output(self, form: str, value: float) -> None:
        made = operands(form, 40, 16, 16)
        before = ours(**made)[0]
        for name, position in {"q": 5, "k": 33, "v": 5, "log_decay": 33}.items():
            if name not in made:
                continue
            changed = made[name].clone()
            changed[:, position:, 0] = value
            after, state = ours(**(made | {name: changed}))
            assert torch.equal(after[:, :position], before[:, :position]), name
            assert torch.equal(after[:, :, 1], before[:, :, 1]), name
            if name != "q" and not (name == "log_decay" and value < 0):
                assert after[:, position:, 0].isnan().all(), name
                assert state[:, 0].isnan().all(), name

    @pytest.mark.parametrize("form", ["scalar", "diagonal-bonus"])
    def test_gradients_before_a_spoilt_token(self, form: str) -> None:
        made, position = operands(form, 40, 16, 16, heads=1), 35
        sound = {n: x[:, :position] if x.ndim > 2 else x for n, x in made.items()}
        made["v"][:, position] = torch.nan
        found, wanted = requiring_grad(made), requiring_grad(sound)
        mine = gradients((ours(**found)[0][:, :position],), found)
        theirs = gradients((ours(**wanted)[0],), wanted)
        assert all(error(mine[n][:, :position], theirs[n]) < 1e-5 for n in "qkv")

    def test_operands_with_strides(self) -> None:
        made = operands("diagonal", 40, 16, 16)
        packed = torch.cat([made[name] for name in "qkv"], -1)
        apart = dict(zip("qkv", packed.chunk(3, -1), strict=True))
        assert not apart["k"].is_contiguous()
        assert torch.equal(ours(**(made | apart))[0], ours(**made)[0])
        transposed = {n: x.transpose(1, 3).contiguous().transpose(1, 3) for n, x in made.items()}
        assert torch.equal(ours(**transposed)[0], ours(**made)[0])

    def test_compiled_whole(self) -> None:
        made = requiring_grad(operands("diagonal-bonus", 40, 16, 16, heads=1))
        backend = "aot_eager" if INTERPRETED else "inductor"
        compiled = torch.compile(lambda x: ours(**x), fullgraph=True, backend=backend)
        found, wanted = compiled(made), ours(**made)
        assert torch.equal(found[0], wanted[0])
        mine, theirs = gradients(found, made), gradients(wanted, made)
        assert all(error(mine[name], theirs[name]) < 1e-6 for name in made)

    @pytest.mark.parametrize("form", ["none", "diagonal-bonus"])
    def test_second_derivatives(self, form: str) -> None:
        made = operands(form, 20, 4, 3, initial=True)
        found = []
        for function in (ours, chunked.linear_attention):
            inputs = requiring_grad(made)
            total = sum(x.sin().sum() for x in function(**inputs, scale=0.5))
            first = torch.autograd.grad(total, list(inputs.values()), create_graph=True)
            found.append(torch.autograd.grad(sum(x.square().sum() for x in first), list(inputs.values())))
        assert all(error(a, b) < 1e-5 for a, b in zip(*found, strict=True))

    # Each form, width and type compiles seven kernels, about a second each; hence not all of them together.
    @on_gpu
    @pytest.mark.parametrize(
        ("form", "key", "value"),
        [
            *((form, width, width) for form in FORMS for width in (32, 64, 128)),
            *((form, *widths) for form in ("scalar", "diagonal-bonus") for widths in ((16, 16), (256, 256), (96, 200))),
        ],
    )
    def test_bfloat16(self, form: str, key: int, value: int) -> None:
        for length in (1, 63, 100, 1000):
            # Of a few numbers, one that happens to be a small difference of large ones would decide.
            many = {"batch": max(1, 256 // length)}
            made = operands(form, length, key, value, initial=length == 100, dtype=torch.bfloat16, **many)
            compare(made, exact=chunked.linear_attention)

    @on_gpu
    @pytest.mark.parametrize("form", ["scalar", "diagonal"])
    def test_bfloat16_with_exact_decays(self, form: str) -> None:
        made = operands(form, 1000, 64, 64, dtype=torch.bfloat16)
        compare(made | {"log_decay": made["log_decay"].float() * 1.001}, exact=chunked.linear_attention)

    @on_gpu
    @pytest.mark.parametrize("form", ["none-bonus", "scalar", "diagonal-bonus"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("width", [16, 64, 256])
    def test_wide_mantissas(self, form: str, width: int, dtype: torch.dtype) -> None:
        for length in (65, 1000):
            compare(operands(form, length, width, width, dtype=dtype), exact=chunked.linear_attention)

    @on_gpu
    @pytest.mark.parametrize("form", ["scalar", "diagonal-bonus"])
    @pytest.mark.parametrize("width", [32, 64, 128])
    def test_long_sequences(self, form: str, width: int) -> None:
        for length in (2047, 32768):
            made = operands(form, length, width, width, dtype=torch.bfloat16, strength=-4)
            compare(made, exact=chunked.linear_attention)

    @on_gpu
    @pytest.mark.parametrize("form", ["scalar-bonus", "diagonal-bonus"])
    @pytest.mark.parametrize("width", [32, 128])
    def test_same_operands_same_bits(self, form: str, width: int) -> None:
        made = requiring_grad(operands(form, 2048, width, width, batch=8, heads=8, dtype=torch.bfloat16))
        assert repeated(ours, made)


@contextmanager
def walking(made: Operands) -> Iterator[None]:
    """The form that walks through sequences is used, however few there are, in the sizes that the table has for it."""
    from kernels.linear_attention.plan import plan

    operands = *(made[name] for name in "qkv"), made.get("log_decay"), None
    with trial("linear_attention", None) as asked:
        plan(*operands)
    table = find(read_table(), "linear_attention", device_class(torch.device(DEVICE)), asked.shapes[0])
    with trial("linear_attention", changed(table, "fused.few", 1)):
        assert plan(*operands).fused
        yield


class TestKernelsThatWalk:
    pytestmark = needs_kernels

    def compare(self, made: Operands, **options: Any) -> None:
        with walking(made):
            compare(made, **options)

    @pytest.mark.parametrize("form", ["none", "scalar"])
    @pytest.mark.parametrize("length", [1, 31, 64, 100])
    def test_lengths(self, form: str, length: int) -> None:
        self.compare(operands(form, length, 16, 16, initial=length % 2 == 0, heads=1))

    @pytest.mark.parametrize("form", ["none", "scalar"])
    def test_several_tiles(self, form: str) -> None:
        self.compare(operands(form, 70, 40, 50, initial=True, heads=1))

    @pytest.mark.parametrize("form", ["none", "scalar"])
    def test_several_heads_and_sequences(self, form: str) -> None:
        self.compare(operands(form, 34, 3, 1, initial=True, batch=2), scale=-0.3)

    @pytest.mark.parametrize("decay", [0.0, -30.0, -torch.inf])
    def test_extreme_decays(self, decay: float) -> None:
        made = operands("scalar", 70, 16, 16, initial=True, heads=1)
        self.compare(made | {"log_decay": torch.full_like(made["log_decay"], decay)})

    def test_weak_decays_beside_strong_ones(self) -> None:
        made = operands("scalar", 200, 16, 16, initial=True, heads=1)
        decay = torch.full_like(made["log_decay"], -1e-3)
        for place, strong in {3: -torch.inf, 40: -200.0, 41: -0.5, 70: -1e4, 100: -30.0, 130: -torch.inf}.items():
            decay[:, place] = strong
        self.compare(made | {"log_decay": decay})

    def test_documents(self) -> None:
        made = operands("scalar", 100, 16, 16, initial=True, batch=2)
        documents = (torch.arange(100, device=DEVICE) >= torch.tensor([[64], [37]], device=DEVICE)).int()
        self.compare(made | {"log_decay": forget_before(documents, made["log_decay"])})

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow
    @pytest.mark.parametrize(("form", "value"), [("none", -1e30), ("scalar", torch.nan)])
    def test_a_later_token_never_reaches_an_earlier_output(self, form: str, value: float) -> None:
        made, last = operands(form, 70, 20, 50), slice(-1, None)
        with walking(made):
            before = ours(**made)[0]
            for name, position in {"q": 5, "k": 33, "v": 40, "log_decay": 66}.items():
                if name not in made:
                    continue
                spoilt = made[name].clone()
                spoilt[:, position, 0, ..., *([] if name == "log_decay" else [last])] = value
                after, state = ours(**(made | {name: spoilt}))
                assert torch.equal(after[:, :position], before[:, :position]), name
                assert torch.equal(after[:, :, 1], before[:, :, 1]), name
                if name != "q":
                    assert after[:, position:, 0].isnan().all(), name
                    assert state[:, 0].isnan().all(), name
                    assert state[:, 1].isfinite().all(), name

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of nan
    @pytest.mark.parametrize(("form", "spoilt"), [("none", "v"), ("scalar", "k"), ("scalar", "log_decay")])
    def test_gradients_before_a_spoilt_token(self, form: str, spoilt: str) -> None:
        made, position = operands(form, 70, 16, 16, heads=1), 35
        sound = {n: x[:, :position] for n, x in made.items()}
        made[spoilt][:, position] = torch.nan
        with walking(made):
            found, wanted = requiring_grad(made), requiring_grad(sound)
            mine = gradients((ours(**found)[0][:, :position],), found)
            theirs = gradients((ours(**wanted)[0],), wanted)
        assert all(error(mine[n][:, :position], theirs[n]) < 1e-5 for n in made)

    def test_operands_with_strides(self) -> None:
        made = operands("scalar", 40, 16, 16)
        packed = torch.cat([made[name] for name in "qkv"], -1)
        apart = dict(zip("qkv", packed.chunk(3, -1), strict=True))
        with walking(made):
            assert torch.equal(ours(**(made | apart))[0], ours(**made)[0])

    @pytest.mark.parametrize("form", ["none", "scalar"])
    def test_compiled_whole(self, form: str) -> None:
        made = requiring_grad(operands(form, 40, 16, 16, heads=1))
        backend = "aot_eager" if INTERPRETED else "inductor"
        compiled = torch.compile(lambda x: ours(**x), fullgraph=True, backend=backend)
        with walking(made):
            found, wanted = compiled(made), ours(**made)
            mine, theirs = gradients(found, made), gradients(wanted, made)
        assert torch.equal(found[0], wanted[0])
        assert all(error(mine[name], theirs[name]) < 1e-6 for name in made)

    @on_gpu
    @pytest.mark.parametrize("form", ["none", "scalar"])
    @pytest.mark.parametrize("key", [16, 32, 48, 64, 100, 128])
    def test_bfloat16(self, form: str, key: int) -> None:
        for length in (1, 63, 128, 300, 2048):
            many = {"batch": max(1, 512 // length)}
            made = operands(form, length, key, key, initial=length == 300, dtype=torch.bfloat16, strength=1.0, **many)
            self.compare(made, exact=chunked.linear_attention)
        self.compare(operands(form, 300, key, 24, dtype=torch.bfloat16), exact=chunked.linear_attention)

    @on_gpu
    @pytest.mark.parametrize("form", ["none", "scalar"])
    @pytest.mark.parametrize("width", [32, 64, 128])
    def test_same_operands_same_bits(self, form: str, width: int) -> None:
        made = requiring_grad(operands(form, 2048, width, width, batch=16, heads=8, dtype=torch.bfloat16))
        with walking(made):
            assert repeated(ours, made)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="not about the kernels")
def test_public_function_uses_them() -> None:
    made = operands("diagonal-bonus", 40, 16, 16, dtype=torch.bfloat16)
    assert torch.equal(operation.linear_attention(**made)[0], ours(**made)[0])
    with plain_forms():
        plain = operation.linear_attention(**made)[0]
    assert torch.equal(plain, chunked.linear_attention(**made)[0])


@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "TestKernels", __file__]
    done = subprocess.run(
        words, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("form", "batch", "kernels"), [("scalar-bonus", 1, 7), ("diagonal", 1, 7), ("scalar", 32, 6)])
def test_compiles_for_hopper(
    form: str, batch: int, kernels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter accepts more than the compiler does. Many sequences are walked through."""
    pytest.importorskip("triton")
    from tests.kernels.absent_gpu import launches
    from tests.kernels.bench_mixers import attention
    from tests.kernels.compile_kernels import use

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    uses = [use(launch, 90) for launch in launches(attention(form, batch, 80, 4, 32))]
    assert len(uses) == kernels
    assert not any(one.over for one in uses)
