"""Correctness, then times, of the linear scan and the wide short convolution, on one GPU.

    python -m tests.kernels.bench_scans [scan] [convolution] [compile]

Nothing is timed where a check fails; times are taken as in bench_head.py. The kernels run here even while
VERIFIED_ON_GPU and WIDE_VERIFIED_ON_GPU are false. In flash-linear-attention the same recurrence is HGRN's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.linear_scan import chunked as scan_chunked
from kernels.linear_scan import linear_scan
from kernels.linear_scan import operation as scan_operation
from kernels.short_convolution import chunked as convolution_chunked
from kernels.short_convolution import operation as convolution_operation
from kernels.short_convolution import short_convolution
from tests.kernels.bench_head import FLA, Way, check, copy_rate, draw, report

# The last ones have few channels in all, for which sequences are cut into segments.
SHAPES = ((32, 2048, 256), (32, 2048, 1024), (8, 2048, 1024), (1, 32_768, 1024))
WIDTHS = (16, 64)


def scan_operands(batch: int, length: int, dim: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    log_decay = -(draw(batch, length, dim, seed=seed + 1, dtype=torch.float32) - 2).exp()
    return draw(batch, length, dim, seed=seed, dtype=dtype), log_decay.to(dtype)


def check_scan() -> bool:
    right = True
    for batch, length, dim in ((3, 65, 100), (2, 1000, 256), (1, 32_768, 64), (64, 300, 1024)):
        for dtype in (torch.bfloat16, torch.float32):
            x, log_decay = scan_operands(batch, length, dim, length, dtype)
            for decay in (log_decay, log_decay[0, 0].clone()):
                right &= check("linear_scan", linear_scan, scan_chunked.linear_scan, [x, decay], (1e-5, 1e-2))
    return right


def scan_ways(words: Sequence[str]) -> dict[str, Way]:
    ways: dict[str, Way] = {"ours": linear_scan}
    if FLA:
        from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn

        ways["flash-linear-attention, chunks"] = lambda x, g: chunk_hgrn(x, g)[0]
        ways["flash-linear-attention, recurrent"] = lambda x, g: fused_recurrent_hgrn(x, g)[0]
    ways["plain"] = scan_chunked.linear_scan
    if "compile" in words:
        ways["plain, compiled"] = torch.compile(scan_chunked.linear_scan, dynamic=False)
    return ways


def time_scan(words: Sequence[str]) -> None:
    """Forward: x and log-decay read, h written; backward: those and the gradient read, two gradients written."""
    for batch, length, dim in SHAPES:
        operands = [scan_operands(batch, length, dim, 2 * seed, torch.bfloat16) for seed in range(4)]
        sets = [tuple(x.requires_grad_() for x in one) for one in operands]
        upstream = draw(batch, length, dim, seed=7)
        report(f"scan {batch} x {length} x {dim}", scan_ways(words), sets, upstream, 8 * upstream.nbytes)


def check_convolution() -> bool:
    right = True
    for width in (9, *WIDTHS):
        for dtype in (torch.bfloat16, torch.float32):
            operands = [draw(3, 333, 100, seed=1, dtype=dtype), draw(100, width, seed=2, dtype=torch.float32)]
            right &= check(
                f"convolution {width}",
                lambda x, w: short_convolution(x, w, activation="silu"),
                lambda x, w: convolution_chunked.short_convolution(x, w, None, "silu"),
                operands,
                (1e-5, 1e-2),
            )
    return right


def convolution_ways(words: Sequence[str]) -> dict[str, Way]:
    ways: dict[str, Way] = {
        "ours": lambda x, w: short_convolution(x, w, activation="silu"),
        "plain": lambda x, w: convolution_chunked.short_convolution(x, w, None, "silu"),
    }
    if FLA:
        from fla.modules.causal_conv1d import causal_conv1d

        ways["flash-linear-attention"] = lambda x, w: causal_conv1d(x, w, activation="silu")[0]
    if "compile" in words:
        compiled = torch.compile(convolution_chunked.short_convolution, dynamic=False)
        ways["plain, compiled"] = lambda x, w: compiled(x, w, None, "silu")
    return ways


def time_convolution(words: Sequence[str]) -> None:
    for batch, length, dim in SHAPES[:2]:
        for width in WIDTHS:
            weight = (draw(dim, width, seed=9, dtype=torch.float32) / width**0.5).requires_grad_()
            sets = [(draw(batch, length, dim, seed=seed).requires_grad_(), weight) for seed in range(4)]
            upstream = draw(batch, length, dim, seed=7)
            name = f"convolution {width}, {batch} x {length} x {dim}"
            report(name, convolution_ways(words), sets, upstream, 5 * upstream.nbytes)


PARTS = {"scan": (check_scan, time_scan), "convolution": (check_convolution, time_convolution)}


def main() -> int:
    words = sys.argv[1:] or [*PARTS, "compile"]
    scan_operation.VERIFIED_ON_GPU = convolution_operation.WIDE_VERIFIED_ON_GPU = True
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, a copy moves {copy_rate():.2f} TB/s")
    chosen = [PARTS[word] for word in words if word in PARTS]
    if not all(checked() for checked, _ in chosen):
        return 1
    for _, timed in chosen:
        timed(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
