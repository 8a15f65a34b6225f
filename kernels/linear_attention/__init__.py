"""Linear attention with no, scalar or diagonal decay: RetNet, Mamba-2 (SSD), GLA and RWKV-6."""

from kernels.linear_attention.operation import linear_attention

__all__ = ["linear_attention"]
