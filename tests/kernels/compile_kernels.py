"""Compiles Triton kernels for a GPU that need not be there, in the sizes that the table has for it, and prints what
they use.

    python -m tests.kernels.compile_kernels delta_rule|linear_attention [--type bfloat16] [--capability 90] [WIDTHS ...]

Bytes of shared memory, registers and bytes of spilled ones a thread, of each kernel.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, import-not-found, unused-ignore]
from triton.compiler import ASTSource  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels import configurations
from kernels.delta_rule.triton import delta_rule
from kernels.linear_attention.triton import linear_attention

FORMS = {
    "delta_rule": ["none", "scalar", "documents"],
    "linear_attention": ["none", "scalar", "scalar-bonus", "diagonal", "diagonal-bonus"],
}
# What a block may have, by compute capability.
MOST_SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}
TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"
}  # fmt: skip
OVER = "more shared memory than there is, by"
OPTIONS = ("num_warps", "num_stages", "maxnreg")
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


def report(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], capability: int = 90) -> str:
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
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        words = [str(tool), "-res-usage", file.name]
        usage = subprocess.run(words, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found is not None
    over = max(0, built.metadata.shared - MOST_SHARED[capability])
    warps = chosen.get("num_warps", 4)
    used = f"{warps} warps, shared {built.metadata.shared:6}, registers {found[1]:>3}, spilled {found[2]:>4}"
    return used + f", {OVER} {over}" * (over > 0)


def launches(operation: str, dtype: torch.dtype, width: int, form: str, capability: int = 90) -> list[Launch]:
    """Kernel, arguments and options of each launch of a forward and backward pass, none of which happens."""
    found = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((kernel, arguments, options))

    def draw(*axes: int) -> Tensor:
        return torch.zeros(axes, dtype=dtype, requires_grad=True)

    operands = {name: draw(2, 80, 4, width) for name in "qkv"}
    if operation == "delta_rule":
        operands["beta"] = draw(2, 80, 4)
    if form.startswith(("scalar", "diagonal")):
        operands["log_decay"] = draw(2, 80, 4, *([width] if form.startswith("diagonal") else []))
    if form.endswith("bonus"):
        operands["bonus"] = draw(4, width)
    with (
        patch.object(triton.JITFunction, "run", record),
        patch.object(configurations, "device_class", lambda device: f"sm_{capability}"),
    ):
        if operation == "delta_rule":
            documents = torch.zeros(2, 80, dtype=torch.int32) if form == "documents" else None
            rest = {
                "log_decay": None, "documents": documents, "initial_state": None, "scale": 1.0, "normalise": True
            }  # fmt: skip
            out = delta_rule(**rest | operands)[0]
        else:
            out = linear_attention(**operands)[0]
        torch.autograd.grad(out.sum(), list(operands.values()))
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operation", choices=list(FORMS))
    parser.add_argument("widths", nargs="*", type=int, default=[16, 32, 64, 128])
    parser.add_argument("--type", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--capability", type=int, default=90, choices=list(MOST_SHARED))
    options = parser.parse_args(words)
    for width in options.widths:
        for form in FORMS[options.operation]:
            for launch in launches(options.operation, getattr(torch, options.type), width, form, options.capability):
                used = report(*launch, options.capability)
                print(f"{width:4} {form:15} {launch[0].__name__:18} {used}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
