"""Times linear attention's Triton kernels, beside flash-linear-attention's where that is installed and torch.compile's
of the chunked form.

    python -m tests.kernels.bench_linear_attention [--no-fla] [--no-compile] [WORDS OF CASES TO RUN ...]

Milliseconds of the device, forward and both passes, and the floor of `bench_delta_rule`. Results and gradients of one
sequence are compared with the chunked form in float64 first; a case that disagrees is not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linear_attention import chunked
from tests.kernels.bench_delta_rule import measure

BYTES_A_SECOND = 4.3e12  # of a copy on an H200
Attention = Callable[..., Tensor]


@dataclass(frozen=True)
class Size:
    """Axes of the operands; `form` is none, scalar, diagonal or bonus (one decay a channel, and the bonus)."""

    form: str
    batch: int
    length: int
    heads: int
    width: int

    def __str__(self) -> str:
        return f"{self.form} {self.batch} x {self.length}, {self.heads} heads of {self.width}"

    def operands(self, *, batch: int | None = None) -> list[Tensor]:
        shape = (batch or self.batch, self.length, self.heads)
        made = [torch.randn(*shape, self.width, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        if self.form != "none":
            width = () if self.form == "scalar" else (self.width,)
            made.append((-(torch.randn(*shape, *width, device="cuda") - 3).exp()).bfloat16())
        if self.form == "bonus":
            made.append(torch.randn(self.heads, self.width, device="cuda", dtype=torch.bfloat16))
        return [x.requires_grad_() for x in made]

    def floor_bytes(self) -> int:
        """Each operand, result and gradient read or written once, forward and backward."""
        return (11 + (3 if self.form in ("diagonal", "bonus") else 0)) * self.operands(batch=1)[0].nbytes * self.batch


SIZES = [
    *(Size(form, 32, 2048, 8, 32) for form in ("none", "scalar", "diagonal", "bonus")),
    *(Size(form, 16, 2048, 8, 64) for form in ("none", "scalar", "diagonal", "bonus")),
    *(Size(form, 16, 2048, 8, 128) for form in ("none", "scalar", "diagonal", "bonus")),
    *(Size(form, 1, 32768, 8, 128) for form in ("scalar", "diagonal")),
]


def ours(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, bonus: Tensor | None = None) -> Tensor:
    from kernels.linear_attention.triton import linear_attention

    return linear_attention(q, k, v, log_decay, bonus=bonus)[0]


def plain(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, bonus: Tensor | None = None) -> Tensor:
    return chunked.linear_attention(q, k, v, log_decay, bonus=bonus)[0]


def fla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, bonus: Tensor | None = None) -> Tensor:
    if bonus is not None:
        from fla.ops.rwkv6 import chunk_rwkv6

        return chunk_rwkv6(q, k, v, log_decay, bonus)[0]
    if log_decay is None or log_decay.ndim == 3:
        from fla.ops.simple_gla import chunk_simple_gla

        return chunk_simple_gla(q, k, v, g=log_decay)[0]
    from fla.ops.gla import chunk_gla

    return chunk_gla(q, k, v, log_decay)[0]


def fused_fla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, bonus: Tensor | None = None) -> Tensor:
    """Without the states in memory, one step after the other."""
    if bonus is not None:
        from fla.ops.rwkv6 import fused_recurrent_rwkv6

        return fused_recurrent_rwkv6(q, k, v, log_decay, bonus)[0]
    if log_decay is None or log_decay.ndim == 3:
        from fla.ops.simple_gla import fused_chunk_simple_gla

        return fused_chunk_simple_gla(q, k, v, g=log_decay)[0]
    from fla.ops.gla import fused_chunk_gla

    return fused_chunk_gla(q, k, v, log_decay)[0]


def main(words: list[str]) -> None:
    functions: dict[str, Attention] = {
        "ours": ours,
        "fla": fla,
        "fla fused": fused_fla,
        "compiled": torch.compile(plain),
    }
    if "--no-fla" in words:
        del functions["fla"], functions["fla fused"]
    if "--no-compile" in words:
        del functions["compiled"]
    words = [word for word in words if not word.startswith("--")]
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for size in SIZES:
        if words and not any(word in str(size) for word in words):
            continue
        for name, function in functions.items():
            print(f"{size!s:38} {name:9} {measure(size, function, plain)}", flush=True)
        print(f"{'':38} bytes once: {size.floor_bytes() / BYTES_A_SECOND * 1e3:.3f} ms", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
