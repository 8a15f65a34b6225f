"""Causal depthwise convolution with a short filter."""

from kernels.short_convolution.operation import short_convolution

__all__ = ["short_convolution"]
