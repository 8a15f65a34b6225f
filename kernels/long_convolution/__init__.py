"""Causal depthwise convolution with a filter as long as the sequence."""

from kernels.long_convolution.chunked import long_convolution

__all__ = ["long_convolution"]
