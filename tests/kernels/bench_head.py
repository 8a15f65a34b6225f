"""Correctness, then times, of the head's loss, the short convolution and the norms, on one GPU.

    python -m tests.kernels.bench_head [head] [convolution] [norms] [compile]

Nothing is timed where a check fails. Beside each operation stand flash-linear-attention's, where it is installed, plain
PyTorch and, with `compile`, what torch.compile makes of that. Times are the device's, of a forward and a backward pass,
medians of replays of one graph with several sets of operands.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import short_convolution
from kernels.linear_cross_entropy import chunked as head_chunked
from kernels.linear_cross_entropy import linear_cross_entropy, linear_log_likelihood
from kernels.rms_norm import gated_rms_norm, plain, rms_norm
from kernels.rms_norm import reference as norm_reference
from kernels.short_convolution import chunked as convolution_chunked
from kernels.short_convolution import reference as convolution_reference

VOCAB, ROWS = 50_257, 50_304
HEAD_SHAPES = ((65_536, 256), (32_768, 1024))
SHAPES = ((32, 2048, 256), (32, 2048, 1024))
FLA = find_spec("fla") is not None
Way = Callable[..., Tensor]


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def milliseconds(run: Callable[[int], Any], repeats: int = 15) -> float:
    """Median of `repeats`; run(i) uses the i-th set of operands."""
    for i in range(3):
        run(i)
    times = []
    for i in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run(i)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def graph_milliseconds(run: Callable[[int], Any], calls: int) -> float:
    """As `milliseconds`, without the time that this process needs to start kernels."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for i in range(3):
            run(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            run(i)
    return milliseconds(lambda _: graph.replay()) / calls


def forward_backward(way: Way, sets: Sequence[tuple[Tensor, ...]], upstream: Tensor) -> Callable[[int], Any]:
    def run(i: int) -> None:
        operands = sets[i % len(sets)]
        torch.autograd.grad(way(*operands), [x for x in operands if x.requires_grad], upstream)

    return run


def report(name: str, ways: dict[str, Way], sets: Sequence[tuple[Tensor, ...]], upstream: Tensor, moved: float) -> None:
    """`moved` bytes are what both passes must at least read and write."""
    for way_name, way in ways.items():
        try:
            took = graph_milliseconds(forward_backward(way, sets, upstream), 2 * len(sets))
        except Exception as failure:  # of a peer: its message takes the place of its time
            print(f"{name} {way_name}: {type(failure).__name__} {str(failure)[:200]}")
            continue
        print(f"{name} {way_name}: {took:.4f} ms, {moved / took / 1e9:.2f} TB/s", flush=True)


def copy_rate() -> float:
    """TB/s read and written."""
    x = draw(2**29, seed=0)
    y = torch.empty_like(x)
    return 2 * x.nbytes / milliseconds(lambda _: y.copy_(x)) / 1e9


def head_operands(tokens: int, dim: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden of norm √dim, and logits with that standard deviation."""
    hidden = draw(tokens, dim, seed=seed)
    weight = draw(ROWS, dim, seed=seed + 1, dtype=torch.float32) * (spread / dim**0.5)
    targets = torch.randint(VOCAB, (tokens,), generator=torch.Generator("cuda").manual_seed(seed), device="cuda")
    targets[::97] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def check_head() -> bool:
    """Against float64 of the same rounded operands; a spread of 60 makes losses that leave the range of one pass."""
    right = True
    cases = ((4096, 256, 2.0), (1000, 256, 60.0), (777, 1024, 2.0), (129, 1024, 60.0), (65, 100, 2.0))
    for tokens, dim, spread in cases:
        hidden, weight, targets = head_operands(tokens, dim, tokens, spread)
        loss = linear_cross_entropy(hidden, weight, targets, vocab=VOCAB, scale=0.8)
        found = (loss, *torch.autograd.grad(loss, (hidden, weight)))
        again = linear_cross_entropy(hidden, weight, targets, vocab=VOCAB, scale=0.8)
        operands = (hidden.detach().double(), weight.detach().bfloat16().double(), targets, -100, VOCAB, 0.8)
        errors = [error(f, e) for f, e in zip(found, head_chunked.loss_and_gradients(*operands), strict=True)]
        likelihood, best = linear_log_likelihood(hidden, weight, targets, vocab=VOCAB, scale=0.8)
        wanted, wanted_best = head_chunked.log_likelihood(*operands)
        errors.append(error(likelihood, wanted))
        good = all(e < limit for e, limit in zip(errors, (1e-5, 1e-2, 1e-2, 1e-5), strict=True))
        good = good and torch.equal(best, wanted_best) and torch.equal(loss, again)
        print(f"check head {tokens} x {dim}, spread {spread}:", *(f"{e:.1e}" for e in errors), good)
        right = right and good
    return right


def materialised(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight[:VOCAB].bfloat16().T, targets, reduction="sum")


def head_ways(words: Sequence[str]) -> dict[str, Way]:
    ways: dict[str, Way] = {"ours": lambda h, w, t: linear_cross_entropy(h, w, t, vocab=VOCAB)}
    if FLA:
        from fla.modules import FusedLinearCrossEntropyLoss

        fused = FusedLinearCrossEntropyLoss(reduction="sum")
        ways["flash-linear-attention"] = lambda h, w, t: fused(h, t, w[:VOCAB].bfloat16())
    ways["cross_entropy of bf16 logits"] = materialised
    if "compile" in words:
        ways["the same, compiled"] = torch.compile(materialised, dynamic=False)
    return ways


def time_head(words: Sequence[str]) -> None:
    for tokens, dim in HEAD_SHAPES:
        sets = [head_operands(tokens, dim, seed) for seed in range(2)]
        for name, way in head_ways(words).items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            upstream = torch.ones((), device="cuda")
            took = milliseconds(forward_backward(way, sets, upstream.to(torch.float32)))
            peak = (torch.cuda.max_memory_allocated() - before) / 2**30
            rate = 6 * tokens * dim * VOCAB / took / 1e9
            print(f"head {tokens} x {dim} {name}: {took:.2f} ms, {rate:.0f} TFLOP/s, {peak:.1f} GiB", flush=True)
        took = milliseconds(lambda i, s=sets: linear_log_likelihood(*s[i % 2], vocab=VOCAB))
        print(f"likelihood {tokens} x {dim} ours: {took:.2f} ms, {2 * tokens * dim * VOCAB / took / 1e9:.0f} TFLOP/s")


def check(name: str, way: Way, wanted: Way, operands: Sequence[Tensor], limits: tuple[float, float]) -> bool:
    """Results and gradients against float64 of the same operands."""
    ours = [x.detach().clone().requires_grad_() for x in operands]
    exact = [x.detach().double().requires_grad_() for x in operands]
    y, z = way(*ours), wanted(*exact)
    upstream = draw(*y.shape, seed=9, dtype=y.dtype)
    pairs = zip(torch.autograd.grad(y, ours, upstream), torch.autograd.grad(z, exact, upstream.double()), strict=True)
    errors = [error(y, z), *(error(a, b) for a, b in pairs)]
    good = all(e < limits[operands[0].dtype == torch.bfloat16] for e in errors)
    print(f"check {name} {list(operands[0].shape)} {operands[0].dtype}:", *(f"{e:.1e}" for e in errors), good)
    return good


def check_convolution() -> bool:
    right = True
    for (batch, length, dim), width in (((2, 300, 256), 4), ((3, 65, 100), 4)):
        for dtype in (torch.bfloat16, torch.float32):
            operands = [draw(batch, length, dim, seed=1, dtype=dtype), draw(dim, width, seed=2, dtype=torch.float32)]
            for activation, biased in (("silu", True), (None, False)):
                for bias in ([draw(dim, seed=3, dtype=torch.float32)] * biased,):
                    way, wanted = (
                        lambda x, w, b=None, f=f, a=activation: f.short_convolution(x, w, b, a)
                        for f in (short_convolution, convolution_reference)
                    )
                    right &= check(f"convolution {width} {activation}", way, wanted, operands + bias, (1e-5, 1e-2))
    return right


def convolution_ways(words: Sequence[str]) -> dict[str, Way]:
    ways: dict[str, Way] = {"ours": lambda x, w: short_convolution.short_convolution(x, w, activation="silu")}
    if FLA:
        from fla.modules.causal_conv1d import causal_conv1d

        ways["flash-linear-attention"] = lambda x, w: causal_conv1d(x, w, activation="silu")[0]
    if "compile" in words:
        plain_way = torch.compile(convolution_chunked.short_convolution, dynamic=False)
        ways["plain, compiled"] = lambda x, w: plain_way(x, w, None, "silu")
    return ways


def time_convolution(words: Sequence[str]) -> None:
    for batch, length, dim in SHAPES:
        weight = draw(dim, 4, seed=9, dtype=torch.float32).requires_grad_()
        sets = [(draw(batch, length, dim, seed=seed).requires_grad_(), weight) for seed in range(4)]
        upstream = draw(batch, length, dim, seed=7)
        report(f"convolution {batch} x {length} x {dim}", convolution_ways(words), sets, upstream, 5 * upstream.nbytes)


def check_norms() -> bool:
    right = True
    for rows, dim in ((5000, 256), (33, 1024), (77, 100)):
        for dtype in (torch.bfloat16, torch.float32):
            x, w = draw(rows, dim, seed=1, dtype=dtype), draw(dim, seed=2, dtype=torch.float32)
            right &= check("rms_norm", rms_norm, norm_reference.rms_norm, [x, w], (1e-5, 1e-2))
            gated = [x, draw(rows, dim, seed=3, dtype=dtype), w]
            right &= check("gated_rms_norm", gated_rms_norm, norm_reference.gated_rms_norm, gated, (1e-5, 1e-2))
    return right


def norm_ways(words: Sequence[str], *, gated: bool) -> dict[str, Way]:
    ways: dict[str, Way] = {"ours": gated_rms_norm if gated else rms_norm}

    def plain_way(x: Tensor, *rest: Tensor) -> Tensor:
        return plain.normed(x, rest[-1], rest[0] if gated else None, 1e-6, True)

    if FLA:
        from fla.modules.norm.fused_norm_gate import rms_norm_gated
        from fla.modules.norm.layernorm import rms_norm as fla_norm

        ways["flash-linear-attention"] = (
            (lambda x, g, w: rms_norm_gated(x, g, w, None)) if gated else (lambda x, w: fla_norm(x, w, None))
        )
    if "compile" in words:
        ways["plain, compiled"] = torch.compile(plain_way, dynamic=False)
    return ways


def time_norms(words: Sequence[str]) -> None:
    for rows, dim in ((65_536, 256), (65_536, 1024)):
        for gated in (False, True):
            sets = []
            for seed in range(4):
                operands = [draw(rows, dim, seed=seed + i) for i in range(1 + gated)]
                operands.append(draw(dim, seed=9, dtype=torch.float32))
                sets.append(tuple(x.requires_grad_() for x in operands))
            upstream = draw(rows, dim, seed=7)
            name = f"{'gated_' * gated}rms_norm {rows} x {dim}"
            report(name, norm_ways(words, gated=gated), sets, upstream, (8 if gated else 5) * upstream.nbytes)


PARTS = {
    "head": (check_head, time_head),
    "convolution": (check_convolution, time_convolution),
    "norms": (check_norms, time_norms),
}


def main() -> int:
    words = sys.argv[1:] or [*PARTS, "compile"]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, a copy moves {copy_rate():.2f} TB/s")
    chosen = [PARTS[word] for word in words if word in PARTS]
    if not all(checked() for checked, _ in chosen):
        return 1
    for _, timed in chosen:
        timed(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
