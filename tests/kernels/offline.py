"""Compiles a Triton kernel for a GPU that need not be there: the interpreter accepts more than the compiler does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def compile_for_hopper(kernel: Any, types: dict[str, str], constants: dict[str, Any], cache: Path) -> None:
    """`types` of pointers by name; other arguments that are not `constants` are 32-bit integers."""
    pytest.importorskip("triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, attrs={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert compiled.asm["cubin"]
