"""The (gated) delta rule: a fast-weight memory that replaces what it stored under a key."""

from kernels.delta_rule.operation import delta_rule

__all__ = ["delta_rule"]
