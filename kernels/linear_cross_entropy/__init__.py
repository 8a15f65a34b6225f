"""The head projection and its cross-entropy in one operation, without the logits of all tokens at once."""

from kernels.linear_cross_entropy.operation import linear_cross_entropy, linear_log_likelihood

__all__ = ["linear_cross_entropy", "linear_log_likelihood"]
