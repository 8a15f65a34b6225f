"""Products in Triton's interpreter as a GPU has them. By itself it multiplies bits of bfloat16 instead of numbers, cuts
off what it should round, and takes tf32 for float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numpy.typing import NDArray
from triton.runtime import interpreter  # type: ignore[import-untyped, import-not-found, unused-ignore]


def use_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """In kernels that the interpreter runs: products with exact factors, less the 13 bits that tf32 drops, and float32
    sums; casts to the nearest."""
    builder = interpreter.InterpreterBuilder
    for name in ("create_fp_trunc", "create_fp_ext", "create_fp_to_fp"):
        patch.setattr(builder, name, _cast)
    patch.setattr(builder, "create_dot", _dot)


def _dot(builder: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: Any) -> Any:
    short = precision == interpreter._ir.INPUT_PRECISION.TF32
    product = np.matmul(*(_factor(x, short) for x in (a, b)))
    return interpreter.TensorHandle(product.astype(total.data.dtype) + total.data, total.dtype.scalar)


def _factor(x: Any, short: bool) -> NDArray[Any]:
    if x.dtype.scalar == tl.bfloat16:
        return _widened(x.data)
    if short and x.dtype.scalar == tl.float32:
        return (np.ascontiguousarray(x.data).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return x.data  # type: ignore[no-any-return]


def _cast(builder: Any, source: Any, to: Any, *rounding: Any) -> Any:
    ends = source.dtype.scalar, to.scalar
    if ends == (tl.float32, tl.bfloat16):
        bits = np.ascontiguousarray(source.data).view(np.uint32).astype(np.uint64)
        # Half of the last place that stays, ties to even.
        return interpreter.TensorHandle(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), tl.bfloat16)
    if ends == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle(_widened(source.data), tl.float32)
    return builder.cast_impl(source, to)


def _widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)
