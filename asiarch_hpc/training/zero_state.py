"""AdamW's moments in the parts that ZeRO shares out, and whole, as one process's optimiser has them.

ZeRO lays the parameters of a group end to end, with gaps for alignment, and cuts the row into one equal part a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from asiarch_hpc.training.world import World

_MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_moments(zero: Any, numbers: Mapping[int, int], world: World) -> dict[int, dict[str, Tensor]]:
    """The whole state of each parameter, on the CPU; empty on all ranks but 0. All ranks must call it.

    Args:
        zero: DeepSpeed's optimiser of stage 1 or 2.
        numbers: number of each parameter in the state, by its `id`.
        world: the processes.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for group, part in enumerate(zero.single_partition_of_fp32_groups):
        state = zero.optimizer.state.get(part)
        if not state:
            continue  # no step yet
        for moment in _MOMENTS:
            whole = torch.empty(world.size * part.numel(), dtype=part.dtype, device=part.device)
            dist.all_gather(list(whole.chunk(world.size)), state[moment].contiguous())
            if world.rank > 0:
                continue
            for parameter, begin in _places(zero, group):
                values = whole[begin : begin + parameter.numel()].view_as(parameter)
                entry = found.setdefault(numbers[id(parameter)], {"step": state["step"].detach().cpu().clone()})
                entry[moment] = torch.empty_like(values, device="cpu").copy_(values)
    return found


def place_moments(
    zero: Any, numbers: Mapping[int, int], moments: Mapping[int, Mapping[str, Tensor]], world: World
) -> None:
    """Puts this rank's part of each parameter's state into ZeRO's optimiser, which has made no step yet.

    Args:
        moments: state by number; parameters without one begin with zeros.
    """
    for group, part in enumerate(zero.single_partition_of_fp32_groups):
        first = world.rank * part.numel()
        steps = [moments[n]["step"] for p, _ in _places(zero, group) if (n := numbers[id(p)]) in moments]
        if not steps:
            continue
        state = {moment: torch.zeros_like(part, requires_grad=False) for moment in _MOMENTS}
        for parameter, begin in _places(zero, group):
            left, right = max(begin, first), min(begin + parameter.numel(), first + part.numel())
            known = moments.get(numbers[id(parameter)])
            if known is None or left >= right:
                continue
            for moment in _MOMENTS:
                values = known[moment].flatten()[left - begin : right - begin]
                state[moment][left - first : right - first].copy_(values)
        step = max(steps, key=float)
        zero.optimizer.state[part] = {"step": step.to(part.device, torch.float32, copy=True), **state}


def _places(zero: Any, group: int) -> Iterator[tuple[Tensor, int]]:
    """Each parameter of a group, and where it begins in the row."""
    return zip(zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group], strict=True)
