"""What operations give on the meta device, remembered.

There a result has a shape and no values: equal operands give equal results. torch computes most of these shapes in
Python, and a model repeats few operations, in every layer and every chunk.

Remembered is only what follows from its operands by the operation's schema and was new memory when it was made.
Operands are told apart by what torch's own memory of shapes tells them apart by (torch._subclasses.fake_tensor).
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
_UNSURE = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

Work = tuple[float, float] | None  # FLOPs and roofline seconds of one launch; None for what is no launch


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a result anew: (size, strides, dtype) of each of its tensors, and what computing it costs."""

    parts: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype] | None, ...]
    kind: type | None  # of the sequence that holds them; None for one tensor alone
    work: Work

    def make(self) -> tuple[Any, list[Tensor]]:
        """(the result, its tensors)."""
        made = [None if part is None else _empty(*part) for part in self.parts]
        return (made[0] if self.kind is None else self.kind(made)), [item for item in made if item is not None]


def key_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable | None:
    """What a result of an operation on the meta device follows from; None where it may follow from more."""
    if not _is_function(func):
        return None
    found: list[Any] = [func, torch.get_default_dtype(), *kwargs]
    return tuple(found) if _describe(args, found) and _describe(kwargs.values(), found) else None


def recipe_of(out: Any, given: list[Tensor], work: Work) -> Recipe | None:
    """How to make `out`, which an operation made from the tensors `given`; None where new tensors would not be the
    same: it shares memory, has more of it than its size takes, or is no plain tensor of the meta device."""
    kind = type(out) if type(out) in (tuple, list) else None
    values = [out] if kind is None else list(out)
    tensors = [value for value in values if value is not None]
    if not tensors or not all(type(tensor) is Tensor and _is_plain(tensor) for tensor in tensors):
        return None
    places = {tensor.untyped_storage()._cdata for tensor in tensors}
    if len(places) < len(tensors) or any(tensor.untyped_storage()._cdata in places for tensor in given):
        return None
    recipe = Recipe(tuple(None if item is None else _part(item) for item in values), kind, work)
    same = all(_memory(new) == _memory(tensor) for new, tensor in zip(recipe.make()[1], tensors, strict=True))
    return recipe if same else None


def _part(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _empty(size: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _memory(tensor: Tensor) -> tuple[int, int]:
    return int(tensor.storage_offset()), tensor.untyped_storage().nbytes()


@functools.cache
def _is_function(func: Any) -> bool:
    """Whether an operation's schema says that it only reads its operands and returns something new."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return False
    items = (*func._schema.arguments, *func._schema.returns)
    return all(item.alias_info is None for item in items) and not any(tag in func.tags for tag in _UNSURE)


def _describe(values: Iterable[Any], found: list[Any]) -> bool:
    """Appends what tells operands apart; False where something cannot be told."""
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            if not _is_plain(value):
                return False
            found += (*_part(value), *_memory(value), value.requires_grad)
        elif kind in _PLAIN:
            found += (kind, value)
        elif kind is list or kind is tuple:
            found += (kind, len(value))
            if not _describe(value, found):
                return False
        else:
            return False
    return True


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.is_meta
        and tensor.layout is torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not tensor.is_inference()
    )
