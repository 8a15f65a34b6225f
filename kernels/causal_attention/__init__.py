"""Causal softmax attention."""

from kernels.causal_attention.operation import causal_attention

__all__ = ["causal_attention"]
