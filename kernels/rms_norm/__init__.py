"""Normalisation by the root of the mean square, alone or with a gate."""

from kernels.rms_norm.operation import gated_rms_norm, rms_norm

__all__ = ["gated_rms_norm", "rms_norm"]
