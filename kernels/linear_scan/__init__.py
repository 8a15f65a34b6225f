"""First-order linear recurrence, channel by channel."""

from kernels.linear_scan.operation import linear_scan

__all__ = ["linear_scan"]
