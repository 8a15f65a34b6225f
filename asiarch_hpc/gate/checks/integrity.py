"""Whether a design has replaced what others use: functions of torch, of Python, or of the gate itself.

A design's code shares its process with the checks. What it replaces there changes what they measure, and in a
training what the trainer does; so that is looked for and named. It is no proof: code in the same process can also
undo what it did. That a score cannot be forged is owed to the evaluation, which never runs a design's code.
"""

from __future__ import annotations

import builtins
import json
import math
import operator
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional

_PROJECT = ("asiarch_hpc.gate", "asiarch_hpc.designs.contract", "asiarch_hpc.records")
_PYTHON = (builtins, math, json, os, random, time)
_TORCH = (
    *("torch", "torch.nn", "torch.nn.functional", "torch.nn.init", "torch.nn.modules.module", "torch.nn.utils"),
    *("torch.autograd", "torch.optim", "torch.linalg", "torch.fft", "torch.special", "torch._C._nn"),
)
_TORCH_FOLDER = os.path.dirname(torch.__file__) + os.sep
_IGNORED = ("__dict__", "__weakref__", "__builtins__", "__warningregistry__", "__abstractmethods__", "_abc_impl")

Held = dict[str, tuple[tuple[object, ...], bool]]  # name -> the object and what it is made of; whether all of it


class Integrity:
    """Remembers what the watched modules and classes hold when it is made. Names that come later do not count, nor
    does what torch itself puts in place of its own functions (its compiler wraps a few when it starts)."""

    def __init__(self) -> None:
        self._modules = dict(_watched_modules())
        self._state = _state()
        self._holders: list[_Holder] = []
        for name, module in self._modules.items():
            strict = name.startswith(_PROJECT)
            self._holders.append(_Holder.of(name, module, strict))
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and (value.__module__ == name or name in ("torch", "torch.nn")):
                    self._holders.append(_Holder.of(f"{name}.{key}", value, strict))

    def changed(self) -> list[str]:
        """Dotted names of what has been replaced or removed since, sorted."""
        found = {name for name, module in self._modules.items() if sys.modules.get(name) is not module}
        found |= {name for name, value in _state().items() if value is not self._state[name]}
        found |= {f"{holder.name}.{name}" for holder in self._holders for name in holder.changed()}
        return sorted(found)


@dataclass(frozen=True, slots=True)
class _Holder:
    """A module or class, and what its names stood for."""

    name: str
    holder: object
    parts: Held
    names: frozenset[str]

    @classmethod
    def of(cls, name: str, holder: object, strict: bool) -> _Holder:
        return cls(name, holder, _parts_of(holder, strict), frozenset(vars(holder)))

    def changed(self) -> Iterator[str]:
        now = vars(self.holder)
        for name, (before, deep) in self.parts.items():
            after = _parts(now[name], deep) if name in now else ()
            if not _same(after, before) and not self._is_torchs_own(after, before):
                yield name
        if isinstance(self.holder, type) and len(now) != len(self.names):
            for name in set(now) - self.names:  # new names matter where they hide inherited ones
                inherited = any(name in vars(base) for base in self.holder.__mro__[1:])
                after = _parts(now[name], False)
                if inherited and _is_behaviour(now[name]) and not self._is_torchs_own(after, ()):
                    yield name

    def _is_torchs_own(self, after: tuple[object, ...], before: tuple[object, ...]) -> bool:
        """Whether torch put something of its own in place of something of its own."""
        if not after or (before and after[0] is before[0]) or not self.name.startswith("torch"):
            return False
        return str(getattr(getattr(after[0], "__code__", None), "co_filename", "")).startswith(_TORCH_FOLDER)


def _parts(value: Any, deep: bool) -> tuple[object, ...]:
    """An object, and what it is made of. Whoever holds them keeps their places in memory from others."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, FunctionType):
        return (value, value.__code__, value.__defaults__, value.__kwdefaults__)
    if isinstance(value, property):
        return (value, value.fget, value.fset)
    if deep and isinstance(value, Mapping):
        return (value, *(part for item in value.items() for part in item))
    if deep and isinstance(value, (list, set, frozenset)):
        return (value, *value)
    return (value,)


def _same(found: tuple[object, ...], before: tuple[object, ...]) -> bool:
    return len(found) == len(before) and all(map(operator.is_, found, before))


def _parts_of(holder: object, strict: bool) -> Held:
    """Everything that a module or class holds where `strict`, else what can be called; and hooks of all modules."""
    parts = {}
    for name, value in list(vars(holder).items()):
        hooks = name.startswith("_global_") and name.endswith("hooks")  # they run in every forward pass
        if name not in _IGNORED and (strict or hooks or _is_behaviour(value)):
            parts[name] = (_parts(value, strict or hooks), strict or hooks)
    return parts


def _watched_modules() -> Iterator[tuple[str, ModuleType]]:
    for module in _PYTHON:
        yield module.__name__, module
    for name, loaded in list(sys.modules.items()):
        if name in _TORCH or any(name == own or name.startswith(f"{own}.") for own in _PROJECT):
            yield name, loaded


def _is_behaviour(value: object) -> bool:
    return callable(value) or isinstance(value, (ModuleType, property, staticmethod, classmethod))


def _state() -> dict[str, Any]:
    """What catches calls without replacing a name."""
    return {
        "sys.settrace": sys.gettrace(),
        "sys.setprofile": sys.getprofile(),
        "torch.overrides.TorchFunctionMode": torch._C._len_torch_function_stack(),
        "torch.utils._python_dispatch.TorchDispatchMode": torch._C._len_torch_dispatch_stack(),
    }
