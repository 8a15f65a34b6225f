"""Causal depthwise convolution with a short filter."""

from kernels.short_convolution.chunked import short_convolution

__all__ = ["short_convolution"]
