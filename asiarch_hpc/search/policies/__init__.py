"""Search policies, one file each."""

from __future__ import annotations

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.search.policies.asi_arch import AsiArchPolicy
from asiarch_hpc.search.policies.base import Choice, Policy, Selection
from asiarch_hpc.search.policies.random import RandomPolicy

__all__ = ["Choice", "Policy", "Selection", "policy"]

_POLICIES: dict[str, type[AsiArchPolicy] | type[RandomPolicy]] = {"asi_arch": AsiArchPolicy, "random": RandomPolicy}


def policy(name: str, config: SearchConfig) -> Policy:
    """The search policy of that name.

    Raises:
        ConfigError: no such policy; the message lists the known ones.
    """
    if name not in _POLICIES:
        raise ConfigError(f"search.policy={name!r}: expected one of {sorted(_POLICIES)}")
    return _POLICIES[name](config)
