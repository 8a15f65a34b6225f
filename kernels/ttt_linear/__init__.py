"""TTT-Linear: a linear model trained on the sequence, one gradient step a mini-batch."""

from kernels.ttt_linear.chunked import ttt_linear

__all__ = ["ttt_linear"]
