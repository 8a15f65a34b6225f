"""The gate of a SwiGLU feed-forward."""

from kernels.swiglu.operation import swiglu

__all__ = ["swiglu"]
