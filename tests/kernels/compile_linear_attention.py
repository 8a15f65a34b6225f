"""Compiles the Triton kernels of linear attention for Hopper, which needs no GPU, and prints what they use.

    python -m tests.kernels.compile_linear_attention [bfloat16 | float16 | float32] [WIDTHS ...]

Bytes of shared memory, registers and bytes of spilled ones a thread, of each kernel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, import-not-found, unused-ignore]
from triton.compiler import ASTSource  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.linear_attention.triton import linear_attention

FORMS = ["none", "scalar", "scalar-bonus", "diagonal", "diagonal-bonus"]
# By compute capability 9.0, a block may have this much.
MOST_SHARED = 232_448
TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "maxnreg")


def report(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    signature, constants, aligned = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        kind = TYPES[value.dtype] if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"
        signature[parameter.name] = kind
        if not isinstance(value, float) and not parameter.do_not_specialize and (kind[0] == "*" or value % 16 == 0):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    chosen = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=chosen)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        words = [str(tool), "-res-usage", file.name]
        usage = subprocess.run(words, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found is not None
    assert built.metadata.shared < MOST_SHARED
    warps = chosen.get("num_warps", 4)
    return f"{warps} warps, shared {built.metadata.shared:6}, registers {found[1]:>3}, spilled {found[2]:>4}"


def launches(dtype: torch.dtype, width: int, form: str) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Kernel, arguments and options of each launch of a forward and backward pass, none of which happens."""
    found = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((kernel, arguments, options))

    def draw(*axes: int) -> Tensor:
        return torch.zeros(axes, dtype=dtype, requires_grad=True)

    operands = {name: draw(2, 80, 4, width) for name in "qkv"}
    if not form.startswith("none"):
        operands["log_decay"] = draw(2, 80, 4, *([width] if form.startswith("diagonal") else []))
    if form.endswith("bonus"):
        operands["bonus"] = draw(4, width)
    with patch.object(triton.JITFunction, "run", record):
        torch.autograd.grad(linear_attention(**operands)[0].sum(), list(operands.values()))
    return found


def main(words: list[str]) -> None:
    dtype = getattr(torch, words[0]) if words else torch.bfloat16
    for width in [int(word) for word in words[1:]] or [16, 32, 64, 128]:
        for form in FORMS:
            for launch in launches(dtype, width, form):
                print(f"{width:4} {form:15} {launch[0].__name__:18} {report(*launch)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
