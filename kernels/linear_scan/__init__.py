"""First-order linear recurrence, channel by channel."""

from kernels.linear_scan.chunked import linear_scan

__all__ = ["linear_scan"]
